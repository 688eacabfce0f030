"""The training loop: epochs over the batches of each stage, with evaluation, checkpoints and a time limit.

Stage `fit` trains on the training events and is evaluated on the validation events after each epoch. It ends after its
epochs, after `patience` epochs without improvement, or after its planned steps (pace.py). Stage `refit` continues from
the best averaged weights on training and validation events at a low learning rate. The clock ends a stage only if the
run is slower than measured at its start.
"""

from __future__ import annotations

import math
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from spoor.base.errors import DataError, UsageError
from spoor.base.numbers import number_text
from spoor.encoder.data.batches import BatchReader
from spoor.encoder.evaluation.validation import Validator
from spoor.encoder.training.checkpoint import TrainState, save_checkpoint
from spoor.encoder.training.pace import (
    FEWEST_MEASURED,
    MEASURED_STEPS,
    Clock,
    Pace,
    StepPlan,
    divide,
    rounded_down,
)
from spoor.encoder.training.parallel import ALONE, Processes
from spoor.encoder.training.progress import TrainingLog, training_progress
from spoor.encoder.training.settings import PretrainSettings
from spoor.encoder.training.step import take_step

_LOWEST_RATE = 0.05  # share of the learning rate left at the end of the first stage
_KEPT_BACK = 0.03  # share of the allowed time reserved for the last evaluation and for writing the release
_LOG_STEPS = 20  # steps between logged scalars
EndedBy = Literal["epochs", "patience", "steps", "max_minutes", "clock"]


@dataclass(frozen=True, eq=False)
class Stage:
    """One stage of training. `answer_shares` float64[V + 1]: share of each item among the targets of the stage."""

    name: str
    reader: BatchReader
    answer_shares: np.ndarray
    epochs: int

    @property
    def tokens(self) -> int:
        """Events of one epoch."""
        return int(self.reader.lengths.sum())


@dataclass(frozen=True, eq=False)
class Schedule:
    """The input of the loop. `identity`: compared with a checkpoint's to decide whether it is of this run."""

    name: str  # of the release
    settings: PretrainSettings
    stages: tuple[Stage, ...]
    validator: Validator
    folder: Path  # of the checkpoint and of the TensorBoard log
    identity: Mapping[str, Any]

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint.safetensors"


def train(
    state: TrainState,
    schedule: Schedule,
    *,
    processes: Processes = ALONE,
    seconds_before: float = 0.0,
    stop_after: int | None = None,
    now: Callable[[], float] = time.perf_counter,
) -> None:
    """Runs every stage, starting at the position in `state`. `seconds_before`: time the run took before this call,
    counted against pretrain.max_minutes; `stop_after`: return after this many steps in total; `now`: a clock in
    seconds. Raises DataError when training diverges or the future-token loss has a weight but saw no pair, UsageError
    when the time is over before the first step."""
    settings = schedule.settings
    allowed = settings.max_minutes * 60 * (1 - _KEPT_BACK) or math.inf
    if settings.mixture == "fitted":  # fitting takes about as long after training as counting links took before
        allowed = max(allowed - seconds_before, allowed / 2)
    clock, pace = Clock(done=max(state.seconds, seconds_before), allowed=allowed, now=now), Pace()
    if state.step == 0:
        state.stage_began = clock.seconds
        _check_time(settings, clock, processes)
    if state.planned is None:
        state.planned = _plan_steps(state, schedule, clock, pace, processes)
    with ExitStack() as stack:
        stack.enter_context(_threads(settings.threads or available_threads(processes)))
        stack.enter_context(torch.random.fork_rng())
        total = sum(stage.tokens * stage.epochs for stage in schedule.stages)
        quiet = not processes.first
        advance = stack.enter_context(training_progress(total, done=state.tokens, quiet=quiet))
        log = stack.enter_context(
            TrainingLog.open(schedule.folder, settings.mlflow_uri, run_name=schedule.name, quiet=quiet)
        )
        while state.stage < len(schedule.stages):
            stage = schedule.stages[state.stage]
            ended = _ended_by(state, schedule, clock, processes)
            while ended is None:
                count = stage.reader.batches(state.epoch)
                began = clock.seconds
                for batch in stage.reader.epoch(state.epoch, start_batch=state.batch):
                    ended = _limit_reached(state, schedule, clock, processes)
                    if ended is not None:
                        break
                    rate = _learning_rate(settings, stage, _share_done(state, stage, batches=count), state.step)
                    loss = take_step(
                        state,
                        batch,
                        settings=settings,
                        answer_shares=stage.answer_shares,
                        rate=rate,
                        processes=processes,
                    )
                    state.step += 1
                    state.batch += 1
                    state.tokens += batch.tokens
                    state.losses.append(loss)
                    seconds = clock.seconds
                    pace.step_took(seconds - began)
                    began = seconds
                    advance(batch.tokens, loss)
                    if state.step % _LOG_STEPS == 0:
                        log.scalars(state.step, {"loss": loss, "learning_rate": rate})
                    if state.planned is None:
                        state.planned = _plan_steps(state, schedule, clock, pace, processes)
                    if processes.first and state.step % settings.checkpoint_steps == 0 and _decided(state, settings):
                        state.seconds = clock.seconds
                        save_checkpoint(schedule.checkpoint, state, schedule.identity)
                    if state.step == stop_after:
                        return
                began = clock.seconds
                _end_epoch(state, schedule, stage, clock, log, processes)
                pace.evaluation_seconds = clock.seconds - began
                ended = ended or _ended_by(state, schedule, clock, processes)
            _end_stage(state, schedule, clock, ended, processes)
    state.seconds = clock.seconds


