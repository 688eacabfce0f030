"""Does a training step take the same time whatever the size of the item tables?

    python -m benchmarks.table_rows [--rows 1000000 10000000 50000000] [--steps 60] [--rounds 3] --json [--keep]

The same simulated events train the same small transformer over hashed tables of each size; updates touch only the rows
that a step has read (optimiser.py). Each size trains in a process of its own, sizes take turns; `ratio` is the
median step of the smallest table over that of the slowest, where 1 is perfectly flat and 1 / 1.2 the goal. A row has 16
floats, and with its moments and its average takes 256 bytes: 50 million rows need 13 GB.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.shared.rows import circumstances, finish, own_mb

RESULTS = Path(__file__).parent / "results" / "table_rows.jsonl"
ROWS = (1_000_000, 10_000_000, 50_000_000)
GOAL = 1 / 1.2
_EVENTS, _USERS, _ITEMS = 100_000, 2_000, 50_000
_TABLES, _ROW_FLOATS = 2, 16
_WARM_UP_STEPS = 5


def step_seconds(rows: int, *, steps: int) -> dict[str, float]:
    """The median step of one table size, in this process."""
    import pyarrow as pa

    from spoor.activity.simulator import SimulatorSettings, simulate
    from spoor.encoder.model.config import MODEL_CONFIGS
    from spoor.encoder.training.parallel import ALONE
    from spoor.encoder.training.plan import PretrainRequest, make_plan
    from spoor.encoder.training.run import fresh_state
    from spoor.encoder.training.settings import PretrainSettings
    from spoor.encoder.training.step import take_step

    year = 365 * 86_400_000
    events = SimulatorSettings(events=_EVENTS, users=_USERS, items=_ITEMS, from_ms=year, to_ms=2 * year)
    shape = {"hash_functions": _TABLES, "table_rows": rows // _TABLES, "table_width": _ROW_FLOATS}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "model.json").write_text(json.dumps(replace(MODEL_CONFIGS["base"], **shape).to_json()))
        settings = PretrainSettings(model=str(folder / "model.json"), token_budget=4096, table_updates="sparse")
        plan = make_plan(
            PretrainRequest(pa.concat_tables(simulate(events)), out=folder / "rows-1", settings=settings), folder=folder
        )
        state, stage = fresh_state(plan), plan.schedule.stages[0]
        state.model.train()
        seconds: list[float] = []
        while len(seconds) < _WARM_UP_STEPS + steps:
            for batch in stage.reader.epoch(state.epoch):
                started = time.perf_counter()
                shares, rate = stage.answer_shares, plan.settings.learning_rate
                take_step(state, batch, settings=plan.settings, answer_shares=shares, rate=rate, processes=ALONE)
                seconds.append(time.perf_counter() - started)
                state.step += 1
            state.epoch += 1
    measured = seconds[_WARM_UP_STEPS : _WARM_UP_STEPS + steps]
    return {"seconds": statistics.median(measured), "peak_mb": round(own_mb("VmHWM"))}


def measure(sizes: list[int], *, steps: int, rounds: int) -> dict[str, Any]:
    found: dict[int, list[dict[str, float]]] = {rows: [] for rows in sizes}
    for turn in range(rounds):
        for rows in sizes:
            command = [sys.executable, "-m", "benchmarks.table_rows", "--rows", str(rows), "--steps", str(steps)]
            done = subprocess.run([*command, "--step"], check=True, stdout=subprocess.PIPE, text=True)
            found[rows].append(json.loads(done.stdout))
            print(f"round {turn + 1}: {rows:,} rows, {found[rows][-1]['seconds']:.4f} s a step", file=sys.stderr)
    medians = {rows: statistics.median(row["seconds"] for row in found[rows]) for rows in sizes}
    return {
        "benchmark": "table_rows",
        "ratio": round(medians[min(sizes)] / max(medians.values()), 3),
        "goal": round(GOAL, 3),
        "step_seconds": {str(rows): round(seconds, 5) for rows, seconds in medians.items()},
        "peak_mb": {str(rows): max(row["peak_mb"] for row in found[rows]) for rows in sizes},
        "steps": steps,
        "rounds": rounds,
    } | circumstances()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=list(ROWS), help="of all tables together")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--keep", action="store_true", help=f"append the object to {RESULTS.name}")
    parser.add_argument("--step", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        print(json.dumps(step_seconds(options.rows[0], steps=options.steps)))
        return
    found = measure(sorted(options.rows), steps=options.steps, rounds=options.rounds)
    finish(found, options, RESULTS, module="benchmarks.table_rows")


if __name__ == "__main__":
    main()
