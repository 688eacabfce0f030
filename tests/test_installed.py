"""The wheel: its files, the copies of the repository that build it, and its use in a company's folder."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.installed import ROOT, build_wheel, copy_of_checkout, feast, new_environment, run
from tests.releases import save_untrained_release


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_of_checkout(tmp_path_factory.mktemp("copies") / "checkout")


@pytest.fixture(scope="module")
def wheel(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(checkout, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def bin_folder(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return new_environment(tmp_path_factory.mktemp("environment"), wheel)


def held(wheel: Path) -> set[str]:
    """Names of files; the folder of metadata without its version."""
    return {re.sub(r"spoor-[^/]*\.dist-info", "dist-info", name) for name in zipfile.ZipFile(wheel).namelist()}


def test_the_wheel_holds_everything_under_spoor_and_nothing_else(wheel: Path):
    names = held(wheel)
    assert {name.split("/")[0] for name in names} == {"spoor", "dist-info"}
    kinds = ["*.py", "*.avsc", "*/configs/*.json"]
    product = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", *kinds], cwd=ROOT, stdout=-1, check=True)
    folders = {path.name for path in (ROOT / "spoor").iterdir() if path.is_symlink()}
    for name in product.stdout.decode().split():
        if (ROOT / name).exists() and name.split("/")[0] in folders:
            assert f"spoor/{name}" in names, name
    assert "spoor/kernels/compiled.json" in names


def zipped_without_links(checkout: Path, folder: Path) -> Path:
    """A zip of the repository as Python's zipfile unpacks it: a link is a file that holds its target."""
    with zipfile.ZipFile(folder / "spoor.zip", "w") as archive:
        for path in sorted(checkout.rglob("*")):
            name = path.relative_to(checkout).as_posix()
            if path.is_symlink():
                archive.writestr(name, str(path.readlink()))
            elif path.is_file():
                archive.write(path, name)
    with zipfile.ZipFile(folder / "spoor.zip") as archive:
        archive.extractall(folder / "unpacked")
    return folder / "unpacked"


def without_the_links(checkout: Path, folder: Path) -> Path:
    copy = zipped_without_links(checkout, folder)
    for link in (path for path in (checkout / "spoor").iterdir() if path.is_symlink()):
        (copy / "spoor" / link.name).unlink()
    return copy


def source_archive(checkout: Path, folder: Path) -> Path:
    """Unpacked; built by the tool of the standard (`python -m build --sdist` calls the same)."""
    script = f"from setuptools import build_meta; print(build_meta.build_sdist({str(folder)!r}))"
    made = subprocess.run([sys.executable, "-c", script], cwd=checkout, capture_output=True, text=True, check=True)
    with tarfile.open(folder / made.stdout.split()[-1]) as archive:
        archive.extractall(folder / "source", filter="data")
    (unpacked,) = (folder / "source").iterdir()
    return unpacked


@pytest.mark.parametrize("copied", [zipped_without_links, without_the_links, source_archive])
def test_every_copy_of_the_repository_builds_the_same_wheel(
    copied: Callable[[Path, Path], Path], checkout: Path, wheel: Path, tmp_path: Path
):
    assert held(build_wheel(copied(checkout, tmp_path), tmp_path)) == held(wheel)


def test_names_of_neighbours_are_theirs_and_spoor_brings_one(bin_folder: Path, tmp_path: Path):
    script = """
import importlib.util, json
names = ["activity", "batch", "encoder", "feature_repo", "kernels", "ranking", "spoor", "store", "streaming"]
found = {name: importlib.util.find_spec(name) for name in names}
print(json.dumps({name: spec.origin for name, spec in found.items() if spec}))
"""
    origins = json.loads(run(str(bin_folder / "python"), "-c", script, cwd=tmp_path))
    assert sorted(origins) == ["kernels", "spoor", "streaming"]
    for name in ("kernels", "streaming"):
        folder = Path(origins[name]).parent
        assert not (folder / "dcat_attention").exists() and not (folder / "worker.py").exists()


def test_a_folder_of_feast_init_takes_spoor_s_definitions_and_a_ranker_reads_them(bin_folder: Path, tmp_path: Path):
    """There lies a package `feature_repo` of the company's own."""
    feast(bin_folder / "python", "init", "shop", cwd=tmp_path)
    shop = tmp_path / "shop"
    assert "backfill" in run(str(bin_folder / "spoor"), "--help", cwd=shop)
    names = {"items": ["i1", "i2"], "actions": ["view"], "surfaces": ["web"]}
    save_untrained_release(shop / "releases" / "base-1", **names)
    page = (ROOT / "docs" / "feast.md").read_text()
    (shop / "feature_repo" / "spoor_definitions.py").write_text(re.findall(r"```python\n(.*?)```", page, re.DOTALL)[0])
    settings = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)[0]
    (shop / "spoor.toml").write_text(settings.replace("[features]", '[features]\nreleases_folder = "releases"'))
    said = feast(bin_folder / "python", "-c", "feature_repo", "apply", cwd=shop)
    assert "feature view user_embedding_base_1" in said and "feature service ranker_base_1" in said
    script = """
from feast import FeatureStore
store = FeatureStore("feature_repo")
rows = [{"driver_id": 1001, "item_id": "i1"}]
print(sorted(store.get_online_features(store.get_feature_service("ranker_base_1"), rows).to_dict()))
"""
    read = run(str(bin_folder / "python"), "-c", script, cwd=shop)
    assert "'embedding'" in read and "'item_embedding'" in read
