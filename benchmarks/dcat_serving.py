"""How much faster does DCAT score a request's candidates than the transformer over every history + candidate?

    python -m benchmarks.dcat_serving [--repeats 3] [--threads 2] [--device cuda --dtype bfloat16] --json [--keep]

d = L = 256, same weights, inference. The peers (benchmarks/shared/naive.py):

    naive           history + candidate for every candidate; the last layer only at the candidate, as DCAT's
    naive, no skip  the same with all outputs of the last layer
    gathering       one context pass, then keys and values copied for each candidate

All with 4 layers: `ratio` is naive over DCAT with 1,000 candidates of one user, `ratio_r10` with 10 candidates of each
of 8 users (r counts candidates for each distinct user of a batch, as the paper's does), `ratio_r10_alone` with 10 of
one; `ratio_gather` is gathering over DCAT with 1,000 candidates of 8 users. Each side runs in a process of its own, as
a service would, and they take turns; each peer at its best batch size, tried beforehand; times are the best of the
repeats on both sides; outputs are compared in the same run. FLOP bounds count 24 d^2 a token and layer (4 d^2 where
only keys and values are needed) and 4 d for each pair of a query and a key.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks.shared.naive import gathering_cross, model_of, naive_cross
from benchmarks.shared.rows import finish
from benchmarks.shared.timing import (
    Run,
    add_device_options,
    best_seconds_apart,
    device_circumstances,
    fastest,
    use_device,
)
from spoor.encoder.model.dcat import context_and_cross
from spoor.encoder.model.events import Candidates, Events
from spoor.encoder.model.user_encoder import UserEncoder

RESULTS = Path(__file__).parent / "results" / "dcat_serving.jsonl"
GOALS = {"ratio": 120.0, "ratio_r10": 7.6, "ratio_gather": 1.5}
WIDTH = LENGTH = 256
ITEMS, BATCH_USERS, GATHER_CANDIDATES = 10_000, 8, 1_000
_LOOK = 128  # candidates with which batch sizes are tried
_GATHER_SIZES = (8, 16, 32, 64, 128, 256)


class Case(NamedTuple):
    """Batches of so many users, with `r` candidates each; `sizes`: sequences in one call of the naive peer; `calls` of
    each side are a turn, `rounds` of turns a repeat."""

    name: str
    users: int
    r: int
    sizes: tuple[int, ...]
    rounds: int
    calls: int


CASES = (
    Case(f"r = 10, {BATCH_USERS} users", BATCH_USERS, 10, (1, 2, 5, 10, 20, 40), 10, 1),
    Case("r = 10, one user", 1, 10, (1, 2, 5, 10), 15, 8),
    Case("r = 1,000", 1, 1_000, (1, 2, 4, 8, 16, 32, 64, 128), 1, 1),
)


class Request:
    """Random histories of LENGTH events and candidates, spread over the users."""

    def __init__(self, model: UserEncoder, *, users: int, candidates: int) -> None:
        rng = np.random.default_rng(1)
        self.model = model
        self.items = torch.tensor(rng.integers(1, ITEMS + 1, users * LENGTH))
        self.offsets = torch.arange(users + 1) * LENGTH
        self.candidates = torch.tensor(rng.integers(1, ITEMS + 1, candidates))
        self.user = torch.arange(candidates) % users

    @property
    def asked(self) -> tuple[Events, Candidates]:
        one = torch.ones_like
        events = Events(self.items, one(self.items), one(self.items), self.offsets)
        return events, Candidates(self.candidates, one(self.candidates), self.user)

    def dcat(self) -> Tensor:
        return context_and_cross(self.model, *self.asked)[0]

    def embedded(self) -> tuple[Tensor, Tensor]:
        """What enters the first block: [U, LENGTH, C] and [K, C]."""
        history, candidates = (self.model.embed(rows, torch.ones_like(rows.items)) for rows in self.asked)
        return history.view(-1, LENGTH, WIDTH), candidates

    def naive(self, *, batch: int, skip_last: bool = True) -> Tensor:
        return naive_cross(self.model, *self.embedded(), self.user, batch=batch, skip_last=skip_last)

    def gathering(self, *, batch: int) -> Tensor:
        return gathering_cross(self.model, *self.embedded(), self.user, batch=batch)


def flops(layers: int, *, candidates: int | None) -> float:
    """Of DCAT with so many candidates, per candidate; None: of the naive transformer."""
    whole, pair = 24 * WIDTH**2, 4 * WIDTH
    at_candidate = whole + pair * (LENGTH + 1)
    history = LENGTH * whole + pair * LENGTH * (LENGTH + 1) / 2
    keys_and_values = 4 * WIDTH**2 * LENGTH
    context_pass = (layers - 1) * history + keys_and_values
    return context_pass / (candidates or 1) + layers * at_candidate


def contender(who: str, options: argparse.Namespace, layers: int, users: int, candidates: int, batch: int) -> Run:
    """One side of a comparison, to be made in a process of its own; `batch`: of a peer."""
    model = model_of(items=ITEMS, width=WIDTH, length=LENGTH, layers=layers, dtype=use_device(options)).freeze()
    request = Request(model, users=users, candidates=candidates)
    runs = {
        "dcat": request.dcat,
        "naive": partial(request.naive, batch=batch),
        "naive, no skip": partial(request.naive, batch=batch, skip_last=False),
        "gathering": partial(request.gathering, batch=batch),
    }
    return torch.inference_mode()(runs[who])


def measure(options: argparse.Namespace) -> dict[str, Any]:
    dtype, repeats = use_device(options), options.repeats
    seconds: dict[str, dict[str, float]] = {}
    batches, bounds, differences = {}, {}, {}

    def compare(name: str, request: Request, peers: Sequence[str], *, batch: int, rounds: int, calls: int) -> None:
        of = request.model.config.layers, len(request.offsets) - 1, len(request.candidates)
        makers = {who: partial(contender, who, options, *of, batch) for who in ("dcat", *peers)}
        batches[name], seconds[name] = batch, best_seconds_apart(makers, rounds=repeats * rounds, calls=calls)
        print(f"{name}: {_shown(seconds[name])}, {batch} in a peer's batch", file=sys.stderr)

    for layers in (2, 4):
        model = model_of(items=ITEMS, width=WIDTH, length=LENGTH, layers=layers, dtype=dtype).freeze()
        for case in CASES:
            name, candidates = f"{layers} layers, {case.name}", case.users * case.r
            sample = Request(model, users=case.users, candidates=min(candidates, _LOOK))
            batch = fastest(lambda size, sample=sample: sample.naive(batch=size), case.sizes)
            request = Request(model, users=case.users, candidates=candidates)
            peers = "naive", "naive, no skip"
            compare(name, request, peers, batch=batch, rounds=case.rounds, calls=case.calls)
            differences[name] = float((request.dcat() - request.naive(batch=batch)).float().abs().max())
            bounds[name] = round(flops(layers, candidates=None) / flops(layers, candidates=case.r), 1)
    request = Request(model, users=BATCH_USERS, candidates=GATHER_CANDIDATES)
    batch = fastest(lambda size: request.gathering(batch=size), _GATHER_SIZES)
    name = f"4 layers, {BATCH_USERS} users, {GATHER_CANDIDATES:,} candidates"
    compare(name, request, ("gathering",), batch=batch, rounds=5, calls=1)
    differences[name] = float((request.dcat() - request.gathering(batch=batch)).abs().max())
    ratios = {
        case: {peer: round(took / of["dcat"], 2) for peer, took in of.items() if peer != "dcat"}
        for case, of in seconds.items()
    }
    return {
        "benchmark": "dcat_serving",
        "ratio": ratios["4 layers, r = 1,000"]["naive"],
        "ratio_r10": ratios[f"4 layers, r = 10, {BATCH_USERS} users"]["naive"],
        "ratio_r10_alone": ratios["4 layers, r = 10, one user"]["naive"],
        "ratio_gather": ratios[name]["gathering"],
        "goals": GOALS,
        "ratios": ratios,
        "flop_bounds": bounds,
        "seconds": {case: {who: round(took, 5) for who, took in of.items()} for case, of in seconds.items()},
        "peer_batches": batches,
        "differences": differences,
        "repeats": repeats,
    } | device_circumstances(dtype)


def _shown(seconds: dict[str, float]) -> str:
    return ", ".join(f"{who} {took * 1000:,.1f} ms" for who, took in seconds.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--repeats", type=int, default=3, help="of the longest runs; shorter ones run more often, all sides alike"
    )
    add_device_options(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--keep", action="store_true", help=f"append the object to {RESULTS.name}")
    options = parser.parse_args()
    with torch.inference_mode():
        found = measure(options)
    finish(found, options, RESULTS, module="benchmarks.dcat_serving")


if __name__ == "__main__":
    main()