def _check_time(settings: PretrainSettings, clock: Clock, processes: Processes) -> None:
    if processes.tell(clock.seconds >= clock.allowed):
        enough = max(math.ceil(clock.seconds / 60 * 40) / 10, 0.5)  # four times the time so far
        raise UsageError(
            f"pretrain.max_minutes is {number_text(settings.max_minutes)} and {clock.seconds / 60:.2f} minutes had "
            "passed before the first step: nothing was learned, no release was written",
            hint=f"allow at least --max-minutes {enough:g}, or 0 for no limit",
        )


def _decided(state: TrainState, settings: PretrainSettings) -> bool:
    """Whether the number of steps is decided: a run resumed without it could decide on another number."""
    return state.planned is not None or not (settings.steps or settings.max_minutes)


def _plan_steps(
    state: TrainState, schedule: Schedule, clock: Clock, pace: Pace, processes: Processes
) -> StepPlan | None:
    """The number of steps, once it is known; None until then, and if nothing limits the steps."""
    settings = schedule.settings
    fit, refit = (_whole_steps(schedule, name) for name in ("fit", "refit"))
    if settings.steps:
        return divide(settings.steps, fit=fit, refit=refit, source="steps")
    if not clock.limited or state.stage or state.step < MEASURED_STEPS or pace.measured < FEWEST_MEASURED:
        return None
    if pace.evaluation_seconds is None and processes.first:
        began = clock.seconds
        _measure(state, schedule)
        pace.evaluation_seconds = clock.seconds - began
    epoch = schedule.stages[0].reader.batches(0)
    fitting = state.step + pace.steps_in(clock.allowed - clock.seconds, steps_per_epoch=epoch)
    total = processes.tell(fitting if fitting >= fit + refit else max(rounded_down(fitting), state.step))
    planned = divide(total, fit=fit, refit=refit, source="max_minutes")
    if processes.first:
        print(
            f"pretrain steps={planned.fit} refit_steps={planned.refit} of={fit + refit} "
            f"step_seconds={pace.step_seconds:.4f} evaluation_seconds={pace.evaluation_seconds or 0:.2f} "
            f"(decided now and kept; pretrain.steps={total} repeats this run)",
            file=sys.stderr,
        )
    return planned


def _whole_steps(schedule: Schedule, name: str) -> int:
    """Steps in all epochs of a stage, assuming that each has as many batches as the first."""
    return sum(stage.reader.batches(0) * stage.epochs for stage in schedule.stages if stage.name == name)


def _ended_by(state: TrainState, schedule: Schedule, clock: Clock, processes: Processes) -> EndedBy | None:
    """The reason to end the stage before its next epoch, or None."""
    settings, stage = schedule.settings, schedule.stages[state.stage]
    if state.epoch >= stage.epochs:
        return "epochs"
    stale = len(state.evaluations) - 1 - state.best_epoch
    if state.stage == 0 and state.evaluations and settings.patience and stale >= settings.patience:
        return "patience"
    return _limit_reached(state, schedule, clock, processes)


def _limit_reached(state: TrainState, schedule: Schedule, clock: Clock, processes: Processes) -> EndedBy | None:
    """The reason to end the stage before its next step (planned steps taken, or time over), or None."""
    planned, stage = state.planned, schedule.stages[state.stage]
    if planned is not None and not planned.whole and _stage_steps(state) >= planned.of(stage.name):
        return planned.source
    return "clock" if _out_of_time(state, schedule, clock, processes) else None


