"""The rooms of the house: who may import whom, and what may not be in the repository."""

import ast
import re
import subprocess
import sys
from collections import Counter
from graphlib import TopologicalSorter
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[1]


def tracked(*patterns: str) -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z", *patterns], cwd=ROOT, capture_output=True, text=True, check=True)
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_arrows_point_downwards_only():
    linted = subprocess.run(
        [str(Path(sys.executable).parent / "lint-imports")], cwd=ROOT, capture_output=True, text=True
    )
    assert linted.returncode == 0, linted.stdout


ROOMS = ("activity", "batch", "encoder", "feature_repo", "kernels", "ranking", "store", "streaming")


def test_each_room_is_a_link_under_spoor():
    links = {path.name: str(path.readlink()) for path in (ROOT / "spoor").iterdir() if path.is_symlink()}
    assert links == {room: f"../{room}" for room in ROOMS}


def test_no_file_imports_a_room_without_spoor():
    """`import encoder` from the repository's root would be a second copy of spoor.encoder's modules. ruff bans it in
    code; scripts in texts, `python -m` and the names that tests patch would do the same."""
    rooms = "|".join(ROOMS)
    before = r"""(?:(?:^\s*|["'])(?:from|import) |-m |setattr\(\s*["'])"""
    short = re.compile(rf"(?m:{before}(?:{rooms})(?:\.[a-z_]+\b| import\b|$))")
    for path in tracked("*.py", "*.md", "*.toml", "Makefile", "Dockerfile", "deploy/*"):
        if path.name != "CHANGELOG.md":
            assert not short.findall(path.read_text()), path


def test_no_circle_of_files():
    """Imports inside functions and for type checkers count."""
    graph = grimp.build_graph("spoor", cache_dir=None)
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    assert len(imports) > 200
    TopologicalSorter(imports).prepare()  # raises CycleError, which names the circle


def test_a_room_has_at_most_twelve_files():
    folders = Counter(path.parent for path in tracked("*.py") if path.name != "__init__.py")
    for folder, files in folders.items():
        if folder.relative_to(ROOT).parts[:1] in [(room,) for room in (*ROOMS, "spoor")]:
            assert files <= 12, f"{folder.relative_to(ROOT)} has {files} files"


def test_no_file_is_data_weights_or_a_lock_with_addresses():
    for path in tracked():
        assert path.stat().st_size < 1 << 20, path
        assert path.suffix not in {".parquet", ".safetensors", ".pt", ".pkl", ".lock"}, path


def test_constraints_are_pins_and_nothing_else():
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+_-]+", line), line


UNSAFE_MODULES = {"cloudpickle", "cPickle", "dill", "joblib", "jsonpickle", "marshal", "pickle", "shelve", "_pickle"}
UNSAFE_CALLS = {"eval", "exec", "__import__", "yaml.load", "yaml.full_load", "yaml.unsafe_load"}
UNSAFE_CALLS |= {"torch.load", "torch.jit.load", "torch.hub.load", "torch.package.PackageImporter"}


def unsafe(source: str) -> list[str]:
    """What in the source could run code that comes with data."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [name.name for name in node.names if name.name.split(".")[0] in UNSAFE_MODULES]
        elif isinstance(node, ast.ImportFrom):
            found += [node.module] if (node.module or "").split(".")[0] in UNSAFE_MODULES else []
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            found += [called] if called in UNSAFE_CALLS or called.endswith(".read_pickle") else []
            for keyword in node.keywords:
                off = isinstance(keyword.value, ast.Constant) and keyword.value.value is False
                found += [ast.unparse(node)] if keyword.arg == "allow_pickle" and not off else []
    return found


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "import numpy, cloudpickle as safe",
        "from joblib import load",
        "import torch\nweights = torch.load(path)",
        "torch.jit.load(path)",
        "np.load(path, allow_pickle=True)",
        "np.load(path, allow_pickle=flag)",
        "pd.read_pickle(path)",
        "yaml.load(text, Loader=yaml.Loader)",
        "eval(text)",
    ],
)
def test_what_would_unpickle_is_seen(source: str):
    assert unsafe(source)


def test_nothing_is_unpickled():
    """Weights are safetensors, tables Parquet or Arrow, settings JSON, TOML or safe YAML: loading them runs nothing."""
    for source in ("model.eval()", "np.load(path, allow_pickle=False)", "yaml.safe_load(text)", "json.load(file)"):
        assert not unsafe(source)
    for path in tracked("*.py"):
        if "tests" not in path.parts:
            assert unsafe(path.read_text()) == [], path
