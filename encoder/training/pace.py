"""The number of optimiser steps of a run: decided once near its start, saved in the checkpoint, never changed.

The learning rate depends on the number of steps, not on the clock: equal settings, seed and number of steps give equal
losses on a fast machine and on a busy one (docs/decisions/0020). `pretrain.steps` sets the number. With only
`pretrain.max_minutes`, it follows from the speed of the first MEASURED_STEPS steps, which do not depend on the number.
After that, the clock ends a run only if it is slower than measured.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

MEASURED_STEPS = 20  # first steps of the first stage; their learning rate does not depend on the number of steps
FEWEST_MEASURED = 3  # fewest measured steps of this process, which matters after a resumption
_COLD_STEPS = 2  # first steps of a process, left out of the mean
_PLANNED_SHARE = 0.9  # share of the remaining time; the rest is slack for a machine that slows down
_DIGITS = 2  # significant digits of the number of steps: equal machines agree on speed to no more

Source = Literal["steps", "max_minutes"]  # the setting of [pretrain] that decided the number


@dataclass(frozen=True)
class StepPlan:
    """Optimiser steps of the two stages. `whole`: all steps of all epochs."""

    fit: int
    refit: int
    whole: bool
    source: Source

    @property
    def total(self) -> int:
        return self.fit + self.refit

    def of(self, stage: str) -> int:
        return self.refit if stage == "refit" else self.fit

    def share_done(self, stage: str, steps: int) -> float:
        """Share of a stage done after `steps` of its steps; 0 while the first stage is measured."""
        if self.whole:
            return 0.0  # the caller uses epochs instead
        unmeasured = 0 if stage == "refit" else min(MEASURED_STEPS, self.fit)
        return max(steps - unmeasured, 0) / max(self.of(stage) - unmeasured, 1)


def divide(total: int, *, fit: int, refit: int, source: Source) -> StepPlan:
    """Divides `total` steps between stages that have `fit` and `refit` steps in full. The refit gets all of its steps,
    up to half of `total`, and none of the first MEASURED_STEPS."""
    if total >= fit + refit:
        return StepPlan(fit, refit, True, source)
    given = min(refit, total // 2, max(total - MEASURED_STEPS, 0))
    return StepPlan(min(total - given, fit), given, False, source)


class Clock:
    """Seconds of the run, including earlier resumptions. `allowed`: seconds, infinite without a limit."""

    def __init__(self, *, done: float, allowed: float, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now
        self._started = now() - done
        self.allowed = allowed

    @property
    def limited(self) -> bool:
        return math.isfinite(self.allowed)

    @property
    def seconds(self) -> float:
        return self._now() - self._started


class Pace:
    """Durations of steps and of the last evaluation in this process, in seconds."""

    def __init__(self) -> None:
        self._steps: list[float] = []
        self.evaluation_seconds: float | None = None

    @property
    def measured(self) -> int:
        return len(self._steps)

    def step_took(self, seconds: float) -> None:
        self._steps.append(seconds)

    @property
    def step_seconds(self) -> float:
        """Mean seconds of a step."""
        warm = self._steps[_COLD_STEPS:] or self._steps
        return sum(warm) / max(len(warm), 1)

    def steps_in(self, seconds: float, *, steps_per_epoch: int) -> int:
        """Further steps that fit in `seconds`, with an evaluation after each epoch and one at the end."""
        evaluation = self.evaluation_seconds or 0.0
        per_step = max(self.step_seconds + evaluation / max(steps_per_epoch, 1), 1e-9)
        return max(int((_PLANNED_SHARE * seconds - evaluation) / per_step), 0)


def rounded_down(steps: int) -> int:
    unit = 10 ** max(len(str(steps)) - _DIGITS, 0)
    return steps // unit * unit
