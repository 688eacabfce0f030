"""Release folders: a frozen model with everything needed to use it, and no executable code.

    releases/NAME/  release.json            what it is: dimension, trained-through time, versions, model shape
                    model.safetensors       weights
                    vocabulary.safetensors  hashes of the items, actions and surfaces it knows
                    items.parquet           raw item ids beside their hashes
                    metrics.json, curve.png, MODEL_CARD.md
                    checksums.json          SHA-256 of every file above
                    tables.*                packed item tables (packed_tables.py), if packed
                    alignment.*             map into another release's space (alignment.py), written later, with its
                                            own checksum

The folder appears whole, by one rename. Only `spoor release retire` changes a file afterwards: it adds `retired` to
release.json, which the checksum ignores. This module does not import torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import SafetensorError
from safetensors import numpy as safetensors_numpy

from spoor.activity.hashing import HASH_VERSION, hash_items
from spoor.base.errors import DataError, InfrastructureError, UsageError
from spoor.base.files import atomic_write, replace_folder, restore_folder, unfinished_folder
from spoor.base.release_names import check_release_name
from spoor.encoder.model.config import ModelConfig
from spoor.encoder.model.vocabulary import Vocabulary
from spoor.encoder.release.info import FORMAT, TRAIN_AGAIN, ReleaseInfo, read_file, read_info
from spoor.encoder.release.model_card import model_card
from spoor.encoder.release.training_end import TrainingEnd

BEFORE_REFIT_FILE = (
    "before_refit.safetensors"  # weights of the best epoch, kept if there are test events to evaluate them on
)
Weights = Mapping[str, npt.NDArray[np.generic]]
_ADDED = {"checksums.json", "alignment.json", "alignment.safetensors", "tables.bin", "tables.crc", "tables.json"}
_NAMED = 3  # foreign files that an error names


@dataclass(frozen=True, eq=False)
class Release:
    """A verified release. `weights`: the model's parameters by name, without packed item tables."""

    info: ReleaseInfo
    vocabulary: Vocabulary
    weights: dict[str, npt.NDArray[np.generic]]
    metrics: dict[str, Any]

    def trainable_weights(self) -> Weights:
        """All parameters. Raises UsageError if the item tables are packed."""
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
    """Writes the release of the folder's name atomically. A release that it replaces stays in place until then.

    `training` (settings and circumstances) goes into release.json and the model card; `split`: `Split.record` of
    encoder/data/split.py, for `check_split`; `more_files`: further files by name, with checksums like the others.
    Raises UsageError for a bad name or an existing release (unless `overwrite`), InfrastructureError if the folder
    cannot be written.
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
    """Writes `files`, release.json, the model card and the checksums to an unfinished folder. Raises OSError."""
    record = info.to_json()
    whole = dict(files) | {
        "MODEL_CARD.md": model_card(record, metrics=metrics, training=training).encode(),
        "release.json": json_bytes(record | {"training": dict(training)}),
    }
    whole["checksums.json"] = json_bytes({name: _sha256(data) for name, data in whole.items()})
    for name, data in whole.items():
        (folder / name).write_bytes(data)


def load_release(folder: Path) -> Release:
    """Reads a release and verifies every file against its checksum.

    Raises UsageError if there is no such folder, DataError if it is damaged, no release or of another hash version.
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
        raise DataError(f"release `{info.name}` cannot be read: {error}", hint=TRAIN_AGAIN) from None
    if not np.array_equal(hash_items(vocabulary.item_ids), vocabulary.items):
        raise DataError(f"release `{info.name}`: item ids and hashes do not fit together", hint=TRAIN_AGAIN)
    return Release(info, vocabulary, weights, metrics)


def verified_files(info: ReleaseInfo, *, without: Collection[str] = ()) -> dict[str, bytes]:
    """All files with a checksum, but those of `without`. Raises DataError if one does not match its checksum."""
    files = {}
    for name, expected in checksums(info.folder).items():
        if name not in without:
            files[name] = read_file(info.folder / name)
            if _sha256(_unmarked(files[name]) if name == "release.json" else files[name]) != expected:
                raise does_not_match(info, name)
    return files


