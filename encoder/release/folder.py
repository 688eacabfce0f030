"""Release folders: a frozen model with everything that is needed to use it, and nothing that runs code.

    releases/NAME/  release.json            what it is: dimension, trained-through time, versions, model shape
                    model.safetensors       weights
                    vocabulary.safetensors  hashes of the items, actions and surfaces it knows
                    items.parquet           raw item ids beside their hashes
                    metrics.json, curve.png, MODEL_CARD.md
                    checksums.json          SHA-256 of every file above
                    tables.*                packed item tables (packed_tables.py), where they are no weights
                    alignment.*             map into another release's space (alignment.py), made afterwards and
                                            checked by itself

The folder appears whole, by one rename. Afterwards one thing alone is changed: `spoor release retire` adds `retired` to
release.json, which its checksum leaves out. This module does not import torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import SafetensorError
from safetensors import numpy as safetensors_numpy

from spoor.activity.hashing import HASH_VERSION, READABLE_HASH_VERSIONS, hash_items
from spoor.base.errors import DataError, InfrastructureError, UsageError
from spoor.base.files import atomic_write, read_at_most, restore_folder
from spoor.base.release_names import RELEASE_NAME, check_release_name
from spoor.encoder.model.config import ModelConfig
from spoor.encoder.model.hashing import ROW_HASH_VERSION
from spoor.encoder.model.vocabulary import Vocabulary
from spoor.encoder.release.model_card import model_card
from spoor.encoder.release.staging import FORMAT, check_free, new_folder
from spoor.encoder.release.staging import JSON_BYTES as _JSON_BYTES
from spoor.encoder.release.training_end import TrainingEnd

BEFORE_REFIT_FILE = "before_refit.safetensors"  # weights of the best epoch, kept where test events wait for them
FORMAT_VERSION = 2
Weights = Mapping[str, npt.NDArray[np.generic]]
_TRAIN_AGAIN = "restore the folder from a copy, or remove it and train again with `spoor pretrain --release NAME`"


@dataclass(frozen=True)
class ReleaseInfo:
    """What release.json says, without the weights."""

    name: str
    folder: Path
    dimension: int  # floats of a user or item vector
    max_events: int  # newest events that the model reads: its served_length
    trained_through_ms: int  # time of the newest event that had any part in training
    hash_version: int  # of activity/hashing.py
    created_at: str  # ISO 8601, UTC
    data_fingerprint: str  # SHA-256 of the training events
    model: ModelConfig
    split: Mapping[str, Any] | None = None  # protocol, digest and shuffle_ties of the events it was trained on
    packed: Mapping[str, Any] | None = None  # layout of its item tables, and the release that they were packed from
    aligned: Mapping[str, Any] | None = None  # whose vectors it turns, into whose space, and how near they come
    ended: TrainingEnd | None = None  # how its training ended; None in releases from before this was kept
    retired: bool = False  # nobody writes its rows any more

    @property
    def space(self) -> str:
        """The release whose vectors this one's may stand in for: its own name, unless it was aligned."""
        return self.name if self.aligned is None else self.aligned["space"]


@dataclass(frozen=True, eq=False)
class Release:
    """A release read and verified. `weights`: the model's parameters by name, without item tables that are packed."""

    info: ReleaseInfo
    vocabulary: Vocabulary
    weights: dict[str, npt.NDArray[np.generic]]
    metrics: dict[str, Any]

    def trainable_weights(self) -> Weights:
        """All parameters. Raises UsageError where the item tables are packed."""
        if self.info.packed is not None:
            raise UsageError(
                f"release `{self.info.name}` has packed item tables, which cannot be trained further",
                hint=f"take the release that it was packed from, `{self.info.packed['of']}`",
            )
        return self.weights


