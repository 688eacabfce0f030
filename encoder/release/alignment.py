"""Compares two releases: the overlap of their neighbours, and the rotation that maps one's vectors to the other's.

    releases/NEW/alignment.safetensors   `map` float32[d, d]: the rotation (or reflection) that brings new vectors @ map
                                         nearest to the old vectors
                 alignment.json          the report, the release that it aligns to, SHA-256 of the map and both models

The map is orthogonal Procrustes (Schönemann 1966): U Vᵀ of the singular value decomposition of Xᵀ Y. It is fitted on
one half of the probe vectors, users and items together, because both are in one space; its figures are of the other
half. Neighbours are by cosine, within the probe.

Legend: N probe vectors, d floats of a vector (D), U users.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors import numpy as safetensors_numpy

from spoor.activity.history import Histories
from spoor.base.errors import DataError, UsageError
from spoor.base.files import atomic_write
from spoor.base.release_names import check_release_name
from spoor.encoder.release.folder import checksums, json_bytes, kept_file
from spoor.encoder.release.inference import FrozenEncoder

MAP_FILE, RECORD_FILE = "alignment.safetensors", "alignment.json"
_MODEL = "model.safetensors"
_ROWS = 500  # rows of cosines in memory at a time
_TRY_AGAIN = "run `spoor release compare OLD NEW` again"
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Overlap:
    """Mean share of a vector's `neighbours` nearest in one release that are among its nearest in the other."""

    vectors: int
    neighbours: int
    share: float  # 0 to 1
    by_chance: float  # expected share of two unrelated releases


@dataclass(frozen=True)
class Fit:
    """Figures of vectors that the map was not fitted on."""

    vectors: int
    residual: float  # |new @ map - old| / |old|, Frobenius norms; 0 = equal, 1.41 = unrelated
    cosine_before: float  # mean cosine of a new vector and the old one
    cosine_after: float  # mean cosine of the mapped new vector and the old one


@dataclass(frozen=True)
class Compatibility:
    """A figure is None if there are too few vectors, or no map because the dimensions differ."""

    old: str
    new: str
    users: Overlap | None
    items: Overlap | None
    user_fit: Fit | None
    item_fit: Fit | None


@dataclass(frozen=True, eq=False)
class Alignment:
    map: Floats
    to: str  # the release into whose space the map leads
    report: Mapping[str, Any]  # Compatibility as JSON


def compare(
    old: FrozenEncoder, new: FrozenEncoder, histories: Histories, *, items: int, neighbours: int
) -> tuple[Compatibility, Floats | None]:
    """Compares two releases on the histories and on at most `items` items that both know; the map of new to old is None
    if the dimensions differ. Each of the `histories` needs at least one event."""
    users = (old.encode(histories)[0], new.encode(histories)[0])
    known = np.intersect1d(old.item_hashes, new.item_hashes)[:items]  # by hash, so a random sample
    shared = (old.item_vectors(known), new.item_vectors(known))
    map_DD = None
    if old.dimension == new.dimension:
        fitted = [np.concatenate([users[side][::2], shared[side][::2]]) for side in (1, 0)]
        map_DD = orthogonal_map(*fitted)
    report = Compatibility(
        old=old.release,
        new=new.release,
        users=neighbour_overlap(*users, neighbours=neighbours),
        items=neighbour_overlap(*shared, neighbours=neighbours),
        user_fit=_fit(*users, map_DD),
        item_fit=_fit(*shared, map_DD),
    )
    return report, map_DD


def orthogonal_map(source_ND: Floats, target_ND: Floats) -> Floats:
    """The orthogonal float32[d, d] that brings `source @ map` nearest to `target` (least squares)."""
    left, _, right = np.linalg.svd(source_ND.T.astype(np.float64) @ target_ND.astype(np.float64))
    return (left @ right).astype(np.float32)


def neighbour_overlap(one_ND: Floats, other_ND: Floats, *, neighbours: int) -> Overlap | None:
    """Row i of both is the same user or item, in two releases; dimensions may differ. Returns None for too few rows."""
    count = len(one_ND)
    if count < neighbours + 1:
        return None
    common = 0
    for start in range(0, count, _ROWS):
        rows = np.arange(start, min(start + _ROWS, count))
        nearest = _nearest(one_ND, rows, neighbours), _nearest(other_ND, rows, neighbours)
        common += sum(len(np.intersect1d(a, b, assume_unique=True)) for a, b in zip(*nearest, strict=True))
    return Overlap(count, neighbours, common / (count * neighbours), neighbours / (count - 1))


def save_alignment(folder: Path, old_folder: Path, map_DD: Floats, report: Compatibility) -> None:
    """Writes the map beside the new release's files; checksums.json does not list it. Raises InfrastructureError."""
    data = safetensors_numpy.save({"map": np.asarray(map_DD, np.float32, order="C")})
    record = {
        "to": report.old,
        "sha256": hashlib.sha256(data).hexdigest(),
        "models": {"new": checksums(folder)[_MODEL], "old": checksums(old_folder)[_MODEL]},
        "report": asdict(report),
    }
    atomic_write(folder / MAP_FILE, data)
    atomic_write(folder / RECORD_FILE, json_bytes(record))  # last: a map without its record is refused


def load_alignment(folder: Path) -> Alignment | None:
    """The release's map, None if it has none. Raises DataError for a damaged map, and for one of another model with the
    name of either release."""
    data = kept_file(folder, RECORD_FILE)
    if data is None:
        return None
    try:
        record = json.loads(data)
        to, models = check_release_name(record["to"]), record["models"]
        found = kept_file(folder, MAP_FILE)
        if found is None or hashlib.sha256(found).hexdigest() != record["sha256"]:
            raise DataError(f"`{folder / MAP_FILE}` does not match its checksum", hint=_TRY_AGAIN)
        alignment = Alignment(safetensors_numpy.load(found)["map"], to, record["report"])
        now = {"new": checksums(folder)[_MODEL]}
        if (folder.parent / to).exists():
            now["old"] = checksums(folder.parent / to)[_MODEL]
        changed = [name for name, digest in now.items() if models[name] != digest]
    except (KeyError, TypeError, ValueError, UsageError, SafetensorError) as error:
        raise DataError(f"`{folder / RECORD_FILE}` does not describe a map: {error!r}", hint=_TRY_AGAIN) from None
    if changed:
        name = {"new": folder.name, "old": to}[changed[0]]
        raise DataError(
            f"the map of release `{folder.name}` was made for another model named `{name}`", hint=_TRY_AGAIN
        )
    return alignment


def _nearest(vectors_ND: Floats, rows: npt.NDArray[np.int64], neighbours: int) -> npt.NDArray[np.int64]:
    """int64[len(rows), k]: the vectors of largest cosine with each row, without itself; ties go to the first."""
    scores = vectors_ND[rows] @ vectors_ND.T
    scores[np.arange(len(rows)), rows] = -np.inf
    return np.argsort(-scores, axis=1, kind="stable")[:, :neighbours]


def _fit(old_ND: Floats, new_ND: Floats, map_DD: Floats | None) -> Fit | None:
    old, new = old_ND[1::2], new_ND[1::2]
    if map_DD is None or not len(old):
        return None
    mapped = new @ map_DD
    return Fit(
        vectors=len(old),
        residual=float(np.linalg.norm(mapped - old) / np.linalg.norm(old)),
        cosine_before=float((new * old).sum(1).mean()),
        cosine_after=float((mapped * old).sum(1).mean()),
    )
