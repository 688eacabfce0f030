"""How much faster are real histories encoded without padding than by right-padded blocks?

    python -m benchmarks.jagged_encode [--rounds 5] [--threads 2] --json [--keep]

Configuration `base` (2 layers, d = 64) with direct items, random weights, inference; histories are the newest events of
every user of ml1m_order (at most 200) and amazon_beauty (at most 50). Ours is what backfill and stream run (batches of
similar lengths by a token budget, jagged inside, the last block only at the last events). The peer has the same weights
and pads each batch on the right to its longest history (SDPA, causal), in random batches (`ratio`, the lower of the two
sets) and in batches of sorted lengths (`ratio_sorted`). It computes whole blocks, as such encoders do; a second peer
stops its last block at the last events, as ours does (`ratio_same_skip`, `ratio_sorted_same_skip`): what is left then
is padding and layout alone. Batch sizes of the peers are the best of those tried beforehand. Best of the rounds on all
sides; vectors are compared in the same run. Data are read from ../shared/data and never committed.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import torch
from torch import Tensor

from benchmarks.shared.naive import padded_block, padded_blocks, padded_last_block, with_direct_items
from benchmarks.shared.rows import circumstances, finish
from benchmarks.shared.timing import best_seconds, fastest
from spoor.encoder.model.config import MODEL_CONFIGS
from spoor.encoder.model.events import Events
from spoor.encoder.model.user_encoder import UserEncoder
from spoor.encoder.release.inference import batches_by_length

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
RESULTS = Path(__file__).parent / "results" / "jagged_encode.jsonl"
SETS = {"ml1m_order": 200, "amazon_beauty": 50}
GOALS = {"ratio": 1.5, "ratio_sorted": 1.0}
PEERS = {
    "ratio": {"by_length": False, "skip_last": False},
    "ratio_sorted": {"by_length": True, "skip_last": False},
    "ratio_same_skip": {"by_length": False, "skip_last": True},
    "ratio_sorted_same_skip": {"by_length": True, "skip_last": True},
}
TOKEN_BUDGET = 8_192  # FrozenEncoder's own
_SIZES = (16, 32, 64, 128, 256, 512, 1024)
Indexes = npt.NDArray[np.int64]


class Histories:
    """The newest events of every user of a set, as vocabulary indexes."""

    def __init__(self, name: str, *, length: int) -> None:
        events = pq.read_table(DATA / name / "events.parquet", columns=["user_id", "item_id"])
        users, items = (
            events[key].combine_chunks().dictionary_encode().indices.to_numpy() for key in events.schema.names
        )
        order = np.argsort(users, kind="stable")
        ends = np.cumsum(np.bincount(users))
        starts = np.maximum(ends - length, np.concatenate([[0], ends[:-1]]))
        self.lengths: Indexes = ends - starts
        self.offsets = np.concatenate([[0], np.cumsum(self.lengths)])
        kept = np.concatenate([order[start:end] for start, end in zip(starts, ends, strict=True)])
        self.items = torch.from_numpy(1 + items[kept].astype(np.int64))
        config = with_direct_items(MODEL_CONFIGS["base"], length=length)
        rows = torch.arange(int(self.items.max()) + 1)[:, None]
        self.model = UserEncoder(config, item_rows=rows, actions=1, surfaces=1).eval()
        self.model.initialise(0)

    def jagged(self) -> Tensor:
        vectors = torch.empty(len(self.lengths), self.model.config.dimension)
        for batch in batches_by_length(self.offsets, token_budget=TOKEN_BUDGET):
            items = self.items[batch.rows]
            one = torch.ones_like(items)
            found = self.model.last(Events(items, one, one, batch.offsets), lengths=batch.lengths)
            vectors[torch.from_numpy(batch.users)] = found
        return vectors

    def look(self, batch: int, *, by_length: bool, skip_last: bool) -> Tensor:
        return self.padded(batch=batch, by_length=by_length, skip_last=skip_last, users=2_048)

    def padded(self, *, batch: int, by_length: bool, skip_last: bool, users: int | None = None) -> Tensor:
        """`users`: only so many of them, drawn; for a look at batch sizes."""
        order = np.random.default_rng(0).permutation(len(self.lengths))[:users]
        if by_length:
            order = order[np.argsort(self.lengths[order], kind="stable")]
        vectors = torch.empty(len(self.lengths), self.model.config.dimension)
        for start in range(0, len(order), batch):
            some = order[start : start + batch]
            lengths = self.lengths[some, None]
            steps = np.arange(lengths.max())
            rows = torch.from_numpy(self.offsets[some, None] + np.minimum(steps, lengths - 1)).flatten()
            one, positions = torch.ones_like(rows), torch.arange(len(steps)).repeat(len(some))
            events = Events(self.items[rows], one, one, torch.arange(len(some) + 1) * len(steps))
            x_BLC = self.model.embed(events, positions).view(len(some), len(steps), -1)
            x_BLC, turn = padded_blocks(self.model, x_BLC, blocks=self.model.config.layers - 1)
            block, ends = self.model.every_block[-1], torch.from_numpy(lengths[:, 0])
            if skip_last:
                last = padded_last_block(block, x_BLC, turn, ends)
            else:
                last = padded_block(block, x_BLC, turn)[torch.arange(len(some)), ends - 1]
            vectors[torch.from_numpy(some)] = self.model.user_vectors(last)
        return vectors


def measure(*, rounds: int) -> dict[str, Any]:
    sets: dict[str, dict[str, Any]] = {}
    for label, length in SETS.items():
        histories = Histories(label, length=length)
        batches = {name: fastest(partial(histories.look, **how), _SIZES) for name, how in PEERS.items()}
        runs: dict[str, Callable[[], Tensor]] = {"jagged": histories.jagged} | {
            name: partial(histories.padded, batch=batches[name], **how) for name, how in PEERS.items()
        }
        seconds = best_seconds(runs, rounds=rounds)
        expected = histories.jagged()
        sets[label] = {
            **{name: round(seconds[name] / seconds["jagged"], 3) for name in PEERS},
            "events_per_second": {who: round(len(histories.items) / took) for who, took in seconds.items()},
            "batch_users": batches,
            "difference": max(float((run() - expected).abs().max()) for run in runs.values()),
            "users": len(histories.lengths),
            "events": len(histories.items),
        }
        print(f"{label}: {sets[label]}", file=sys.stderr)
    return {
        "benchmark": "jagged_encode",
        **{name: min(found[name] for found in sets.values()) for name in PEERS},
        "goals": GOALS,
        "sets": sets,
        "threads": torch.get_num_threads(),
        "rounds": rounds,
    } | circumstances()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, help="default: all cores")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--keep", action="store_true", help=f"append the object to {RESULTS.name}")
    options = parser.parse_args()
    missing = [name for name in SETS if not (DATA / name / "events.parquet").exists()]
    if missing:
        sys.exit(f"skipped: {DATA} does not hold {', '.join(missing)}")
    torch.set_num_threads(options.threads or len(os.sched_getaffinity(0)))
    with torch.inference_mode():
        found = measure(rounds=options.rounds)
    finish(found, options, RESULTS, module="benchmarks.jagged_encode")


if __name__ == "__main__":
    main()
