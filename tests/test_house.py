"""The rooms of the house: who may import whom, and what may not be in the repository."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def tracked(*patterns: str) -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z", *patterns], cwd=ROOT, capture_output=True, text=True, check=True)
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_arrows_point_downwards_only():
    linted = subprocess.run(
        [str(Path(sys.executable).parent / "lint-imports")], cwd=ROOT, capture_output=True, text=True
    )
    assert linted.returncode == 0, linted.stdout


def test_no_file_is_data_weights_or_a_lock_with_addresses():
    for path in tracked():
        assert path.stat().st_size < 1 << 20, path
        assert path.suffix not in {".parquet", ".safetensors", ".pt", ".pkl", ".lock"}, path


def test_constraints_are_pins_and_nothing_else():
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+_-]+", line), line


def test_nothing_is_unpickled():
    unsafe = re.compile(r"\bpickle\.loads?\(|\btorch\.load\(|\byaml\.load\(|\beval\(")
    for path in tracked("*.py"):
        if "tests" not in path.parts:
            for line in path.read_text().splitlines():
                assert not unsafe.search(line) or "model.eval(" in line or ".eval()" in line, f"{path}: {line}"