def save_release(
    folder: Path,
    *,
    model: ModelConfig,
    weights: Weights,
    vocabulary: Vocabulary,
    trained_through_ms: int,
    data_fingerprint: str,
    metrics: Mapping[str, Any],
    training: Mapping[str, Any],
    curve_png: bytes,
    split: Mapping[str, Any] | None = None,
    ended: TrainingEnd | None = None,
    more_files: Mapping[str, bytes] | None = None,
    overwrite: bool = False,
) -> ReleaseInfo:
    """Writes the release whose name is the folder's: whole, or not at all. One that is replaced stands until then.

    `training` (settings and circumstances) goes into release.json and the model card; `split`: what `check_split` of
    encoder/data/split.py will ask for; `more_files`: further files by name, kept and checked with the others. Raises
    UsageError for a bad name or a release that exists (unless `overwrite`), InfrastructureError if the folder cannot be
    written.
    """
    check_release_name(folder.name)
    check_free(folder, overwrite=overwrite)
    info = ReleaseInfo(
        name=folder.name,
        folder=folder,
        dimension=model.dimension,
        max_events=model.max_events,
        trained_through_ms=trained_through_ms,
        hash_version=HASH_VERSION,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        data_fingerprint=data_fingerprint,
        model=model,
        split=None if split is None else dict(split),
        ended=ended,
    )
    files = dict(more_files or {}) | {
        "model.safetensors": safetensors_numpy.save({k: np.asarray(v, order="C") for k, v in weights.items()}),
        "vocabulary.safetensors": safetensors_numpy.save(
            {"items": vocabulary.items, "actions": vocabulary.actions, "surfaces": vocabulary.surfaces}
        ),
        "items.parquet": _items_parquet(vocabulary),
        "metrics.json": json_bytes(metrics),
        "curve.png": curve_png,
    }
    with new_folder(folder) as temporary:
        write_files(temporary, info, files, metrics=metrics, training=training)
    return info


def write_files(
    folder: Path,
    info: ReleaseInfo,
    files: Mapping[str, bytes],
    *,
    metrics: Mapping[str, Any],
    training: Mapping[str, Any],
) -> None:
    """A release's files into its unfinished folder, with what describes them. Raises OSError."""
    record = _record(info)
    whole = dict(files) | {
        "MODEL_CARD.md": model_card(record, metrics=metrics, training=training).encode(),
        "release.json": json_bytes(record | {"training": dict(training)}),
    }
    whole["checksums.json"] = json_bytes({name: _sha256(data) for name, data in whole.items()})
    for name, data in whole.items():
        (folder / name).write_bytes(data)


def load_release(folder: Path) -> Release:
    """Reads a release and verifies every file against its checksum.

    Raises UsageError if there is no such folder, DataError if it is damaged, foreign or of another hash version.
    """
    info = read_info(folder)
    files = verified_files(info)
    try:
        weights = safetensors_numpy.load(files["model.safetensors"])
        known = safetensors_numpy.load(files["vocabulary.safetensors"])
        table = pq.read_table(pa.BufferReader(files["items.parquet"]))
        vocabulary = Vocabulary(
            known["items"],
            known["actions"].astype(np.uint64),  # 16 bits in hash version 1
            known["surfaces"].astype(np.uint64),
            tuple(table["item_id"].to_pylist()),
        )
        metrics = json.loads(files["metrics.json"])
    except (KeyError, ValueError, SafetensorError, pa.ArrowException) as error:
        raise DataError(f"release `{info.name}` cannot be read: {error}", hint=_TRAIN_AGAIN) from None
    if not np.array_equal(hash_items(vocabulary.item_ids), vocabulary.items):
        raise DataError(f"release `{info.name}`: item ids and hashes do not fit together", hint=_TRAIN_AGAIN)
    return Release(info, vocabulary, weights, metrics)


def verified_files(info: ReleaseInfo, *, without: Collection[str] = ()) -> dict[str, bytes]:
    """Every file that has a checksum. Raises DataError for one that does not match it."""
    files = {}
    for name, expected in checksums(info.folder).items():
        if name not in without:
            files[name] = _read(info.folder / name)
            if _sha256(_unmarked(files[name]) if name == "release.json" else files[name]) != expected:
                raise does_not_match(info, name)
    return files


