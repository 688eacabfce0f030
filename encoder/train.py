"""The training loop: epochs over the batches of each stage, measured, checkpointed, stopped in time.

Stage `fit` trains on the training events and is measured on the validation events after each epoch; it ends after its
epochs, when `patience` epochs brought nothing better, or when its share of the time is used. Stage `refit` goes on from
the best averaged weights over training and validation events at a low rate.
"""

from __future__ import annotations

import math
import os
import resource
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from activity.errors import DataError
from encoder.batches import BatchReader
from encoder.checkpoint import TrainState, save_checkpoint
from encoder.parallel import ALONE, Processes
from encoder.progress import TrainingLog, TrainingProgress
from encoder.settings import PretrainSettings
from encoder.step import take_step
from encoder.validation import Validator

_LOWEST_RATE = 0.05  # of the learning rate, at the end of the first stage
_KEPT_BACK = 0.03  # share of the allowed time that is left for the last measurement and for writing the release
_LOG_STEPS = 20  # between scalars


@dataclass(frozen=True, eq=False)
class Stage:
    """One pass plan. `answer_shares` float64[V + 1]: of each item among the answers of its events."""

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
    """What the loop needs to know. `identity`: by which a checkpoint is known to belong to this run."""

    name: str  # of the release
    settings: PretrainSettings
    stages: tuple[Stage, ...]
    validator: Validator
    folder: Path  # of the checkpoint and of the TensorBoard log
    identity: Mapping[str, Any]

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint.safetensors"


class Clock:
    """Seconds of the run, those of earlier resumptions included. `allowed`: infinite without a limit."""

    def __init__(self, *, done: float, allowed: float) -> None:
        self._started = time.perf_counter() - done
        self.allowed = allowed

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._started


def train(
    state: TrainState,
    schedule: Schedule,
    *,
    processes: Processes = ALONE,
    seconds_before: float = 0.0,
    stop_after: int | None = None,
) -> None:
    """Runs every stage from where `state` stands. `seconds_before`: what the run took before this call, of the time
    that pretrain.max_minutes allows; `stop_after`: return once this many steps are done in all. Raises DataError when
    training diverges or a weighted loss has seen nothing."""
    settings = schedule.settings
    allowed = settings.max_minutes * 60 * (1 - _KEPT_BACK) or math.inf
    if settings.mixture == "fitted":  # which takes about as long after training as the links took before it
        allowed = max(allowed - seconds_before, allowed / 2)
    clock = Clock(done=max(state.seconds, seconds_before), allowed=allowed)
    if state.step == 0:
        state.stage_began = clock.seconds
    with ExitStack() as stack:
        stack.enter_context(_threads(settings.threads or available_threads(processes)))
        stack.enter_context(torch.random.fork_rng())
        total = sum(stage.tokens * stage.epochs for stage in schedule.stages)
        quiet = not processes.first
        shown = stack.enter_context(TrainingProgress(total, done=state.tokens, quiet=quiet))
        log = stack.enter_context(
            TrainingLog.open(schedule.folder, settings.mlflow_uri, run_name=schedule.name, quiet=quiet)
        )
        while state.stage < len(schedule.stages):
            stage = schedule.stages[state.stage]
            while state.epoch < stage.epochs and not _is_over(state, schedule, clock, processes):
                count = stage.reader.batches(state.epoch)
                for batch in stage.reader.epoch(state.epoch, start_batch=state.batch):
                    share = processes.tell(_share_done(state, schedule, clock, batches=count))
                    if share >= 1:
                        break
                    rate = _learning_rate(settings, stage, share, state.step)
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
                    shown.advance(batch.tokens, loss=loss)
                    if state.step % _LOG_STEPS == 0:
                        log.scalars(state.step, {"loss": loss, "learning_rate": rate})
                    if processes.first and state.step % settings.checkpoint_steps == 0:
                        state.seconds = clock.seconds
                        save_checkpoint(schedule.checkpoint, state, schedule.identity)
                    if state.step == stop_after:
                        return
                _end_epoch(state, schedule, stage, clock, log, processes)
            _end_stage(state, schedule, clock)
    state.seconds = clock.seconds


def _is_over(state: TrainState, schedule: Schedule, clock: Clock, processes: Processes) -> bool:
    """Whether the stage ends before its last epoch."""
    settings = schedule.settings
    stale = len(state.evaluations) - 1 - state.best_epoch
    if state.stage == 0 and state.evaluations and settings.patience and stale >= settings.patience:
        return True
    return processes.tell(_share_of_time(state, schedule, clock)) >= 1


def _end_epoch(
    state: TrainState, schedule: Schedule, stage: Stage, clock: Clock, log: TrainingLog, processes: Processes
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


def _end_stage(state: TrainState, schedule: Schedule, clock: Clock) -> None:
    if schedule.settings.future_token_weight and not state.future_pairs:
        raise DataError(
            f"the future-token loss has weight {schedule.settings.future_token_weight} and saw no pair",
            hint="set pretrain.future_token_weight to 0, or train on longer histories",
        )
    if state.stage == 0 and state.best:
        state.optimiser.restart(state.best)
    state.stage, state.epoch, state.batch = state.stage + 1, 0, 0
    state.stage_began = clock.seconds


def _measure(state: TrainState, schedule: Schedule) -> dict[str, float]:
    state.average.eval()
    return schedule.validator.measure(state.average)


def _share_done(state: TrainState, schedule: Schedule, clock: Clock, *, batches: int) -> float:
    """How much of the stage is done, by work or by time."""
    stage = schedule.stages[state.stage]
    by_work = (state.epoch + state.batch / max(batches, 1)) / stage.epochs
    return max(by_work, _share_of_time(state, schedule, clock))


def _share_of_time(state: TrainState, schedule: Schedule, clock: Clock) -> float:
    """How much of the stage's time is used; 0 without a limit. The first stage leaves the others what they will need
    at the speed so far."""
    if math.isinf(clock.allowed):
        return 0.0
    later = sum(stage.tokens * stage.epochs for stage in schedule.stages[state.stage + 1 :])
    needed = later * (clock.seconds - state.stage_began) / state.tokens if state.tokens else 0.0
    end = clock.allowed - min(needed, clock.allowed / 2)
    return (clock.seconds - state.stage_began) / max(end - state.stage_began, 1e-9)


def _learning_rate(settings: PretrainSettings, stage: Stage, share_done: float, step: int) -> float:
    """`fit`: up from 0, then a cosine down or level. `refit`: a part of it, straight down."""
    if stage.name == "refit":
        return settings.learning_rate * settings.refit_rate * (1 - share_done)
    rising = min((step + 1) / (settings.warmup_steps + 1), 1.0)
    falling = _LOWEST_RATE + (1 - _LOWEST_RATE) * (1 + math.cos(math.pi * share_done)) / 2
    return settings.learning_rate * rising * (falling if settings.schedule == "cosine" else 1.0)


def available_threads(processes: Processes) -> int:
    """This process's share of the cores that it may run on."""
    return max(len(os.sched_getaffinity(0)) // processes.here, 1)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
