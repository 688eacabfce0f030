"""Reads release.json, without the weights, and checks it field by field.

The file may come from elsewhere: its size is limited, only known formats and hash versions are read, and anything
unexpected in it is a DataError. This module does not import torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from spoor.activity.hashing import READABLE_HASH_VERSIONS
from spoor.base.errors import DataError, InfrastructureError, UsageError
from spoor.base.files import read_at_most, restore_folder
from spoor.base.release_names import RELEASE_NAME, check_release_name
from spoor.encoder.model.config import ModelConfig
from spoor.encoder.model.hashing import ROW_HASH_VERSION
from spoor.encoder.release.training_end import TrainingEnd

FORMAT, FORMAT_VERSION = "spoor-release", 2
TRAIN_AGAIN = "restore the folder from a copy, or remove it and train again with `spoor pretrain --release NAME`"
_JSON_BYTES = 16 << 20  # maximum size of a release's JSON file
_OTHER_VERSION = "use the version of Spoor that wrote it, or train the release again"
_AS_STORED = (  # fields of ReleaseInfo that are stored unchanged in JSON
    *("name", "dimension", "max_events", "trained_through_ms", "hash_version", "created_at", "data_fingerprint"),
    "split",
)


@dataclass(frozen=True)
class ReleaseInfo:
    """The contents of release.json."""

    name: str
    folder: Path
    dimension: int  # floats of a user or item vector
    max_events: int  # newest events that the model reads: its served_length
    trained_through_ms: int  # time of the newest event used in training
    hash_version: int  # of activity/hashing.py
    created_at: str  # ISO 8601, UTC
    data_fingerprint: str  # SHA-256 of the training events
    model: ModelConfig
    split: Mapping[str, Any] | None = None  # protocol, digest and shuffle_ties of the events it was trained on
    packed: Mapping[str, Any] | None = None  # layout of its item tables, and the release that they were packed from
    aligned: Mapping[str, Any] | None = None  # release that it rotates, target release, space and the comparison
    ended: TrainingEnd | None = None  # how its training ended; None in older releases, which did not record it
    retired: bool = False  # workers and jobs no longer write its rows

    @property
    def space(self) -> str:
        """The release whose vectors this one's can replace: its own name, unless it is aligned."""
        return self.name if self.aligned is None else self.aligned["space"]

    def to_json(self) -> dict[str, Any]:
        """The record in release.json without `retired`, which is added later, and `training`, which the writer adds."""
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "row_hash_version": ROW_HASH_VERSION,
            "model": self.model.to_json(),
            **{name: getattr(self, name) for name in _AS_STORED},
            **({} if self.packed is None else {"packed": dict(self.packed)}),
            **({} if self.aligned is None else {"aligned": dict(self.aligned)}),
            **({} if self.ended is None else {"ended": asdict(self.ended)}),
        }


def read_info(folder: Path) -> ReleaseInfo:
    """Reads only release.json, in a millisecond; checksums are not verified. Raises as `load_release`."""
    path = folder / "release.json"
    if not path.exists():
        restore_folder(folder)
    if not path.exists():
        names = ", ".join(f"`{info.name}`" for info in list_releases(folder.parent)) or "none"
        raise UsageError(
            f"there is no release `{folder.name}` in `{folder.parent}`; found: {names}",
            hint="`spoor release list` shows all releases, `spoor pretrain --release NAME` trains one",
        )
    try:
        record = json.loads(read_file(path))
        if record["format"] != FORMAT or record["format_version"] != FORMAT_VERSION:
            raise DataError(
                f"`{path}` is of format {record['format']} {record['format_version']}, "
                f"expected {FORMAT} {FORMAT_VERSION}",
                hint=_OTHER_VERSION,
            )
        _check_hash_versions(path, record)
        info = ReleaseInfo(
            folder=folder,
            model=ModelConfig.from_json(record["model"]),
            packed=_packed(record.get("packed")),
            aligned=_aligned(record.get("aligned")),
            ended=_ended(record.get("ended")),
            retired=bool(record.get("retired", False)),
            **{name: record[name] for name in _AS_STORED},
        )
    except (KeyError, TypeError, ValueError, RecursionError, UsageError) as error:
        raise DataError(f"`{path}` does not describe a release: {error!r}", hint=TRAIN_AGAIN) from None
    if info.name != folder.name:
        raise DataError(
            f"`{folder}` holds the release `{info.name}`",
            hint=f"a release keeps its name: rename the folder to {info.name}",
        )
    return info


def list_releases(folder: Path) -> list[ReleaseInfo]:
    """All releases in the folder, by name. Skips hidden folders (unfinished work) and folders without a release.json;
    a missing folder has no releases. Raises DataError for a damaged release."""
    if not folder.is_dir():
        return []
    found = sorted(path for path in folder.iterdir() if RELEASE_NAME.fullmatch(path.name))
    return [read_info(path) for path in found if (path / "release.json").exists()]


def short_histories(infos: Iterable[ReleaseInfo], *, kept: int) -> str | None:
    """A warning if releases read more events than the `kept` events of a stored history; else None."""
    longer = [info for info in infos if info.max_events > kept]
    if not longer:
        return None
    most = max(info.max_events for info in longer)
    names = ", ".join(f"`{info.name}` {info.max_events}" for info in longer)
    return (
        f"history.max_events is {kept}, and a release reads more events ({names}): its vectors are made of the newest "
        f"{kept} alone. Set history.max_events to {most} and run `spoor backfill`, which takes older events from the "
        "lake"
    )


def read_file(path: Path) -> bytes:
    """A file of a release; JSON files have a size limit. Raises DataError if it is missing or too large,
    InfrastructureError if it cannot be read."""
    try:
        return read_at_most(path, _JSON_BYTES) if path.suffix == ".json" else path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"file `{path}` is missing", hint=TRAIN_AGAIN) from None
    except ValueError as error:
        raise DataError(str(error), hint=TRAIN_AGAIN) from None
    except OSError as error:
        raise InfrastructureError(
            f"cannot read `{path}`: {error.strerror or error}", hint="check the disk and the permissions"
        ) from None


def _packed(packed: Mapping[str, Any] | None) -> dict[str, str] | None:
    return None if packed is None else {key: str(packed[key]) for key in ("layout", "of")}


def _aligned(aligned: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if aligned is None:
        return None
    names = {key: check_release_name(aligned[key]) for key in ("of", "to", "space")}
    return names | {"report": dict(aligned["report"])}


def _ended(ended: Mapping[str, Any] | None) -> TrainingEnd | None:
    return None if ended is None else TrainingEnd.from_json(ended)


def _check_hash_versions(path: Path, record: Mapping[str, Any]) -> None:
    for key, readable in (("hash_version", READABLE_HASH_VERSIONS), ("row_hash_version", (ROW_HASH_VERSION,))):
        if record[key] not in readable:
            raise DataError(
                f"`{path}` has {key} {record[key]}, this Spoor reads {' and '.join(map(str, readable))}: "
                "its items would be mistaken",
                hint=_OTHER_VERSION,
            )