def _out_of_time(state: TrainState, schedule: Schedule, clock: Clock, processes: Processes) -> bool:
    """Whether the time is over. At least one step is always taken, since an untrained model must not be released. The
    first stage leaves time for the refit at the measured speed, at most half of the allowed time."""
    if not clock.limited or not state.step:
        return False
    seconds, steps, later = clock.seconds, _stage_steps(state), 0.0
    if state.stage == 0 and state.planned is not None and steps:
        later = min(state.planned.refit * (seconds - state.stage_began) / steps, clock.allowed / 2)
    return processes.tell(seconds >= clock.allowed - later)


def _stage_steps(state: TrainState) -> int:
    """Steps taken in the current stage."""
    return state.step - (int(state.evaluations[-1]["step"]) if state.stage else 0)


def _end_epoch(
    state: TrainState,
    schedule: Schedule,
    stage: Stage,
    clock: Clock,
    log: TrainingLog,
    processes: Processes,
) -> None:
    state.epoch, state.batch = state.epoch + 1, 0
    if stage.name == "fit":
        found = processes.tell(_measure(state, schedule) if processes.first else {})
        state.evaluations.append(found | {"step": state.step})
        log.scalars(state.step, found)
        best = state.evaluations[state.best_epoch]["ndcg_at_10"] if state.best_epoch >= 0 else -math.inf
        if found["ndcg_at_10"] > best:
            state.keep_best()
    if processes.first:
        measured = state.evaluations[-1]
        rate = state.tokens / max(clock.seconds, 1e-9)
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(
            f"pretrain stage={stage.name} epoch={state.epoch}/{stage.epochs} step={state.step} "
            f"loss={np.mean(state.losses[-50:]):.4f} recall_at_10={measured['recall_at_10']:.4f} "
            f"ndcg_at_10={measured['ndcg_at_10']:.4f} tokens/s={rate:.0f} seconds={clock.seconds:.0f} "
            f"peak_memory_mb={memory:.0f}",
            file=sys.stderr,
        )


def _end_stage(state: TrainState, schedule: Schedule, clock: Clock, ended_by: EndedBy, processes: Processes) -> None:
    if schedule.settings.future_token_weight and not state.future_pairs:
        raise DataError(
            f"the future-token loss has weight {schedule.settings.future_token_weight} and saw no pair",
            hint="set pretrain.future_token_weight to 0, or train on longer histories",
        )
    stage = schedule.stages[state.stage]
    if ended_by == "clock":
        state.cut = True
        planned = f"of {state.planned.of(stage.name)} planned " if state.planned else ""
        if processes.first:
            print(
                f"pretrain: the time was over after {_stage_steps(state)} {planned}steps of stage {stage.name}, slower "
                "than measured; the learning rate had not come down",
                file=sys.stderr,
            )
    if state.stage == 0:
        state.ended_by = "max_minutes" if ended_by == "clock" else ended_by
        if (
            state.planned is None and ended_by == "clock"
        ):  # before the speed was measured: the steps taken become the plan
            state.planned = StepPlan(state.step, 0, False, "max_minutes")
    if state.stage == 0 and state.best:
        state.optimiser.restart(state.best)
    state.stage, state.epoch, state.batch = state.stage + 1, 0, 0
    state.stage_began = clock.seconds


def _measure(state: TrainState, schedule: Schedule) -> dict[str, float]:
    state.average.eval()
    return schedule.validator.measure(state.average)


def _share_done(state: TrainState, stage: Stage, *, batches: int) -> float:
    """Share of the stage that is done, by epochs or by planned steps, whichever is larger."""
    by_work = (state.epoch + state.batch / max(batches, 1)) / stage.epochs
    planned = state.planned
    return by_work if planned is None else max(by_work, planned.share_done(stage.name, _stage_steps(state)))


def _learning_rate(settings: PretrainSettings, stage: Stage, share_done: float, step: int) -> float:
    """`fit`: warm-up from 0, then cosine decay or constant. `refit`: starts at refit_rate of it, linear decay to 0."""
    if stage.name == "refit":
        return settings.learning_rate * settings.refit_rate * (1 - share_done)
    rising = min((step + 1) / (settings.warmup_steps + 1), 1.0)
    falling = _LOWEST_RATE + (1 - _LOWEST_RATE) * (1 + math.cos(math.pi * share_done)) / 2
    return settings.learning_rate * rising * (falling if settings.schedule == "cosine" else 1.0)


def available_threads(processes: Processes) -> int:
    """This process's share of the cores it may run on."""
    return max(len(os.sched_getaffinity(0)) // processes.here, 1)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
