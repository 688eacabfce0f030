"""The place of a release: free, or held by a release of that name, which alone may be replaced."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from spoor.base.errors import UsageError
from spoor.base.files import read_at_most, replace_folder, restore_folder, unfinished_folder

FORMAT = "spoor-release"
JSON_BYTES = 16 << 20  # of any of a release's JSON files
_ADDED = {"checksums.json", "alignment.json", "alignment.safetensors", "tables.bin", "tables.crc", "tables.json"}
_NAMED = 3  # of foreign files, in an error


def check_free(folder: Path, *, overwrite: bool, option: str = "--overwrite") -> None:
    """Raises UsageError unless `folder` is free, or `overwrite` and it holds a release of its name and nothing else.
    `option`: how the caller lets its user overwrite; empty = not at all."""
    restore_folder(folder)
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    found = _release_name(folder)
    if found != folder.name:
        holds = f"holds the release `{found}`" if found else "is no release" if folder.is_dir() else "is a file"
        raise UsageError(
            f"`{folder}` exists and {holds}: only a release of the same name can be replaced",
            hint=f"choose another folder, for example {_free_beside(folder)}; its last part is the release's name",
        )
    if not overwrite:
        raise UsageError(
            f"`{folder}` exists already; releases never change",
            hint="choose another name" + (f", or replace it with {option}" if option else ""),
        )
    foreign = sorted(path.name for path in folder.iterdir() if path.name not in _release_files(folder))
    if foreign:
        more = f" and {len(foreign) - _NAMED} more" if len(foreign) > _NAMED else ""
        raise UsageError(
            f"`{folder}` also holds {', '.join(foreign[:_NAMED])}{more}, which are no part of the release",
            hint="move them to another folder first, or choose another name",
        )


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Yields an unfinished folder that takes the place of `folder` at the end, and goes on any error. Raises
    InfrastructureError if it cannot be written."""
    with unfinished_folder(folder) as temporary:
        yield temporary
        replace_folder(folder, temporary)


def _release_name(folder: Path) -> str | None:
    """What release.json says, of whatever version; None where there is none."""
    record = _json(folder / "release.json")
    return str(record["name"]) if record.get("format") == FORMAT and "name" in record else None


def _release_files(folder: Path) -> set[str]:
    return _ADDED | set(_json(folder / "checksums.json"))


def _json(path: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError, RecursionError):
        record = json.loads(read_at_most(path, JSON_BYTES))
        if isinstance(record, dict):
            return record
    return {}


def _free_beside(folder: Path) -> Path:
    """Inside a folder of releases, which was perhaps meant; else beside the folder."""
    inside = folder.is_dir() and any(folder.glob("[!.]*/release.json"))
    stem = folder / "base" if inside else folder
    numbered = (stem.with_name(f"{stem.name}-{number}") for number in range(1, 1_000_000))
    return next(path for path in numbered if not path.exists())