def training_record(info: ReleaseInfo) -> tuple[dict[str, Any], dict[str, Any]]:
    """A release's metrics, and the settings and circumstances of its training. Raises as `verified_files`."""
    files = verified_files(info, without=checksums(info.folder).keys() - {"metrics.json", "release.json"})
    return json.loads(files["metrics.json"]), json.loads(files["release.json"])["training"]


def known_items(info: ReleaseInfo) -> list[str]:
    """Raw ids of the items that a release knows; reads no weights. Raises DataError for a damaged file."""
    files = verified_files(info, without=checksums(info.folder).keys() - {"items.parquet"})
    try:
        return pq.read_table(pa.BufferReader(files["items.parquet"]))["item_id"].to_pylist()
    except (KeyError, pa.ArrowException) as error:
        raise DataError(f"release `{info.name}`: items.parquet cannot be read: {error}", hint=TRAIN_AGAIN) from None


def does_not_match(info: ReleaseInfo, name: str) -> DataError:
    return DataError(f"release `{info.name}`: file {name} does not match its checksum", hint=TRAIN_AGAIN)


def mark_retired(folder: Path) -> ReleaseInfo:
    """Adds `retired` to release.json atomically; idempotent. Raises as `read_info`, and InfrastructureError if the
    folder cannot be written."""
    info = read_info(folder)
    if not info.retired:
        record = json.loads(read_file(folder / "release.json"))
        atomic_write(folder / "release.json", json_bytes(record | {"retired": True}))
    return replace(info, retired=True)


def _unmarked(data: bytes) -> bytes:
    """release.json without its `retired` mark; other bytes unchanged."""
    try:
        record = json.loads(data)
    except ValueError:
        return data
    if not isinstance(record, dict) or record.pop("retired", None) is not True:
        return data
    return json_bytes(record)


def kept_file(folder: Path, name: str) -> bytes | None:
    """An optional file of a release, None if it is missing. Raises InfrastructureError if it cannot be read."""
    path = folder / name
    return read_file(path) if path.exists() else None


def checksums(folder: Path) -> dict[str, str]:
    """SHA-256 by file name. Raises DataError if checksums.json does not list the files of a release."""
    try:
        found = json.loads(read_file(folder / "checksums.json"))
    except (ValueError, RecursionError):
        found = None
    needed = {"release.json", "model.safetensors", "vocabulary.safetensors", "items.parquet", "metrics.json"}
    if not isinstance(found, dict) or not needed <= found.keys():
        raise DataError(f"`{folder / 'checksums.json'}` does not list the files of a release", hint=TRAIN_AGAIN)
    return found


def check_free(folder: Path, *, overwrite: bool, option: str = "--overwrite") -> None:
    """Raises UsageError unless `folder` is free, or `overwrite` is set and it holds only a release of the same name.
    `option`: the caller's option to overwrite, for the hint; empty = none."""
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
    """Yields an unfinished folder that replaces `folder` at the end, and is removed on any error. Raises
    InfrastructureError if it cannot be written."""
    with unfinished_folder(folder) as temporary:
        yield temporary
        replace_folder(folder, temporary)


def _release_name(folder: Path) -> str | None:
    """The name in release.json, of any format version; None if there is none."""
    record = _json(folder / "release.json")
    return str(record["name"]) if record.get("format") == FORMAT and "name" in record else None


def _release_files(folder: Path) -> set[str]:
    return _ADDED | set(_json(folder / "checksums.json"))


def _json(path: Path) -> dict[str, Any]:
    """The JSON object in the file; empty if there is none."""
    with suppress(DataError, InfrastructureError, ValueError, RecursionError):
        record = json.loads(read_file(path))
        if isinstance(record, dict):
            return record
    return {}


def _free_beside(folder: Path) -> Path:
    """A free path, inside `folder` if it holds releases (the user may have meant that), else beside it."""
    inside = folder.is_dir() and any(folder.glob("[!.]*/release.json"))
    stem = folder / "base" if inside else folder
    numbered = (stem.with_name(f"{stem.name}-{number}") for number in range(1, 1_000_000))
    return next(path for path in numbered if not path.exists())


def _items_parquet(vocabulary: Vocabulary) -> bytes:
    table = pa.table({"item_id": pa.array(vocabulary.item_ids, pa.string()), "hash": vocabulary.items})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue().to_pybytes()


def json_bytes(record: Mapping[str, Any]) -> bytes:
    return (json.dumps(record, indent=2, sort_keys=True) + "\n").encode()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
