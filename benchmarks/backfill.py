"""How many users a second does `spoor backfill` bring from the lake to online and offline rows, beside a script?

    python -m benchmarks.backfill [--users 20000] [--events 1000000] [--rounds 3] [--redis HOST:PORT] --json [--keep]

Simulated events lie in the lake; the model is `base` with random weights, histories of 64 events. Ours is the whole
job: plan, Beam, guarded write, offline log with its manifest, item vectors. The peer is what one would write by hand:
Polars for each user's newest events, the same model, `FeatureStore.write_to_online_store` of a DataFrame for each view,
Parquet files, in batches of as many users, without guard, manifest or resumption. Both write the same rows to a store
of their own with the same durability (SQLite with a write-ahead log, synchronous FULL, or two databases of a Redis;
files are synced). Afterwards plain Feast reads both and the vectors are compared. `ratio` is the best round of ours
over the best of the peer's.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from feast import FeatureStore

from benchmarks.shared.repo import NOW_MS, applied_repo
from benchmarks.shared.rows import circumstances, finish, own_mb
from spoor.activity.hashing import hash_items, hash_names
from spoor.activity.history import EVENT_DTYPE, Histories
from spoor.activity.lake import LAKE_SCHEMA, Lake
from spoor.activity.packing import pack
from spoor.activity.simulator import SimulatorSettings, simulate
from spoor.batch.users.backfill import run_backfill
from spoor.batch.users.histories import SLICE_USERS
from spoor.config import Settings, load_settings
from spoor.encoder.release.inference import FrozenEncoder, load_encoders
from spoor.feature_repo.names import USER_HISTORY, item_embedding_view, user_embedding_view

RESULTS = Path(__file__).parent / "results" / "backfill.jsonl"
GOAL = 0.8
RELEASE = "backfill-1"
ITEMS, MAX_EVENTS, DAYS = 5_000, 64, 30
_DAY_MS = 86_400_000


def fill_lake(lake: Lake, *, users: int, events: int) -> None:
    """As `spoor archive` would have: one work item for each table of the simulator."""
    made = SimulatorSettings(events=events, users=users, items=ITEMS, from_ms=NOW_MS - DAYS * _DAY_MS, to_ms=NOW_MS)
    offset = 0
    for number, table in enumerate(simulate(made)):
        items = pc.binary_join_element_wise("item-", table["item_id"].cast(pa.string()), "")
        table = table.set_column(table.schema.get_field_index("item_id"), "item_id", items)
        table = table.append_column("partition", pa.array(np.zeros(len(table), np.int32)))
        table = table.append_column("offset", pa.array(offset + np.arange(len(table))))
        table = table.append_column("append_time", table["timestamp"]).select(LAKE_SCHEMA.names)
        end = offset + len(table)
        lake.write(f"p00000-{number:05d}", table, {"topic": "t", "partition": 0, "start": offset, "end": end})
        offset = end


def script(lake_folder: Path, feast: FeatureStore, encoder: FrozenEncoder, offline: Path) -> int:
    """The peer; returns its number of users."""
    names = {USER_HISTORY: offline / USER_HISTORY, user_embedding_view(RELEASE): offline / user_embedding_view(RELEASE)}
    for folder in names.values():
        folder.mkdir(parents=True, exist_ok=True)
    users = 0
    for number, (ids, as_of, histories) in enumerate(_newest(lake_folder)):
        now_ms = time.time_ns() // 1_000_000
        vectors, used = encoder.encode(histories)
        last = histories.last_times()
        created = np.maximum(as_of, encoder.trained_through_ms)
        shared = {"user_id": ids, "revision": np.ones(len(ids), np.int64), "event_time_ms": last}
        history = {"history": pack(histories), "events": histories.lengths, "as_of_ms": as_of}
        embedding = {"embedding": list(vectors), "events_used": used, "created_ms": created}
        stamps = {"event_timestamp": _times(last), "created_timestamp": _times(created)}
        constants = {"computed_at_ms": now_ms, "model_version": RELEASE}
        frames = {
            USER_HISTORY: pd.DataFrame(shared | history | stamps),
            user_embedding_view(RELEASE): pd.DataFrame(shared | embedding | constants | stamps),
        }
        for view, frame in frames.items():
            feast.write_to_online_store(view, frame)
            _write_synced(pa.Table.from_pandas(frame), names[view] / f"{number:05d}.parquet")
        users += len(ids)
    items = list(encoder.item_ids)
    vectors = encoder.item_vectors(encoder.item_hashes)
    frame = pd.DataFrame({"item_id": items, "item_embedding": list(vectors)})
    frame["event_timestamp"] = frame["created_timestamp"] = _times(np.full(len(items), encoder.trained_through_ms))[0]
    feast.write_to_online_store(item_embedding_view(RELEASE), frame)
    _write_synced(pa.Table.from_pandas(frame), offline / "items.parquet")
    return users


def _newest(lake_folder: Path) -> Iterator[tuple[list[str], np.ndarray, Histories]]:
    """Users in batches: ids, the latest append time of each, and the newest events."""
    events = pl.read_parquet(lake_folder / "**/*.parquet")
    for column, hashed in (("item_id", hash_items), ("action", hash_names), ("surface", hash_names)):
        known = events[column].unique()
        table = pl.DataFrame({column: known, f"{column}_hash": hashed(known.to_list())})
        events = events.join(table, on=column).drop(column).rename({f"{column}_hash": column})
    known_from = events.group_by("user_id").agg(pl.col("append_time").max())
    keys = ["user_id", "timestamp", "item_id", "action", "surface"]
    newest = events.select(keys).unique().sort(keys).group_by("user_id", maintain_order=True).tail(MAX_EVENTS)
    counts = newest.group_by("user_id", maintain_order=True).len().join(known_from, on="user_id", maintain_order="left")
    values = np.empty(len(newest), EVENT_DTYPE)
    for field, column in (
        ("timestamp", "timestamp"),
        ("item", "item_id"),
        ("action", "action"),
        ("surface", "surface"),
    ):
        values[field] = newest[column].to_numpy()
    offsets = np.concatenate([[0], counts["len"].to_numpy().cumsum()]).astype(np.int64)
    for start in range(0, len(counts), SLICE_USERS):
        part = counts[start : start + SLICE_USERS]
        bounds = offsets[start : start + len(part) + 1]
        histories = Histories(values[bounds[0] : bounds[-1]], bounds - bounds[0])
        yield part["user_id"].to_list(), part["append_time"].to_numpy(), histories


def _times(times_ms: np.ndarray) -> pd.DatetimeIndex:
    return pd.to_datetime(times_ms, unit="ms", utc=True)


def _write_synced(table: pa.Table, path: Path) -> None:
    with open(path, "wb") as file:
        pq.write_table(table, file, compression="zstd")
        file.flush()
        os.fsync(file.fileno())


def settings_in(folder: Path, *, redis: str | None) -> Settings:
    """Settings and an applied repo of their own."""
    applied_repo(folder, release=RELEASE, items=ITEMS, redis=redis)
    (folder / "spoor.toml").write_text(
        f'state_folder = "state"\n[history]\nmax_events = {MAX_EVENTS}\n[features]\noffline_folder = "offline"\n'
    )
    return load_settings(file=folder / "spoor.toml", environ={})


def vectors_of(feast: FeatureStore, users: list[str]) -> np.ndarray:
    """Zeros for a user without a row: the simulator gives some users no event."""
    view = user_embedding_view(RELEASE)
    found = feast.get_online_features([f"{view}:embedding"], [{"user_id": user} for user in users]).to_dict()
    return np.asarray([np.zeros(64) if row is None else row for row in found["embedding"]], np.float32)


def measure(*, users: int, events: int, rounds: int, redis: str | None) -> dict[str, Any]:
    seconds: dict[str, list[float]] = {"ours": [], "script": []}
    difference, done, asked = 0.0, 0, [str(user) for user in range(0, users, max(users // 500, 1))]
    with tempfile.TemporaryDirectory() as scratch:
        lake_folder = Path(scratch) / "lake"
        fill_lake(Lake(lake_folder, buckets=8), users=users, events=events)
        for turn in range(rounds):
            stores = [redis and f"{redis},db={2 * turn + side}" for side in range(2)]
            mine = settings_in(Path(scratch) / f"ours-{turn}", redis=stores[0])
            mine = replace(mine, lake=replace(mine.lake, folder=lake_folder))
            started = time.perf_counter()
            result = run_backfill(mine, publish=False)
            seconds["ours"].append(time.perf_counter() - started)
            theirs = settings_in(Path(scratch) / f"script-{turn}", redis=stores[1])
            feast = FeatureStore(repo_path=str(theirs.features.feature_repo))
            started = time.perf_counter()
            (encoder,) = load_encoders(theirs.features.releases_folder, [RELEASE])
            done = script(lake_folder, feast, encoder, theirs.features.offline_folder)
            seconds["script"].append(time.perf_counter() - started)
            if result.rows != done:
                sys.exit(f"ours wrote {result.rows} users, the script {done}")
            both = [vectors_of(store, asked) for store in (FeatureStore(str(mine.features.feature_repo)), feast)]
            difference = max(difference, float(np.abs(both[0] - both[1]).max()))
            print(
                f"round {turn + 1}: " + ", ".join(f"{who} {took[-1]:.1f} s" for who, took in seconds.items()),
                file=sys.stderr,
            )
    best = {who: min(took) for who, took in seconds.items()}
    return {
        "benchmark": "backfill",
        "online_store": "sqlite" if redis is None else "redis",
        "ratio": round(best["script"] / best["ours"], 3),
        "goal": GOAL,
        "users_per_second": {who: round(done / took) for who, took in best.items()},
        "seconds": {who: [round(each, 2) for each in took] for who, took in seconds.items()},
        "difference": difference,
        "users": done,
        "events": events,
        "peak_mb": round(own_mb("VmHWM")),
        "rounds": rounds,
    } | circumstances("apache-beam")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=20_000)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--redis", help="an empty Redis, HOST:PORT; default: SQLite")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--keep", action="store_true", help=f"append the object to {RESULTS.name}")
    options = parser.parse_args()
    found = measure(users=options.users, events=options.events, rounds=options.rounds, redis=options.redis)
    finish(found, options, RESULTS, module="benchmarks.backfill")


if __name__ == "__main__":
    main()
