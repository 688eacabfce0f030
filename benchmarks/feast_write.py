"""How many rows a second does the guarded writer put into Feast's online store, beside Feast itself?

    python -m benchmarks.feast_write [--users 10000] [--rounds 3] [--redis HOST:PORT] --json [--keep]

Each round writes the same users' next revision: a packed history of 64 events and an embedding of 64 floats, two rows a
user. Ours is `OnlineStore.write`: both rows in one step, and only where the stored revision is the expected one. The
peer is `FeatureStore.write_to_online_store` of a DataFrame for each view, at its best batch size (tried beforehand),
into the same store: SQLite with a write-ahead log, synchronous FULL for both, or a Redis. Neither side's making of its
rows counts. After each side's turn its rows are read back by plain Feast and compared. `ratio` is the best round of
ours over the best of the peer's.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from feast import FeatureStore

from benchmarks.shared.repo import NOW_MS, applied_repo
from benchmarks.shared.rows import circumstances, finish
from spoor.activity.history import EVENT_DTYPE, Histories
from spoor.activity.packing import pack
from spoor.feature_repo.names import USER_HISTORY, user_embedding_view
from spoor.store.online import OnlineStore, open_online
from spoor.store.rows import EmbeddingRow, UserWrite, embedding_log_table, history_log_table

RESULTS = Path(__file__).parent / "results" / "feast_write.jsonl"
GOALS = {"sqlite": 2.0, "redis": 3.0}
RELEASE = "write-1"
EVENTS, DIMENSION = 64, 64
_PEER_SIZES = (500, 2_000, 10_000)
_VIEWS = 2


def writes_of(users: int, *, revision: int, events: int = EVENTS) -> list[UserWrite]:
    rng = np.random.default_rng(revision)
    values = np.zeros((users, events), EVENT_DTYPE)
    values["timestamp"] = NOW_MS - np.sort(rng.integers(1, 10**10, values.shape))[:, ::-1]
    values["timestamp"][:, -1] = NOW_MS + revision  # Feast's Redis store keeps a row that is no older
    values["item"] = rng.integers(1, 2**63, values.shape)
    packed = pack(Histories.of(list(values)))
    vectors = rng.standard_normal((users, DIMENSION)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    times = values["timestamp"][:, -1].tolist()
    return [
        UserWrite(
            user_id=f"user-{user}",
            expected_revision=revision - 1,
            revision=revision,
            history=packed[user],
            events=events,
            event_time_ms=times[user],
            as_of_ms=NOW_MS,
            embeddings=[
                EmbeddingRow(
                    f"user-{user}", vectors[user], revision, events, times[user], NOW_MS, NOW_MS, model_version=RELEASE
                )
            ],
        )
        for user in range(users)
    ]


def frames_of(writes: Sequence[UserWrite]) -> dict[str, pd.DataFrame]:
    """The same rows as Feast takes them, by view."""
    return {
        USER_HISTORY: history_log_table(writes).to_pandas(),
        user_embedding_view(RELEASE): embedding_log_table([write.embeddings[0] for write in writes]).to_pandas(),
    }


def feast_writes(feast: FeatureStore, frames: dict[str, pd.DataFrame], *, batch: int) -> None:
    users = len(frames[USER_HISTORY])
    for start in range(0, users, batch):
        for view, frame in frames.items():
            feast.write_to_online_store(view, frame.iloc[start : start + batch])


def check(feast: FeatureStore, writes: Sequence[UserWrite]) -> None:
    """Ends the process where plain Feast does not read back what was written."""
    view = user_embedding_view(RELEASE)
    answer = feast.get_online_features(
        features=[f"{USER_HISTORY}:history", f"{USER_HISTORY}:revision", f"{view}:embedding", f"{view}:model_version"],
        entity_rows=[{"user_id": write.user_id} for write in writes],
        full_feature_names=True,
    ).to_dict()
    for place, write in enumerate(writes):
        found = (answer[f"{USER_HISTORY}__history"][place], answer[f"{USER_HISTORY}__revision"][place])
        vector = np.asarray(answer[f"{view}__embedding"][place], np.float32)
        if found != (write.history, write.revision) or not np.array_equal(vector, write.embeddings[0].embedding):
            sys.exit(f"{write.user_id} was not read back as written")


def measure(*, users: int, rounds: int, redis: str | None) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as scratch:
        features, _ = applied_repo(Path(scratch), release=RELEASE, items=100, redis=redis)
        online, feast = open_online(features), FeatureStore(repo_path=str(features.feature_repo))
        sizes: dict[int, float] = {}
        for batch in (size for size in _PEER_SIZES if size <= users):
            started = time.perf_counter()
            feast_writes(feast, frames_of(writes_of(users, revision=1)), batch=batch)
            sizes[batch] = time.perf_counter() - started
        batch = min(sizes, key=sizes.__getitem__)
        rates: dict[str, list[float]] = {"ours": [], "feast": []}
        for turn in range(rounds):
            revision = 2 + 2 * turn
            rates["ours"].append(_ours(online, feast, writes_of(users, revision=revision)))
            writes = writes_of(users, revision=revision + 1)
            frames = frames_of(writes)
            started = time.perf_counter()
            feast_writes(feast, frames, batch=batch)
            rates["feast"].append(_VIEWS * users / (time.perf_counter() - started))
            check(feast, writes)
            print(
                f"round {turn + 1}: " + ", ".join(f"{who} {r[-1]:,.0f} rows/s" for who, r in rates.items()),
                file=sys.stderr,
            )
    kind = "sqlite" if redis is None else "redis"
    return {
        "benchmark": "feast_write",
        "online_store": kind,
        "ratio": round(max(rates["ours"]) / max(rates["feast"]), 2),
        "goal": GOALS[kind],
        "rows_per_second": {who: [round(rate) for rate in found] for who, found in rates.items()},
        "feast_batch": batch,
        "users": users,
        "rounds": rounds,
    } | circumstances("feast")


def _ours(online: OnlineStore, feast: FeatureStore, writes: list[UserWrite]) -> float:
    started = time.perf_counter()
    done = online.write(writes)
    rate = _VIEWS * len(writes) / (time.perf_counter() - started)
    if not done.all():
        sys.exit(f"{(~done).sum()} writes were refused: another process writes to this store")
    check(feast, writes)
    return rate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--redis", help="an empty Redis, HOST:PORT; default: SQLite")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--keep", action="store_true", help=f"append the object to {RESULTS.name}")
    options = parser.parse_args()
    found = measure(users=options.users, rounds=options.rounds, redis=options.redis)
    finish(found, options, RESULTS, module="benchmarks.feast_write")


if __name__ == "__main__":
    main()
