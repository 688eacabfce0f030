"""Does a worker's memory grow with the events that it has seen?

    python -m benchmarks.stream_soak --redis HOST:PORT [--events 2000000] --json [--keep]

As benchmarks.stream, with more users than the worker keeps histories of in memory (stream.cache_users, here 20,000), so
that the cache is full after the warm-up and evicts from then on. The resident memory of the worker's processes is read
every two seconds. `growth` is the highest of the last quarter of the events over the highest up to the end of the
warm-up, which is the first quarter.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.shared.repo import applied_repo
from benchmarks.shared.rows import circumstances, finish, tree_mb
from benchmarks.stream import ITEMS, RELEASE, running_broker, write_settings, zipf_events
from spoor.broker.reader import group_lag
from spoor.config import load_settings

RESULTS = Path(__file__).parent / "results" / "stream_soak.jsonl"
GOAL = 1.1  # at most
CACHE_USERS = 20_000
_EVERY_SECONDS = 2.0


def measure(*, events: int, users: int, redis: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        broker = stack.enter_context(running_broker(Path(scratch), zipf_events(events, users=users, seed=0)))
        folder = Path(scratch) / "worker"
        applied_repo(folder, release=RELEASE, items=ITEMS, redis=redis)
        file = write_settings(folder, kafka=broker, group="soak", cache_users=CACHE_USERS)
        settings = load_settings(file=file, environ={})
        command = [sys.executable, "-m", "benchmarks.stream", "--part", "worker", str(file), "--events", "0"]
        worker = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        stack.callback(worker.kill)
        resident: list[tuple[int, float]] = []  # (events done, MB)
        started = time.monotonic()
        while True:
            time.sleep(_EVERY_SECONDS)
            left = sum(group_lag(settings.kafka, settings.stream.group).values())
            resident.append((events - left, tree_mb(worker.pid)))
            if len(resident) % 15 == 0:
                print(f"{events - left:,} events, {resident[-1][1]:.0f} MB", file=sys.stderr)
            if not left:
                break
        seconds = time.monotonic() - started
        worker.terminate()
        summary = json.loads(worker.communicate(timeout=120)[0].splitlines()[-1])
    warm = max(mb for done, mb in resident if done <= events / 4)
    late = max(mb for done, mb in resident if done > events * 3 / 4)
    return {
        "benchmark": "stream_soak",
        "growth": round(late / warm, 3),
        "goal": GOAL,
        "warm_mb": round(warm),
        "late_mb": round(late),
        "events": summary["events"],
        "events_per_second": round(events / seconds),
        "users": users,
        "cache_users": CACHE_USERS,
    } | circumstances("faust-streaming")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--redis", required=True, help="an empty Redis, HOST:PORT")
    parser.add_argument("--events", type=int, default=2_000_000)
    parser.add_argument("--users", type=int, default=100_000)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--keep", action="store_true", help=f"append the object to {RESULTS.name}")
    options = parser.parse_args()
    found = measure(events=options.events, users=options.users, redis=options.redis)
    finish(found, options, RESULTS, module="benchmarks.stream_soak")


if __name__ == "__main__":
    main()
