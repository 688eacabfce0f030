"""Builds a release with packed item tables from one with float tables, and reports on a release's tables.

    release NAME -> its tables, packed slice by slice -> release NEW, the same without the weights before the refit

Memory does not grow with the tables: slices are read from a mapped file and written one at a time.

Legend: R rows of all tables together, T tables, W floats of a row.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors import numpy as safetensors_numpy
from torch import Tensor

from spoor.activity.hashing import hash_items
from spoor.base.errors import DataError, UsageError
from spoor.base.release_names import check_release_name
from spoor.encoder.model.hashing import UNKNOWN
from spoor.encoder.release.folder import (
    BEFORE_REFIT_FILE,
    check_free,
    checksums,
    does_not_match,
    load_release,
    new_folder,
    training_record,
    verified_files,
    write_files,
)
from spoor.encoder.release.inference import item_rows
from spoor.encoder.release.info import ReleaseInfo, read_info
from spoor.encoder.release.packed_tables import (
    CHECKSUMS_FILE,
    RECORD_FILE,
    TableRecord,
    open_packed,
    write_packed,
)
from spoor.kernels.hashed_gather import Layout, row_bytes

_WEIGHTS, _TABLE = "model.safetensors", "items.weight"
_DESCRIBED_ANEW = {_WEIGHTS, "release.json", "MODEL_CARD.md", BEFORE_REFIT_FILE}
_SLICE_BYTES = 64 << 20


@dataclass(frozen=True)
class PackPlan:
    """The planned packing. `bytes_by_layout`: bytes of one row, in every layout that can hold it."""

    source: ReleaseInfo
    out: Path
    layout: Layout
    rows: int
    tables: int
    width: int
    bytes_by_layout: dict[str, int]

    @property
    def bytes(self) -> int:
        return self.rows * self.bytes_by_layout[self.layout]

    def text(self) -> str:
        sizes = ", ".join(f"{layout} {size}" for layout, size in self.bytes_by_layout.items())
        return (
            f"{self.tables} tables, {self.rows:,} rows of {self.width} floats (float32 {4 * self.width} bytes each; "
            f"{sizes}) -> {self.out}: {self.layout}, {self.bytes:,} bytes"
        )


def plan_packing(source: Path, *, out: Path, layout: Layout, overwrite: bool = False) -> PackPlan:
    """Raises UsageError for a source that is packed or is `out`, a bad name, an existing release or a width that the
    layout cannot hold; DataError for a damaged source."""
    check_release_name(out.name)
    check_free(out, overwrite=overwrite)
    info = read_info(source)
    if info.packed is not None:
        raise UsageError(
            f"the tables of release `{info.name}` are packed already", hint=f"pack `{info.packed['of']}` instead"
        )
    if out.resolve() == source.resolve():
        raise UsageError("a packed release cannot take the place of its source", hint="give it a name of its own")
    with _float_tables(info) as file:
        shape = file.get_slice(_TABLE).get_shape() if _TABLE in file.keys() else []  # noqa: SIM118
    if len(shape) != 2 or shape[1] != info.model.table_width:
        raise DataError(
            f"release `{info.name}`: {_TABLE} has the shape {shape}, expected rows of {info.model.table_width} floats",
            hint="restore the folder from a copy, or train the release again",
        )
    rows, width = shape
    sizes = {known: row_bytes(width, known) for known in get_args(Layout) if known != "int4" or width % 2 == 0}
    if layout not in sizes:
        raise UsageError(f"rows of {width} floats cannot be packed as {layout}", hint=f"layouts: {', '.join(sizes)}")
    return PackPlan(info, out, layout, rows, info.model.hash_functions, width, sizes)


def pack_release(
    plan: PackPlan, *, progress: Callable[[int], None] = lambda rows: None
) -> tuple[ReleaseInfo, TableRecord]:
    """Writes the release atomically. `progress` is called with the number of rows done. Raises DataError for a damaged
    source or a number that the layout cannot hold, InfrastructureError if the folder cannot be written."""
    source = plan.source
    if _digest(source.folder / _WEIGHTS) != checksums(source.folder)[_WEIGHTS]:
        raise does_not_match(source, _WEIGHTS)
    loaded_metrics, training = training_record(source)
    info = replace(
        source,
        name=plan.out.name,
        folder=plan.out,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        packed={"layout": plan.layout, "of": source.name},
        retired=False,
    )
    files = verified_files(source, without=_DESCRIBED_ANEW)
    with new_folder(plan.out) as folder, _float_tables(source) as weights:
        record = write_packed(
            folder, _slices(weights, plan, progress), rows=plan.rows, tables=plan.tables, width=plan.width,
            layout=plan.layout,
        )  # fmt: skip
        others = {name: weights.get_tensor(name) for name in weights.keys() if name != _TABLE}  # noqa: SIM118
        files[_WEIGHTS] = safetensors_numpy.save(others)
        files |= {name: (folder / name).read_bytes() for name in (CHECKSUMS_FILE, RECORD_FILE)}
        write_files(folder, info, files, metrics=loaded_metrics, training=training)
    return info, record


@dataclass(frozen=True)
class TableReport:
    """How the release's known items use one of its tables."""

    table: int
    rows: int
    fill: float  # share of rows used by known items
    colliding: float  # share of known items that share their row with another
    error: float | None  # relative L2 error of packing; None for float tables


