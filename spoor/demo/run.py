"""`spoor demo`: runs the main job from Kafka to a ranker's feature row, on real data, with only Python.

Every step prints a command and calls the same function as that command, with the demo's settings file
runs/demo/spoor.toml. All files are in runs/demo/. Finished steps are noted there, and the next run reuses them. An
interrupted step runs again; every step is idempotent.
"""

from __future__ import annotations

import time
from pathlib import Path
from shlex import quote
from typing import Any

from spoor.base.errors import ProblemsFound
from spoor.config import Settings
from spoor.console import say, to_json
from spoor.demo.prepare import Demo, prepare
from spoor.demo.report import print_summary, report
from spoor.demo.steps import STEPS, Step


def run_demo(
    settings: Settings, *, folder: Path = Path("runs/demo"), data: Path | None = None, items: Path | None = None
) -> dict[str, Any]:
    """Runs the remaining steps of the demo; returns the results of all steps, the path of the report, and the seconds.

    Raises UsageError (the folder holds a demo on other data, or other files), InfrastructureError, ProblemsFound
    (verify found differences)."""
    started = time.monotonic()
    demo = prepare(settings, folder, data, items)
    say(f"{demo.data.name} from {demo.data.source}; everything goes to {folder}/")
    say(f"$ export SPOOR_CONFIG={quote(str(demo.config))}")
    done = {step.name: _run_step(demo, step) for step in STEPS}
    result = report(demo, done)
    print_summary(demo, result)
    if done["verify"]["differences"]:
        raise ProblemsFound(
            f"verify found {done['verify']['differences']:,} differences",
            hint=f"`spoor --config {demo.config} verify --json` shows examples",
        )
    return {"steps": done, "report": str(folder / "report.html"), "seconds": round(time.monotonic() - started, 1)}


def _run_step(demo: Demo, step: Step) -> dict[str, Any]:
    say(f"\n{step.title}")
    for command in step.commands(demo):
        say(f"$ {command}")
    done = demo.steps.get(step.name)
    if done is not None and not step.always:
        say(f"reused: {step.outcome(done)}")
        return done
    before = time.monotonic()
    done = to_json(step.run(demo))
    done |= {"step_seconds": round(time.monotonic() - before, 1)}
    demo.steps.add(step.name, done)
    say(f"{step.outcome(done)} ({done['step_seconds']} s)")
    return done