def training_record(info: ReleaseInfo) -> tuple[dict[str, Any], dict[str, Any]]:
    """A release's metrics, and the settings and circumstances of its training."""
    files = verified_files(info, without=checksums(info.folder).keys() - {"metrics.json", "release.json"})
    return json.loads(files["metrics.json"]), json.loads(files["release.json"])["training"]


def known_items(info: ReleaseInfo) -> list[str]:
    """Raw ids of the items that a release knows, without its weights. Raises DataError for a damaged file."""
    files = verified_files(info, without=checksums(info.folder).keys() - {"items.parquet"})
    try:
        return pq.read_table(pa.BufferReader(files["items.parquet"]))["item_id"].to_pylist()
    except (KeyError, pa.ArrowException) as error:
        raise DataError(f"release `{info.name}`: items.parquet cannot be read: {error}", hint=_TRAIN_AGAIN) from None


def does_not_match(info: ReleaseInfo, name: str) -> DataError:
    return DataError(f"release `{info.name}`: file {name} does not match its checksum", hint=_TRAIN_AGAIN)


def read_info(folder: Path) -> ReleaseInfo:
    """release.json alone, in a millisecond; checksums are not verified. Errors as `load_release`."""
    path = folder / "release.json"
    if not path.exists():
        restore_folder(folder)
    if not path.exists():
        names = ", ".join(f"`{info.name}`" for info in list_releases(folder.parent)) or "none"
        raise UsageError(
            f"there is no release `{folder.name}` in `{folder.parent}`; found: {names}",
            hint="`spoor release list` shows what there is, `spoor pretrain --release NAME` makes one",
        )
    try:
        record = json.loads(_read(path))
        if record["format"] != FORMAT or record["format_version"] != FORMAT_VERSION:
            raise DataError(
                f"`{path}` is of format {record['format']} {record['format_version']}, "
                f"expected {FORMAT} {FORMAT_VERSION}",
                hint="use the version of Spoor that wrote it, or train the release again",
            )
        _check_hash_versions(path, record)
        model = ModelConfig.from_json(record["model"])
        info = ReleaseInfo(
            folder=folder,
            model=model,
            name=record["name"],
            dimension=record["dimension"],
            max_events=record["max_events"],
            trained_through_ms=record["trained_through_ms"],
            hash_version=record["hash_version"],
            created_at=record["created_at"],
            data_fingerprint=record["data_fingerprint"],
            split=record["split"],
            packed=_packed(record),
            aligned=_aligned(record),
            ended=_ended(record),
            retired=bool(record.get("retired", False)),
        )
    except (KeyError, TypeError, ValueError, RecursionError, UsageError) as error:
        raise DataError(f"`{path}` does not describe a release: {error!r}", hint=_TRAIN_AGAIN) from None
    if info.name != folder.name:
        raise DataError(
            f"`{folder}` holds the release `{info.name}`",
            hint=f"a release keeps its name: rename the folder to {info.name}",
        )
    return info


def mark_retired(folder: Path) -> ReleaseInfo:
    """Adds `retired` to release.json, in one atomic step. Marked twice, nothing changes. Raises as `read_info`, and
    InfrastructureError if the folder cannot be written."""
    info = read_info(folder)
    if not info.retired:
        record = json.loads(_read(folder / "release.json"))
        atomic_write(folder / "release.json", json_bytes(record | {"retired": True}))
    return replace(info, retired=True)


def _unmarked(data: bytes) -> bytes:
    """release.json as it was before it was marked retired; other bytes as they are."""
    try:
        record = json.loads(data)
    except ValueError:
        return data
    if not isinstance(record, dict) or record.pop("retired", None) is not True:
        return data
    return json_bytes(record)


def kept_file(folder: Path, name: str) -> bytes | None:
    """A file that not every release has, None where it has not. Raises InfrastructureError if it cannot be read."""
    path = folder / name
    return _read(path) if path.exists() else None


