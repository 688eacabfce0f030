"""Files that are whole or absent, and manifests of finished work."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from activity.errors import DataError, InfrastructureError


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """The block writes this file or folder: its OSErrors become InfrastructureErrors that name it."""
    try:
        yield
    except OSError as error:
        raise InfrastructureError(
            f"cannot write `{path}`: {error.strerror or error}",
            hint="check free space and permissions of the folder",
        ) from error


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path` (its name starts with a dot); on success it is synced and renamed to
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
    """The whole file. Raises ValueError for a larger one, before more of it is in memory, and OSError."""
    with open(path, "rb") as file:
        data = file.read(most_bytes + 1)
    if len(data) > most_bytes:
        raise ValueError(f"`{path}` has more than {most_bytes:,} bytes")
    return data


@contextmanager
def unfinished_folder(folder: Path) -> Iterator[Path]:
    """A new folder beside `folder`, which the block fills and puts in its place (`replace_folder`), else it goes.
    Raises InfrastructureError where the block raises OSError."""
    temporary = folder.parent / f".{folder.name}.{uuid.uuid4().hex}"
    with writing(folder):
        try:
            temporary.mkdir(parents=True)
            yield temporary
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def replace_folder(folder: Path, temporary: Path) -> None:
    """Puts a finished folder, which lies beside `folder`, in its place: its files are synced, an earlier folder goes.
    Raises OSError."""
    for path in temporary.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
    if folder.exists():
        replaced = temporary.with_name(temporary.name + ".replaced")
        os.rename(folder, replaced)
        os.rename(temporary, folder)
        shutil.rmtree(replaced)
    else:
        os.rename(temporary, folder)


class Manifest:
    """Which work items are done: one small JSON file each, so that finishing an item is one atomic rename and
    processes need no lock. Keys are file names."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def add(self, key: str, record: dict[str, Any]) -> None:
        atomic_write(self._path(key), json.dumps(record, sort_keys=True).encode())

    def get(self, key: str) -> dict[str, Any] | None:
        """None for an item that is not finished. Raises DataError for a damaged entry."""
        try:
            return _entry(self._path(key))
        except FileNotFoundError:
            return None

    def keys(self) -> set[str]:
        """Of every finished item, without reading an entry."""
        return {path.stem for path in self._paths()}

    def records(self) -> dict[str, dict[str, Any]]:
        """Every finished item, by key. Raises DataError for a damaged entry."""
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
