"""How long does one ranking request take from Feast to scores, and which step takes it?

    python -m benchmarks.request [--requests 500] [--redis HOST:PORT] [--threads 2] --json [--keep]

Model `base` (2 layers, d = 64, 256 events) with random weights over 10,000 items; 2,000 users with 256 events each are
written by the guarded writer into a Feast repo of its own (SQLite, or an empty Redis). A request names a random user
and 1,000 random candidates by their raw ids:

    read      plain Feast: get_online_features of the packed history and its revision
    unpack    bytes to events
    index     hashes of the candidates' ids; vocabulary indexes of events and candidates; time gaps
    context   DCAT's context pass over the history, without outputs of the last layer
    cross     DCAT's crossing pass over the candidates
    rank      scores against the candidates' own vectors, best first

p50 and p99 of each and of the whole are over the requests, after some that are not counted; `outside` is everything but
context and cross.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.shared.repo import NOW_MS, applied_repo
from benchmarks.shared.rows import circumstances, finish
from spoor.activity.hashing import hash_items
from spoor.activity.history import EVENT_DTYPE, Histories
from spoor.activity.packing import unpack
from spoor.activity.settings import HistorySettings
from spoor.encoder.model.dcat import context, cross
from spoor.encoder.model.events import Candidates, Events
from spoor.encoder.release.folder import load_release
from spoor.encoder.release.inference import FrozenEncoder
from spoor.ranking.features.online import OnlineFeatures
from spoor.store.online import open_online
from spoor.store.writer import GuardedWriter

RESULTS = Path(__file__).parent / "results" / "request.jsonl"
GOALS = {"outside_ms": {"p50": 15.0, "p99": 30.0}}
RELEASE = "request-1"
ITEMS, USERS, EVENTS, CANDIDATES = 10_000, 2_000, 256, 1_000
STEPS = ("read", "unpack", "index", "context", "cross", "rank")
_WARM_UP, _USERS_AT_ONCE = 20, 250


def prepare(folder: Path, *, redis: str | None) -> tuple[OnlineFeatures, FrozenEncoder]:
    """A Feast repo whose online store holds every user's history and embedding."""
    features, vocabulary = applied_repo(folder, release=RELEASE, items=ITEMS, redis=redis)
    encoder = FrozenEncoder(load_release(features.releases_folder / RELEASE))
    writer = GuardedWriter(open_online(features), [encoder], history=HistorySettings())
    rng = np.random.default_rng(0)
    for first in range(0, USERS, _USERS_AT_ONCE):
        users = [f"user-{number}" for number in range(first, first + _USERS_AT_ONCE)]
        values = np.zeros((len(users), EVENTS), EVENT_DTYPE)
        values["timestamp"] = NOW_MS - np.sort(rng.integers(1, 10**10, values.shape))[:, ::-1]
        values["item"] = rng.choice(vocabulary.items, values.shape)
        values["action"], values["surface"] = vocabulary.actions[0], vocabulary.surfaces[0]
        writer.update(users, Histories.of(list(values)), as_of_ms=np.full(len(users), NOW_MS))
    return OnlineFeatures(features, RELEASE), encoder


def request(online: OnlineFeatures, encoder: FrozenEncoder, user: str, candidates: list[str]) -> dict[str, float]:
    """Seconds of each step."""
    marks = [time.perf_counter()]
    packed, _ = online.read_history(user)
    marks.append(time.perf_counter())
    assert packed is not None, user
    history = unpack([packed]).newest(encoder.max_events)
    marks.append(time.perf_counter())
    events = Events.of(encoder.vocabulary.event_indexes(history), history.values["timestamp"], history.offsets)
    items = torch.from_numpy(encoder.vocabulary.item_indexes(hash_items(candidates)))
    marks.append(time.perf_counter())
    kept = context(encoder.model, events, outputs=False)
    marks.append(time.perf_counter())
    asked = Candidates(items, torch.ones_like(items), torch.zeros_like(items))
    crossed = cross(encoder.model, kept, asked, window=encoder.max_events)
    marks.append(time.perf_counter())
    scores = (crossed * encoder.model.targets(items)).sum(1)
    scores.argsort(descending=True).tolist()
    marks.append(time.perf_counter())
    return dict(zip(STEPS, np.diff(marks).tolist(), strict=True))


def measure(*, requests: int, redis: str | None) -> dict[str, Any]:
    rng, found = np.random.default_rng(1), []
    with tempfile.TemporaryDirectory() as scratch, torch.inference_mode():
        online, encoder = prepare(Path(scratch), redis=redis)
        print(f"{USERS:,} users written", file=sys.stderr)
        for _ in range(_WARM_UP + requests):
            candidates = [f"item-{number}" for number in rng.choice(ITEMS, CANDIDATES, replace=False)]
            found.append(request(online, encoder, f"user-{rng.integers(USERS)}", candidates))
    seconds = {step: np.array([one[step] for one in found[_WARM_UP:]]) for step in STEPS}
    whole = np.sum(list(seconds.values()), axis=0)
    outside = whole - seconds["context"] - seconds["cross"]
    return {
        "benchmark": "request",
        "outside_ms": _percentiles(outside),
        "goals": GOALS,
        "whole_ms": _percentiles(whole),
        "steps_ms": {step: _percentiles(took) for step, took in seconds.items()},
        "shares": {step: round(float(took.sum() / whole.sum()), 3) for step, took in seconds.items()},
        "online_store": "sqlite" if redis is None else "redis",
        "candidates": CANDIDATES,
        "events": EVENTS,
        "requests": requests,
        "threads": torch.get_num_threads(),
    } | circumstances()


def _percentiles(seconds: np.ndarray) -> dict[str, float]:
    return {f"p{share}": round(float(np.percentile(seconds, share)) * 1000, 2) for share in (50, 99)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--redis", help="an empty Redis, HOST:PORT; default: SQLite")
    parser.add_argument("--threads", type=int, help="default: all cores")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--keep", action="store_true", help=f"append the object to {RESULTS.name}")
    options = parser.parse_args()
    torch.set_num_threads(options.threads or len(os.sched_getaffinity(0)))
    finish(measure(requests=options.requests, redis=options.redis), options, RESULTS, module="benchmarks.request")


if __name__ == "__main__":
    main()