def list_releases(folder: Path) -> list[ReleaseInfo]:
    """Every release in the folder, by name. Hidden folders (unfinished work) and folders without a release.json are
    none; a folder that does not exist holds none. Raises DataError for a damaged one."""
    if not folder.is_dir():
        return []
    found = sorted(path for path in folder.iterdir() if RELEASE_NAME.fullmatch(path.name))
    return [read_info(path) for path in found if (path / "release.json").exists()]


def short_histories(infos: Iterable[ReleaseInfo], *, kept: int) -> str | None:
    """What to warn of where releases read more events than the `kept` ones that a stored history holds; None where
    they do not."""
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


def _packed(record: Mapping[str, Any]) -> dict[str, str] | None:
    """Raises KeyError, TypeError."""
    packed = record.get("packed")
    return None if packed is None else {key: str(packed[key]) for key in ("layout", "of")}


def _aligned(record: Mapping[str, Any]) -> dict[str, Any] | None:
    """Raises KeyError, TypeError, UsageError."""
    aligned = record.get("aligned")
    if aligned is None:
        return None
    names = {key: check_release_name(aligned[key]) for key in ("of", "to", "space")}
    return names | {"report": dict(aligned["report"])}


def _ended(record: Mapping[str, Any]) -> TrainingEnd | None:
    """Raises KeyError, TypeError."""
    ended = record.get("ended")
    return None if ended is None else TrainingEnd.from_json(ended)


def _record(info: ReleaseInfo) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "name": info.name,
        "dimension": info.dimension,
        "max_events": info.max_events,
        "trained_through_ms": info.trained_through_ms,
        "hash_version": info.hash_version,
        "row_hash_version": ROW_HASH_VERSION,
        "created_at": info.created_at,
        "data_fingerprint": info.data_fingerprint,
        "model": info.model.to_json(),
        "split": info.split,
        **({} if info.packed is None else {"packed": dict(info.packed)}),
        **({} if info.aligned is None else {"aligned": dict(info.aligned)}),
        **({} if info.ended is None else {"ended": asdict(info.ended)}),
    }


def _check_hash_versions(path: Path, record: Mapping[str, Any]) -> None:
    for key, readable in (("hash_version", READABLE_HASH_VERSIONS), ("row_hash_version", (ROW_HASH_VERSION,))):
        if record[key] not in readable:
            raise DataError(
                f"`{path}` has {key} {record[key]}, this Spoor reads {' and '.join(map(str, readable))}: "
                "its items would be mistaken",
                hint="use the version of Spoor that wrote it, or train the release again",
            )


def checksums(folder: Path) -> dict[str, str]:
    """SHA-256 by file. Raises DataError if they are not those of a release."""
    try:
        found = json.loads(_read(folder / "checksums.json"))
    except (ValueError, RecursionError):
        found = None
    needed = {"release.json", "model.safetensors", "vocabulary.safetensors", "items.parquet", "metrics.json"}
    if not isinstance(found, dict) or not needed <= found.keys():
        raise DataError(f"`{folder / 'checksums.json'}` does not list the files of a release", hint=_TRAIN_AGAIN)
    return found


def _read(path: Path) -> bytes:
    try:
        return read_at_most(path, _JSON_BYTES) if path.suffix == ".json" else path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"file `{path}` is missing", hint=_TRAIN_AGAIN) from None
    except ValueError as error:
        raise DataError(str(error), hint=_TRAIN_AGAIN) from None
    except OSError as error:
        raise InfrastructureError(
            f"cannot read `{path}`: {error.strerror or error}", hint="check the disk and the permissions"
        ) from None


def _items_parquet(vocabulary: Vocabulary) -> bytes:
    table = pa.table({"item_id": pa.array(vocabulary.item_ids, pa.string()), "hash": vocabulary.items})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue().to_pybytes()


def json_bytes(record: Mapping[str, Any]) -> bytes:
    return (json.dumps(record, indent=2, sort_keys=True) + "\n").encode()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
