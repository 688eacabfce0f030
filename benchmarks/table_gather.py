"""How fast are rows of packed tables of the paper's size gathered from a mapped file, and how much memory do they take?

    python -m benchmarks.table_gather --folder FOLDER [--rows 640000000] [--touched 500000] --json [--keep]

`--folder` holds the tables and is where they are built first, if they are not there: 8 tables x 80,000,000 rows x 32
floats as int4, 12.8 GB really written, filled with normal rows. One process maps them. `--touched` distinct rows drawn
over the whole file are gathered cold (first touch: the page and the check of its chunk), then again and again in random
batches of items with 8 rows each; gathered rows are compared with reference ones in the same run.

The peer is an fp32 nn.EmbeddingBag in memory, one row a bag, of which just as many distinct rows are asked for in just
such batches. No memory holds 82 GB, so there are two: `in memory` has as many rows as this machine can be asked to hold
(--peer-rows, 8.2 GB) and its rows, too, lie anywhere; `in memory, compact` has no other rows than those asked for, as a
real table never has. `ratio` is our warm rows a second over the first's, `ratio_compact` over the second's, best of the
rounds on all sides. All use --threads; PyTorch's operator on packed rows knows only one.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from benchmarks.shared.rows import circumstances, finish, own_mb
from spoor.encoder.release.packed_tables import RECORD_FILE, ROWS_FILE, PackedTables, write_packed
from spoor.kernels.hashed_gather.reference import reference_hashed_gather

RESULTS = Path(__file__).parent / "results" / "table_gather.jsonl"
TABLES, ROWS, WIDTH = 8, 640_000_000, 32
GOAL = 0.8
OURS = "mapped int4"
_BATCH_ITEMS = 4096
_PART_ROWS = 1 << 20
Indexes = npt.NDArray[np.int64]


def build(folder: Path, *, rows: int) -> dict[str, float]:
    """Writes normal rows; returns how long it took."""
    generator, started = torch.Generator().manual_seed(0), time.perf_counter()

    def parts() -> Iterator[Tensor]:
        for first in range(0, rows, _PART_ROWS):
            if first % (_PART_ROWS * 64) == 0:
                print(f"building: {first:,} of {rows:,} rows", file=sys.stderr)
            yield torch.randn(min(_PART_ROWS, rows - first), WIDTH, generator=generator)

    folder.mkdir(parents=True, exist_ok=True)
    write_packed(folder, parts(), rows=rows, tables=TABLES, width=WIDTH, layout="int4")
    return {"build_seconds": round(time.perf_counter() - started, 1)}


def measure(folder: Path, *, touched: int, peer_rows: int, rounds: int, seconds: float) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    resident = {"before": _resident()}
    tables = PackedTables(folder)
    record = tables.record
    resident["opened"] = _resident()
    distinct = _distinct(rng, touched, of=record.rows)
    done, gathering = 0, 0.0
    for share in (0.01, 0.1, 1.0):
        until = int(len(distinct) * share) // TABLES * TABLES
        for part in np.split(distinct[done:until], range(_BATCH_ITEMS * TABLES, until - done, _BATCH_ITEMS * TABLES)):
            started = time.perf_counter()
            tables.gather(torch.from_numpy(part.reshape(-1, TABLES)))
            gathering += time.perf_counter() - started
        resident[f"{until:,} rows touched"], done = _resident(), until
    cold = len(distinct) / gathering

    bags = {"in memory": peer_rows, "in memory, compact": len(distinct)}
    asked = {OURS: _batches(rng, distinct)}
    gathers: dict[str, Callable[[Tensor], Tensor]] = {OURS: tables.gather}
    for name, rows in bags.items():
        weight = torch.empty(rows, WIDTH).normal_(generator=torch.Generator().manual_seed(0))
        bag = torch.nn.EmbeddingBag(rows, WIDTH, mode="sum", _weight=weight)
        gathers[name] = lambda rows, bag=bag: bag(rows.view(-1, 1))
        asked[name] = _batches(rng, _distinct(rng, len(distinct), of=rows))
    found: dict[str, list[float]] = {name: [] for name in gathers}
    with torch.inference_mode():
        for turn in range(rounds):
            for name, gather in gathers.items():
                found[name].append(_rate(gather, asked[name], seconds))
            print(f"round {turn + 1}: " + ", ".join(f"{n} {r[-1]:,.0f}/s" for n, r in found.items()), file=sys.stderr)
    best = {name: max(values) for name, values in found.items()}
    return {
        "benchmark": "table_gather",
        "ratio": round(best[OURS] / best["in memory"], 3),
        "goal": GOAL,
        "ratio_compact": round(best[OURS] / best["in memory, compact"], 3),
        "rows_per_second": {name: [round(value) for value in values] for name, values in found.items()},
        "cold_rows_per_second": round(cold),
        "resident_mb": resident,
        "difference": _difference(tables, folder, asked[OURS][0][:512]),
        "parameters": record.rows * record.width,
        "file_bytes": (folder / ROWS_FILE).stat().st_size,
        "allocated_bytes": (folder / ROWS_FILE).stat().st_blocks * 512,
        "errors": [round(error, 5) for error in record.errors],
        "distinct_rows": len(distinct),
        "peer_rows": bags,
        "threads": torch.get_num_threads(),
    } | circumstances()


def _distinct(rng: np.random.Generator, count: int, *, of: int) -> Indexes:
    """About `count` different rows, in random order: a whole number of items."""
    rows = rng.permutation(np.unique(rng.integers(0, of, 2 * count)) if of > count else np.arange(of))
    return rows[: min(count, len(rows)) // TABLES * TABLES]


def _batches(rng: np.random.Generator, distinct: Indexes) -> list[Tensor]:
    """int64 [items, TABLES]: all rows once, in another order."""
    items = torch.from_numpy(rng.permutation(distinct).reshape(-1, TABLES))
    return list(items.split(_BATCH_ITEMS))


def _resident() -> dict[str, int]:
    """Megabytes: of all, and without pages of files, which the system may take back at any time."""
    return {"all": round(own_mb("VmRSS")), "private": round(own_mb("RssAnon"))}


def _difference(tables: PackedTables, folder: Path, sample: Tensor) -> float:
    """The largest, between what is gathered and what the reference makes of the file's bytes."""
    record = tables.record
    packed = np.memmap(folder / ROWS_FILE, np.uint8, mode="r").reshape(record.rows, record.row_bytes)
    rows = torch.from_numpy(packed[sample.numpy().ravel()].copy())
    own = torch.arange(len(rows)).view(sample.shape)
    expected = reference_hashed_gather(rows, own, width=WIDTH, layout=record.layout)
    return float((tables.gather(sample) - expected).abs().max())


def _rate(gather: Callable[[Tensor], Tensor], batches: list[Tensor], seconds: float) -> float:
    """Rows a second."""
    started, rows = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        for batch in batches:
            gather(batch)
            rows += batch.numel()
    return rows / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="20 bytes a row; kept, and used again")
    parser.add_argument("--rows", type=int, default=ROWS, help="of all tables together")
    parser.add_argument("--touched", type=int, default=500_000, help="distinct rows")
    parser.add_argument("--peer-rows", type=int, default=64_000_000, help="of the peer in memory; 128 bytes each")
    parser.add_argument("--threads", type=int, default=1, help="of all sides")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--keep", action="store_true", help=f"append the object to {RESULTS.name}")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    built = {} if (options.folder / RECORD_FILE).exists() else build(options.folder, rows=options.rows)
    found = measure(
        options.folder,
        touched=options.touched,
        peer_rows=options.peer_rows,
        rounds=options.rounds,
        seconds=options.seconds,
    )
    finish(found | built, options, RESULTS, module="benchmarks.table_gather")


if __name__ == "__main__":
    main()
