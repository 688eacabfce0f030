"""How many optimiser steps a run takes: decided once, near its start, written down, and then kept.

The learning rate follows the number of steps and never the clock: equal settings, seed and number of steps give equal
losses on a fast machine and on a busy one (docs/decisions/0020). With `pretrain.steps` the number is given. With
`pretrain.max_minutes` alone it follows from the speed of the first MEASURED_STEPS steps, which are the same whatever
the number will be. Afterwards the clock can only end a run that turns out slower than it was measured to be.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

MEASURED_STEPS = 20  # of the first stage; for so long the learning rate does not depend on the number of steps
FEWEST_MEASURED = 3  # steps of this process, after a resumption
_COLD_STEPS = 2  # at the start, not measured
_PLANNED_SHARE = 0.9  # of the time left; the rest is for a machine that slows down
_DIGITS = 2  # of the number of steps: equal machines measure equal speeds to no more

Source = Literal["steps", "max_minutes"]  # the setting of [pretrain] that decided


@dataclass(frozen=True)
class StepPlan:
    """Optimiser steps of the two stages. `whole`: as many as the epochs ask for."""

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
        """How much of a stage is done after `steps` of its steps; 0 while the first stage is being measured."""
        if self.whole:
            return 0.0  # the epochs say it
        unmeasured = 0 if stage == "refit" else min(MEASURED_STEPS, self.fit)
        return max(steps - unmeasured, 0) / max(self.of(stage) - unmeasured, 1)


def divide(total: int, *, fit: int, refit: int, source: Source) -> StepPlan:
    """At most `total` steps for stages that ask for `fit` and `refit`: the refit gets what it asks for, up to half, and
    nothing of the first MEASURED_STEPS."""
    if total >= fit + refit:
        return StepPlan(fit, refit, True, source)
    given = min(refit, total // 2, max(total - MEASURED_STEPS, 0))
    return StepPlan(min(total - given, fit), given, False, source)


class Clock:
    """Seconds of the run, those of earlier resumptions included. `allowed`: infinite without a limit."""

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
    """What steps and evaluations have taken so far in this process."""

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
        """The mean of a step."""
        warm = self._steps[_COLD_STEPS:] or self._steps
        return sum(warm) / max(len(warm), 1)

    def steps_in(self, seconds: float, *, steps_per_epoch: int) -> int:
        """How many further steps are planned in this time, with an evaluation after each epoch and one at the end."""
        evaluation = self.evaluation_seconds or 0.0
        per_step = max(self.step_seconds + evaluation / max(steps_per_epoch, 1), 1e-9)
        return max(int((_PLANNED_SHARE * seconds - evaluation) / per_step), 0)


def rounded_down(steps: int) -> int:
    unit = 10 ** max(len(str(steps)) - _DIGITS, 0)
    return steps // unit * unit
