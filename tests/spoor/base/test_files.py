import os
from pathlib import Path

import pytest

from spoor.base.errors import DataError, InfrastructureError, UsageError
from spoor.base.files import (
    Manifest,
    atomic_path,
    atomic_write,
    read_at_most,
    refuse_foreign_file,
    replace_folder,
    restore_folder,
    unfinished_folder,
)
from tests.permissions import bound_by_permissions


def test_a_failed_write_leaves_the_old_file_and_no_rubbish(tmp_path):
    target = tmp_path / "a" / "file"
    atomic_write(target, b"old")
    with pytest.raises(RuntimeError), atomic_path(target) as temporary:
        temporary.write_bytes(b"half")
        raise RuntimeError
    assert target.read_bytes() == b"old"
    assert os.listdir(target.parent) == ["file"]


def test_a_folder_that_cannot_be_written_is_an_infrastructure_error_with_a_hint(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InfrastructureError, match="cannot write") as error:
        atomic_write(tmp_path / "file" / "below", b"")
    assert error.value.hint


def test_no_more_is_read_than_was_asked_for(tmp_path):
    (tmp_path / "file").write_bytes(b"12345")
    assert read_at_most(tmp_path / "file", 5) == b"12345"
    with pytest.raises(ValueError, match="more than 4 bytes"):
        read_at_most(tmp_path / "file", 4)
    with pytest.raises(ValueError, match="more than 1,000 bytes"):  # a file without end
        read_at_most(Path("/dev/zero"), 1000)


def test_a_manifest_remembers_items_across_instances(tmp_path):
    Manifest(tmp_path / "m").add("item-1", {"rows": 3})
    manifest = Manifest(tmp_path / "m")
    assert manifest.get("item-1") == {"rows": 3}
    assert manifest.get("item-2") is None
    manifest.add("item-0", {})
    (manifest.folder / ".item-9.json.tmp").write_text("half")
    assert list(manifest.records()) == ["item-0", "item-1"]
    manifest.remove("item-1")
    assert list(manifest.records()) == ["item-0"]


def test_a_damaged_entry_is_a_data_error_that_says_what_to_do(tmp_path):
    manifest = Manifest(tmp_path)
    manifest.add("item-1", {"rows": 3})
    (tmp_path / "item-1.json").write_text('{"rows"')
    for read in (lambda: manifest.get("item-1"), manifest.records):
        with pytest.raises(DataError, match=r"item-1\.json` is damaged") as error:
            read()
        assert "remove it" in error.value.hint


@pytest.mark.parametrize("key", ["", "a/b", ".hidden"])
def test_keys_are_plain_file_names(tmp_path, key):
    with pytest.raises(ValueError):
        Manifest(tmp_path).add(key, {})


def folder_of(path, text):
    path.mkdir()
    (path / "file").write_text(text)
    return path


@pytest.fixture(params=["one exchange", "three steps"])
def replacing(request, monkeypatch):
    """Both ways; the second is for file systems that cannot exchange two folders."""
    if request.param == "three steps":
        monkeypatch.setattr("spoor.base.files._exchanged", lambda one, other: False)


@pytest.mark.usefixtures("replacing")
def test_a_folder_is_replaced_whole(tmp_path):
    old, new = folder_of(tmp_path / "base-1", "old"), folder_of(tmp_path / ".new", "new")
    replace_folder(old, new)
    assert (old / "file").read_text() == "new"
    assert os.listdir(tmp_path) == ["base-1"]


@pytest.mark.usefixtures("replacing")
def test_a_replacement_that_fails_leaves_the_earlier_folder(tmp_path):
    """The new folder is not there: of three steps the second fails."""
    old = folder_of(tmp_path / "base-1", "old")
    with pytest.raises(FileNotFoundError):
        replace_folder(old, tmp_path / ".new")
    assert (old / "file").read_text() == "old"
    assert os.listdir(tmp_path) == ["base-1"]


@pytest.mark.usefixtures("replacing")
def test_a_folder_that_may_not_be_moved_leaves_the_earlier_one(tmp_path):
    old, new = folder_of(tmp_path / "base-1", "old"), folder_of(tmp_path / ".new", "new")
    tmp_path.chmod(0o555)
    try:
        with bound_by_permissions(), pytest.raises(PermissionError):
            replace_folder(old, new)
    finally:
        tmp_path.chmod(0o755)
    assert (old / "file").read_text() == "old"
    assert sorted(os.listdir(tmp_path)) == [".new", "base-1"]


@pytest.mark.usefixtures("replacing")
def test_what_a_link_leads_to_is_replaced_and_the_link_stays(tmp_path):
    (tmp_path / "disk").mkdir()
    old = folder_of(tmp_path / "disk" / "v1", "old")
    link = tmp_path / "base-1"
    link.symlink_to(old)
    with unfinished_folder(link) as new:
        (new / "file").write_text("new")
        replace_folder(link, new)
    assert link.is_symlink() and (old / "file").read_text() == "new"
    assert os.listdir(tmp_path / "disk") == ["v1"]


def test_a_folder_whose_replacement_a_crash_has_interrupted_comes_back(tmp_path, monkeypatch):
    monkeypatch.setattr("spoor.base.files._exchanged", lambda one, other: False)
    old, new = folder_of(tmp_path / "a [1]*", "old"), folder_of(tmp_path / ".a [1]*.0123", "new")
    killed = os.rename
    steps = iter([killed])

    def dies_after_one(source, target):
        next(steps)(source, target)  # then nothing is left to clean up with, as after SIGKILL

    monkeypatch.setattr(os, "rename", dies_after_one)
    with pytest.raises(StopIteration):
        replace_folder(old, new)
    monkeypatch.setattr(os, "rename", killed)
    assert not old.exists()
    restore_folder(tmp_path / "b")
    restore_folder(old)
    assert (old / "file").read_text() == "old"
    restore_folder(old)
    assert sorted(os.listdir(tmp_path)) == [".a [1]*.0123", "a [1]*"]


def test_a_file_is_replaced_only_by_one_of_its_kind(tmp_path):
    path = tmp_path / "picture.png"

    def check():
        refuse_foreign_file(path, ours=lambda head: head.startswith(b"PNG"), what="picture")

    check()
    path.write_bytes(b"")
    check()
    path.write_bytes(b"PNG...")
    check()
    path.write_bytes(b"user_id,item_id\n")
    with pytest.raises(UsageError, match="is no picture"):
        check()
    with pytest.raises(UsageError, match="cannot replace"):
        refuse_foreign_file(tmp_path, ours=lambda head: True, what="picture")
