"""How much memory does `spoor demo` need on other people's events?

    python -m benchmarks.demo_memory --data ../shared/data/tmall2014/events.parquet --json [--keep]
    python -m benchmarks.demo_memory --simulated 500000 --json [--keep]

The demo runs in a fresh folder, as a process of its own, with its Kafka; pretraining is cut to `--max-minutes`, which
changes how good the vectors are and not how many there are. `peak_mb` is the largest sum, over the samples, of the
resident memory of the whole process tree (the broker and the worker included; pages that processes share count in each
of them); `by_step_mb` is the same for each of the demo's steps, by the last command that it has printed.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from benchmarks.shared.rows import circumstances, finish, tree_mb
from spoor.activity.simulator import SimulatorSettings, simulate

RESULTS = Path(__file__).parent / "results" / "demo_memory.jsonl"
GOAL_MB = 4096  # at most
_SAMPLE_SECONDS = 0.25
_DAY_MS = 86_400_000
_NEWEST_MS = 1_767_225_600_000  # 2026-01-01, the end of what is simulated


def measure(data: Path, *, name: str, max_minutes: float, port: int, stop_mb: float) -> dict[str, Any]:
    """Runs the demo on `data`. It is stopped at `stop_mb`, so that it cannot take the machine with it."""
    described = pq.read_metadata(data)
    with tempfile.TemporaryDirectory() as scratch:
        folder, log = Path(scratch) / "demo", Path(scratch) / "demo.log"
        spoor = [sys.executable, "-m", "spoor"]
        command = [*spoor, "--set", f"kafka.port={port}", "--set", f"pretrain.max_minutes={max_minutes}"]
        command += ["demo", "--data", str(data.absolute()), "--folder", str(folder)]
        started = time.perf_counter()
        with log.open("wb") as out:
            process = subprocess.Popen(command, stdout=out, stderr=out, cwd=scratch, env=_environment())
        try:
            peaks = _watch(process, log, stop_mb)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
            down = [*spoor, "--config", str(folder / "spoor.toml"), "services", "down"]
            subprocess.run(down, cwd=scratch, env=_environment(), capture_output=True, check=False)
        text = log.read_text()
    if process.returncode:
        print(text[-3000:], file=sys.stderr)
    return {
        "benchmark": "demo_memory",
        "data": name,
        "events": described.num_rows,
        "peak_mb": round(max(peaks.values(), default=0.0)),
        "by_step_mb": {step: round(peak) for step, peak in peaks.items()},
        "goal": GOAL_MB,
        "exit_code": process.returncode,
        "sampled": [line.strip() for line in text.splitlines() if "sample" in line],
        "seconds": round(time.perf_counter() - started),
    } | circumstances("feast")


def _watch(process: subprocess.Popen[bytes], log: Path, stop_mb: float) -> dict[str, float]:
    """Peak of the tree by step until the process ends."""
    peaks: dict[str, float] = {}
    while True:
        try:
            process.wait(_SAMPLE_SECONDS)
            return peaks
        except subprocess.TimeoutExpired:
            size = tree_mb(process.pid)
        commands = re.findall(r"^\$ (?:python -m )?(.+)$", log.read_text(), re.MULTILINE)
        step = " ".join(commands[-1].split()[:2]) if commands else "start"
        peaks[step] = max(peaks.get(step, 0.0), size)
        if size > stop_mb:
            print(f"stopped at {size:,.0f} MB", file=sys.stderr)
            return peaks


def _environment() -> dict[str, str]:
    here = str(Path(__file__).parents[1])
    return os.environ | {"PYTHONPATH": here, "PYTHONUNBUFFERED": "1"}


def simulated(events: int, path: Path) -> Path:
    """A file of made-up events of as many users and items as such a log may have, over 60 days."""
    settings = SimulatorSettings(
        events=events,
        from_ms=_NEWEST_MS - 60 * _DAY_MS,
        to_ms=_NEWEST_MS,
        users=max(events // 50, 1),
        items=max(events // 50, 1),
    )
    with pq.ParquetWriter(path, next(iter(simulate(settings))).schema) as writer:
        for table in simulate(settings):
            writer.write_table(table)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--data", type=Path, help="an event file")
    what.add_argument("--simulated", type=int, metavar="EVENTS", help="so many made-up events")
    parser.add_argument("--max-minutes", type=float, default=0.5, help="of pretraining")
    parser.add_argument("--port", type=int, default=29600, help="of the demo's broker")
    parser.add_argument("--stop-mb", type=float, default=8192, help="end the demo at so much memory")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--keep", action="store_true", help=f"append the object to {RESULTS.name}")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        data, name = options.data, ""
        if data is None:
            data, name = simulated(options.simulated, Path(scratch) / "simulated.parquet"), "simulated"
        found = measure(
            data,
            name=name or data.absolute().parent.name,
            max_minutes=options.max_minutes,
            port=options.port,
            stop_mb=options.stop_mb,
        )
    finish(found, options, RESULTS, module="benchmarks.demo_memory")


if __name__ == "__main__":
    main()
