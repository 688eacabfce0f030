"""Atomic writes of files and folders, and manifests of finished work."""

from __future__ import annotations

import ctypes
import errno
import glob
import json
import os
import shutil
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from spoor.base.errors import DataError, InfrastructureError, UsageError

_HEAD_BYTES = 1 << 20  # read to recognise a file's kind


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """For a block that writes this file or folder: turns OSErrors into InfrastructureErrors that name it."""
    try:
        yield
    except OSError as error:
        raise InfrastructureError(
            f"cannot write `{path}`: {error.strerror or error}",
            hint="check free space and permissions of the folder",
        ) from error


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path` (its name starts with a dot). On success it is synced and renamed to
    `path`, on any error removed. Raises InfrastructureError if the folder cannot be written."""
    temporary = path.parent / f".{path.name}.{uuid.uuid4().hex}"
    with writing(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
            _sync_folder(path.parent)
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


def atomic_write(path: Path, data: bytes) -> None:
    """Writes the whole file or nothing."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def read_at_most(path: Path, most_bytes: int) -> bytes:
    """The whole file. Raises ValueError for a larger one, without reading the rest into memory, and OSError."""
    with open(path, "rb") as file:
        data = file.read(most_bytes + 1)
    if len(data) > most_bytes:
        raise ValueError(f"`{path}` has more than {most_bytes:,} bytes")
    return data


def refuse_foreign_file(path: Path, *, ours: Callable[[bytes], bool], what: str) -> None:
    """Raises UsageError if `path` exists and is not a `what`: `ours` checks its first bytes. An empty file may be
    replaced."""
    try:
        with open(path, "rb") as file:
            head = file.read(_HEAD_BYTES)
    except FileNotFoundError:
        return
    except OSError as error:
        raise UsageError(f"cannot replace `{path}`: {error.strerror or error}", hint="choose another file") from None
    if head and not ours(head):
        raise UsageError(f"`{path}` exists and is no {what}: it is not replaced", hint="choose another file")


@contextmanager
def unfinished_folder(folder: Path) -> Iterator[Path]:
    """Yields a new folder beside `folder`. The block fills it and puts it in place (`replace_folder`), else it is
    removed. Raises InfrastructureError if the block raises OSError."""
    place = _behind_link(folder)
    temporary = place.parent / f".{place.name}.{uuid.uuid4().hex}"
    with writing(folder):
        try:
            temporary.mkdir(parents=True)
            yield temporary
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def replace_folder(folder: Path, temporary: Path) -> None:
    """Replaces `folder` by a finished folder beside it: syncs its files and removes the earlier folder. A link stays,
    and its target is replaced. Raises OSError; the earlier folder is then unchanged."""
    for path in temporary.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
    place = _behind_link(folder)
    if not os.path.lexists(place):
        os.rename(temporary, place)
    else:
        if not _exchanged(temporary, place):
            _swap(temporary, place)
        shutil.rmtree(temporary, ignore_errors=True)  # after the exchange, the earlier folder
    _sync_folder(place.parent)


def restore_folder(folder: Path) -> None:
    """Restores an earlier folder if a crash interrupted its replacement; else does nothing. Only file systems without
    an atomic exchange need it: elsewhere the folder exists at every moment."""
    place = _behind_link(folder)
    if os.path.lexists(place) or not place.parent.is_dir():
        return
    for aside in place.parent.glob(f".{glob.escape(place.name)}.*{_ASIDE}"):
        with suppress(OSError):  # a read-only folder, or another process was faster
            os.rename(aside, place)


_ASIDE = ".replaced"
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


def _exchanged(one: Path, other: Path) -> bool:
    """Exchanges two paths in one step; False if the system or the file system cannot. Raises OSError."""
    if sys.platform != "linux" or (renameat2 := getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)) is None:
        return False
    if renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
        return False
    raise OSError(number, os.strerror(number), str(other))


def _swap(temporary: Path, place: Path) -> None:
    """Like `_exchanged`, in three steps; if the second fails, the first is undone."""
    aside = temporary.with_name(temporary.name + _ASIDE)
    os.rename(place, aside)
    try:
        os.rename(temporary, place)
    except BaseException:
        os.rename(aside, place)
        raise
    os.rename(aside, temporary)


def _behind_link(path: Path) -> Path:
    return Path(os.path.realpath(path)) if path.is_symlink() else path


class Manifest:
    """The finished work items: one small JSON file each. Finishing an item is one atomic rename, so processes need no
    lock. Keys are file names."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def add(self, key: str, record: dict[str, Any]) -> None:
        atomic_write(self._path(key), json.dumps(record, sort_keys=True).encode())

    def get(self, key: str) -> dict[str, Any] | None:
        """The item's record; None if the item is not finished. Raises DataError for a damaged entry."""
        try:
            return _entry(self._path(key))
        except FileNotFoundError:
            return None

    def keys(self) -> set[str]:
        """The keys of finished items. No entry is read."""
        return {path.stem for path in self._paths()}

    def records(self) -> dict[str, dict[str, Any]]:
        """The records of finished items, by key. Raises DataError for a damaged entry."""
        return {path.stem: _entry(path) for path in sorted(self._paths())}

    def remove(self, key: str) -> None:
        self._path(key).unlink(missing_ok=True)

    def _paths(self) -> Iterator[Path]:
        return self.folder.glob("[!.]*.json")

    def _path(self, key: str) -> Path:
        if not key or key.startswith(".") or "/" in key:
            raise ValueError(f"not a manifest key: {key!r}")
        return self.folder / f"{key}.json"


def _entry(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise DataError(
            f"manifest entry `{path}` is damaged: {error}",
            hint="remove it and run the command that wrote it again: its work item is then done anew",
        ) from None


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
