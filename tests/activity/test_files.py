import os
from pathlib import Path

import pytest

from activity.errors import DataError, InfrastructureError
from activity.files import Manifest, atomic_path, atomic_write, read_at_most


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