@dataclass(frozen=True)
class TablesReport:
    """`confused`: share of known items that share their rows of all tables, and so their embedding, with another item;
    `unseen`: share of the given events whose item is unknown to the release, None without events."""

    release: str
    layout: str
    items: int
    row_bytes: int
    confused: float
    unseen: float | None
    tables: list[TableReport]


def report_tables(folder: Path, *, event_items: Sequence[str] | None = None) -> TablesReport:
    """`event_items`: raw item ids of events. Raises as `load_release` and, for packed tables, as PackedTables."""
    release = load_release(folder)
    info = release.info
    packed = None if info.packed is None else open_packed(info, known_items=len(release.vocabulary.items)).record
    rows_VT = item_rows(info.model, release.vocabulary)[1:]
    rows = info.model.rows_for(len(rows_VT))
    reports = []
    for table, used in enumerate(rows_VT.T):
        distinct, times = np.unique(used, return_counts=True)
        error = None if packed is None else packed.errors[table]
        reports.append(TableReport(table, rows, len(distinct) / rows, _shared(times), error))
    _, times = np.unique(rows_VT, axis=0, return_counts=True)
    size = 4 * info.model.table_width if packed is None else packed.row_bytes
    layout = "float32" if packed is None else packed.layout
    unseen = None
    if event_items:
        unseen = float((release.vocabulary.item_indexes(hash_items(event_items)) == UNKNOWN).mean())
    return TablesReport(info.name, layout, len(rows_VT), size, _shared(times), unseen, reports)


def _shared(times: np.ndarray) -> float:
    """Share of items that share their row. `times`: number of items of each row."""
    return float(times[times > 1].sum() / max(times.sum(), 1))


def _float_tables(info: ReleaseInfo) -> safe_open:
    try:
        return safe_open(info.folder / _WEIGHTS, framework="numpy")
    except (SafetensorError, OSError) as error:
        raise DataError(
            f"release `{info.name}`: {_WEIGHTS} cannot be read: {error}", hint="restore the folder from a copy"
        ) from None


def _slices(weights: safe_open, plan: PackPlan, progress: Callable[[int], None]) -> Iterator[Tensor]:
    table, step = weights.get_slice(_TABLE), max(_SLICE_BYTES // (4 * plan.width), 1)
    for start in range(0, plan.rows, step):
        part = table[start : min(start + step, plan.rows)]
        yield torch.from_numpy(np.asarray(part, np.float32))
        progress(start + len(part))


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"`{path}` cannot be read: {error}", hint="restore the folder from a copy") from None
