"""Does the memory of a batch job grow with the events in the lake, when users and L stay the same?

    python -m benchmarks.batch_memory [--users 20000] [--events 1000000,4000000] --json [--keep]

For each number of events a lake is filled, and `spoor backfill` and `spoor verify` run over it, each in a process of
its own; SQLite, the model `base` with random weights, histories of 64 events. `growth` is the peak of the process's
resident memory with the most events over that with the fewest. The lake has 8 buckets; more would make less of both.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.backfill import fill_lake, settings_in
from benchmarks.shared.rows import circumstances, finish, own_mb
from spoor.activity.lake import Lake
from spoor.batch.users.backfill import run_backfill
from spoor.batch.users.verify import run_verify
from spoor.config import load_settings

RESULTS = Path(__file__).parent / "results" / "batch_memory.jsonl"
GOAL = 1.25  # at most
JOBS = ("backfill", "verify")


def measure(*, users: int, sizes: Sequence[int]) -> dict[str, Any]:
    peaks: dict[str, dict[int, int]] = {job: {} for job in JOBS}
    seconds: dict[str, dict[int, float]] = {job: {} for job in JOBS}
    for events in sizes:
        with tempfile.TemporaryDirectory() as scratch:
            settings_in(Path(scratch), redis=None)
            _in_process("fill", Path(scratch), users, events)
            for job in JOBS:
                found = _in_process(job, Path(scratch), users, events)
                peaks[job][events], seconds[job][events] = found["peak_mb"], found["seconds"]
                print(f"{events:,} events: {job} {found['peak_mb']} MB, {found['seconds']} s", file=sys.stderr)
    growth = {job: round(of_job[max(sizes)] / of_job[min(sizes)], 3) for job, of_job in peaks.items()}
    return {
        "benchmark": "batch_memory",
        "growth": growth,
        "goal": GOAL,
        "peak_mb": peaks,
        "seconds": seconds,
        "users": users,
    } | circumstances("apache-beam")


def _in_process(what: str, folder: Path, users: int, events: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.batch_memory", "--child", what, str(folder)]
    command += ["--users", str(users), "--events", str(events)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def _child(what: str, folder: Path, users: int, events: int) -> None:
    """Runs one step in this process and prints what it took."""
    settings = load_settings(file=folder / "spoor.toml", environ={})
    started = time.perf_counter()
    if what == "fill":
        fill_lake(Lake(settings.lake.folder, buckets=settings.lake.buckets), users=users, events=events)
    elif what == "backfill":
        run_backfill(settings, publish=False)
    elif (found := run_verify(settings)).differences:
        sys.exit(f"verify found {found.differences} differences")
    print(json.dumps({"peak_mb": round(own_mb("VmHWM")), "seconds": round(time.perf_counter() - started, 1)}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=20_000)
    parser.add_argument("--events", default="1000000,4000000", help="numbers of events, with commas")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--keep", action="store_true", help=f"append the object to {RESULTS.name}")
    options = parser.parse_args()
    sizes = [int(part) for part in options.events.split(",")]
    if options.child:
        _child(options.child[0], Path(options.child[1]), options.users, sizes[0])
    else:
        finish(measure(users=options.users, sizes=sizes), options, RESULTS, module="benchmarks.batch_memory")


if __name__ == "__main__":
    main()
