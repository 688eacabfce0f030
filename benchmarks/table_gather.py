"""How fast are rows of packed tables of the paper's size gathered from a mapped file, and how much memory do they take?

    python -m benchmarks.table_gather --folder FOLDER [--rows 640000000] [--touched 500000] --json [--keep]

`--folder` holds the tables and is where they are built first, if they are not there: 8 tables x 80,000,000 rows x 32
floats as int4, 12.8 GB really written, filled with normal rows. One process maps them. `--touched` distinct rows drawn
over the whole file are gathered cold (first touch: the page and the check of its chunk), then again and again in random
batches of items with 8 rows each; the peer is an fp32 nn.EmbeddingBag in memory of just as many rows, asked for the
same batches, one row a bag. `ratio` is our warm rows a second over its, best of the rounds on both sides; gathered rows
are compared with reference ones in the same run.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.rows import circumstances, finish, own_mb
from encoder.packed_tables import RECORD_FILE, ROWS_FILE, PackedTables, write_packed
from kernels.hashed_gather.reference import reference_hashed_gather

RESULTS = Path(__file__).parent / "results" / "table_gather.jsonl"
TABLES, ROWS, WIDTH = 8, 640_000_000, 32
GOAL = 0.8
_BATCH_ITEMS = 4096
_PART_ROWS = 1 << 20


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


def measure(folder: Path, *, touched: int, rounds: int, seconds: float) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    before = round(own_mb("VmRSS"))
    tables = PackedTables(folder)
    record, opened = tables.record, round(own_mb("VmRSS"))
    distinct = np.unique(rng.integers(0, record.rows, 2 * touched))
    distinct = rng.permutation(distinct)[: touched // TABLES * TABLES]
    batches = [
        torch.from_numpy(batch) for batch in np.array_split(distinct.reshape(-1, TABLES), len(distinct) // _BATCH_ITEMS)
    ]
    started = time.perf_counter()
    for batch in batches:
        tables.gather(batch)
    cold = len(distinct) / (time.perf_counter() - started)
    after = round(own_mb("VmRSS"))

    bag = torch.nn.EmbeddingBag(len(distinct), WIDTH, mode="sum", dtype=torch.float32)
    places = rng.permutation(len(distinct))[: len(distinct) // TABLES * TABLES]
    starts = range(0, len(places) // TABLES, _BATCH_ITEMS)
    theirs = [torch.from_numpy(places.reshape(-1, TABLES)[start : start + _BATCH_ITEMS]) for start in starts]
    ours = [torch.from_numpy(distinct[batch.numpy()]) for batch in theirs]
    with torch.inference_mode():
        rates = {
            "mapped int4": lambda: _rate(tables.gather, ours, seconds),
            "EmbeddingBag fp32": lambda: _rate(lambda rows: bag(rows.reshape(-1, 1)), theirs, seconds),
        }
        found: dict[str, list[float]] = {name: [] for name in rates}
        for turn in range(rounds):
            for name, rate in rates.items():
                found[name].append(rate())
            print(f"round {turn + 1}: " + ", ".join(f"{n} {r[-1]:,.0f}/s" for n, r in found.items()), file=sys.stderr)
    best = {name: max(values) for name, values in found.items()}
    sample = ours[0][:512]
    packed = np.memmap(folder / ROWS_FILE, np.uint8, mode="r").reshape(record.rows, record.row_bytes)
    rows = torch.from_numpy(packed[sample.numpy().ravel()].copy())
    own = torch.arange(len(rows)).view(sample.shape)
    expected = reference_hashed_gather(rows, own, width=WIDTH, layout=record.layout)
    difference = float((tables.gather(sample) - expected).abs().max())
    return {
        "benchmark": "table_gather",
        "ratio": round(best["mapped int4"] / best["EmbeddingBag fp32"], 3),
        "goal": GOAL,
        "rows_per_second": {name: [round(value) for value in values] for name, values in found.items()},
        "cold_rows_per_second": round(cold),
        "resident_mb": {"before": before, "opened": opened, "after all rows were touched": after},
        "difference": difference,
        "parameters": record.rows * record.width,
        "file_bytes": (folder / ROWS_FILE).stat().st_size,
        "allocated_bytes": (folder / ROWS_FILE).stat().st_blocks * 512,
        "errors": [round(error, 5) for error in record.errors],
        "distinct_rows": len(distinct),
        "threads": torch.get_num_threads(),
    } | circumstances()


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
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--keep", action="store_true", help=f"append the object to {RESULTS.name}")
    options = parser.parse_args()
    built = {} if (options.folder / RECORD_FILE).exists() else build(options.folder, rows=options.rows)
    found = measure(options.folder, touched=options.touched, rounds=options.rounds, seconds=options.seconds) | built
    finish(found, options, RESULTS, module="benchmarks.table_gather")


if __name__ == "__main__":
    main()
