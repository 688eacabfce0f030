"""Pretraining: the events of the lake to a release.

Stage `fit` trains on the events before a time and is measured on those after it; stage `refit` then passes over all
events at a low rate, since the newest are worth most. What is released is the averaged weights.
A run that was killed goes on from its last checkpoint and, on the same machine, repeats the losses bit for bit.
"""

from __future__ import annotations

import math
import platform
import resource
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from activity.errors import DataError, UsageError
from activity.lake import Lake
from activity.release_names import check_release_name
from encoder.checkpoint import TrainState, load_checkpoint, save_checkpoint
from encoder.config import MODEL_CONFIGS, ModelConfig
from encoder.data import (
    Activity,
    Batch,
    TrainingEvents,
    build_vocabulary,
    epoch_order,
    load_batch,
    positives_by_user,
    read_activity,
    segments,
    training_events,
)
from encoder.evaluation import HeldOut, evaluate, hold_out
from encoder.inference import new_model
from encoder.losses import all_items, draw_candidates, next_item_loss, own_positives
from encoder.progress import TrainingProgress, draw_curve
from encoder.release import ReleaseInfo, check_free, save_release
from encoder.settings import PretrainSettings
from encoder.vocabulary import Indexes, Vocabulary

DTYPE_POLICY = (
    "float32 for weights, activations and optimiser: processors without bfloat16 matrix units gain nothing from less, "
    "and batch and stream must agree on a vector to 1e-5"
)
_REFIT_RATE = 0.1  # of the learning rate, in the second stage
_LONGEST_GRADIENT = 1.0
_LOWEST_RATE = 0.01  # of the learning rate, at the end of the first stage


@dataclass(frozen=True, eq=False)
class Stage:
    """One pass plan. `target_shares` float64[V + 1] and `positives` (one array per user) serve the negatives."""

    name: str
    events: TrainingEvents
    slices: Indexes
    target_shares: np.ndarray
    positives: list[Indexes]
    epochs: int

    @property
    def tokens(self) -> int:
        return int((self.slices[:, 2] - self.slices[:, 1]).sum())


@dataclass(frozen=True, eq=False)
class Plan:
    """What a run will do; nothing is written yet."""

    out: Path
    settings: PretrainSettings
    model: ModelConfig
    vocabulary: Vocabulary
    activity: Activity
    stages: tuple[Stage, ...]
    held_out: HeldOut
    held_out_from_ms: int

    @property
    def identity(self) -> dict[str, Any]:
        """By what a checkpoint is known to belong to this run."""
        return {
            "settings": asdict(self.settings),
            "model": self.model.to_json(),
            "data_fingerprint": self.activity.fingerprint,
        }

    @property
    def checkpoint(self) -> Path:
        return self.out.parent / f".training-{self.out.name}" / "checkpoint.safetensors"

    def lines(self) -> list[str]:
        """The plan in words."""
        events = self.activity.histories
        epochs = " + ".join(f"{stage.epochs} x {stage.tokens:,} events ({stage.name})" for stage in self.stages)
        return [
            f"events: {len(events.values):,} of {events.count:,} users over {len(self.vocabulary.items):,} items",
            f"training: {epochs}; {len(self.held_out.predictions):,} events held out to measure quality",
            f"model: {self.settings.model}, {self.model.dimension} dimensions, "
            f"newest {self.model.max_events} events, {self.model.layers} layers",
            f"precision: {DTYPE_POLICY}",
            f"release: {self.out}",
        ]


@dataclass(frozen=True, eq=False)
class PretrainResult:
    """`release` is None after a dry run."""

    plan: list[str]
    release: ReleaseInfo | None
    metrics: dict[str, float]
    losses: list[float]


def run_pretrain(
    source: Lake | pa.Table,
    *,
    out: Path,
    settings: PretrainSettings,
    until_ms: int | None = None,
    resume: bool = False,
    dry_run: bool = False,
    overwrite: bool = False,
) -> PretrainResult:
    """Trains on every event before `until_ms` (exclusive) and writes the release folder `out`, named by its last part.

    `source`: the lake, or a table of EVENT_SCHEMA. `resume` goes on from the checkpoint of a killed run, if there is
    one. Says what it will do, and how far it is, on stderr. Raises UsageError, DataError, InfrastructureError.
    """
    check_release_name(out.name)
    check_free(out, overwrite=overwrite)
    plan = make_plan(source, out=out, settings=settings, until_ms=until_ms)
    for line in plan.lines():
        print(line, file=sys.stderr)
    if dry_run:
        return PretrainResult(plan.lines(), None, {}, [])
    state = TrainState.fresh(new_model(plan.model, plan.vocabulary), settings)
    if resume and plan.checkpoint.exists():
        load_checkpoint(plan.checkpoint, state, plan.identity)
        print(f"resuming after step {state.step} from {plan.checkpoint}", file=sys.stderr)
    train(state, plan)
    metrics = _final_metrics(state, plan)
    info = save_release(
        out,
        model=plan.model,
        weights={name: value.numpy() for name, value in state.averaged_model.state_dict().items()},
        vocabulary=plan.vocabulary,
        trained_through_ms=plan.activity.newest_ms,
        data_fingerprint=plan.activity.fingerprint,
        metrics=metrics,
        training=asdict(settings) | {"torch": torch.__version__, "processor": platform.machine()},
        curve_png=draw_curve(state.losses, state.evaluations, title=f"{out.name}: pretraining"),
        overwrite=overwrite,
    )
    shutil.rmtree(plan.checkpoint.parent, ignore_errors=True)
    return PretrainResult(plan.lines(), info, metrics, state.losses)


def make_plan(source: Lake | pa.Table, *, out: Path, settings: PretrainSettings, until_ms: int | None = None) -> Plan:
    """Reads the events and divides them. Raises DataError when there are too few, UsageError for unknown actions."""
    activity = read_activity(source, until_ms=until_ms)
    _check_actions(settings, activity)
    vocabulary = build_vocabulary(activity)
    times = activity.histories.values["timestamp"]
    from_ms = int(np.quantile(times, 1 - settings.validation_share, method="higher"))
    model = MODEL_CONFIGS[settings.model]
    every = training_events(activity.histories, vocabulary, positive_actions=settings.positive_actions)
    before = training_events(
        activity.histories, vocabulary, positive_actions=settings.positive_actions, before_ms=from_ms
    )
    planned = [("fit", before, settings.epochs)]
    if settings.refit_epochs:
        planned.append(("refit", every, settings.refit_epochs))
    stages = tuple(_stage(name, events, vocabulary, model, epochs) for name, events, epochs in planned)
    held_out = hold_out(every, times, from_ms=from_ms, vocabulary_size=len(vocabulary.items), seed=settings.seed)
    return Plan(out, settings, model, vocabulary, activity, stages, held_out, from_ms)


def train(state: TrainState, plan: Plan, *, stop_after: int | None = None) -> None:
    """Runs every stage from where `state` stands. `stop_after`: return once this many steps are done in all."""
    total = sum(stage.tokens * stage.epochs for stage in plan.stages)
    with (
        _threads(plan.settings.threads),
        torch.random.fork_rng(devices=[]),
        TrainingProgress(total, done=_tokens_done(state, plan)) as progress,
    ):
        for stage, batch, share_done in _remaining(state, plan):
            started = time.perf_counter()
            loss = _step(state, plan, stage, batch, share_done)
            state.step += 1
            state.batch += 1
            state.losses.append(loss)
            state.seconds += time.perf_counter() - started
            progress.advance(batch.tokens, loss=loss)
            if state.step % plan.settings.checkpoint_steps == 0:
                save_checkpoint(plan.checkpoint, state, plan.identity)
            if state.step == stop_after:
                return


def _remaining(state: TrainState, plan: Plan) -> Iterator[tuple[Stage, Batch, float]]:
    """The batches still to be taken, each with the share of its stage that is done; moves `state` over the ends of
    epochs and stages, and evaluates after each epoch of `fit`."""
    settings = plan.settings
    while state.stage < len(plan.stages):
        stage = plan.stages[state.stage]
        while state.epoch < stage.epochs:
            seed = settings.seed + state.stage
            order = epoch_order(stage.slices, seed=seed, epoch=state.epoch, token_budget=settings.token_budget)
            while state.batch < len(order):
                share = max((state.epoch + state.batch / len(order)) / stage.epochs, _share_of_time(state, plan))
                if share >= 1:
                    break
                yield stage, load_batch(stage.events, order[state.batch]), share
            state.epoch, state.batch = state.epoch + 1, 0
            _end_epoch(state, plan, stage)
            if _share_of_time(state, plan) >= 1:
                break
        state.stage, state.epoch = state.stage + 1, 0


def _share_of_time(state: TrainState, plan: Plan) -> float:
    """How much of `max_minutes` the first stage has used; 0 without a limit and in later stages."""
    if not plan.settings.max_minutes or state.stage > 0:
        return 0.0
    work = [stage.tokens * stage.epochs for stage in plan.stages]
    return state.seconds / (60 * plan.settings.max_minutes * work[0] / sum(work))


def _step(state: TrainState, plan: Plan, stage: Stage, batch: Batch, share_done: float) -> float:
    """Forward, backward, finite check, optimiser. Returns the loss."""
    settings = plan.settings
    torch.manual_seed(settings.seed * 1_000_003 + state.step)  # dropout of this step
    rng = np.random.default_rng([settings.seed, state.step])
    for group in state.optimiser.param_groups:
        group["lr"] = _learning_rate(settings, stage, share_done)
    positions = batch.targets.nonzero().squeeze(1)
    if len(positions) == 0:
        return 0.0
    targets = batch.targets[positions]
    if settings.negatives == "full":
        candidates, left_out = all_items(len(plan.vocabulary.items)), None
    else:
        uniform = settings.uniform_negatives if settings.negatives == "mixed" else 0
        candidates = draw_candidates(targets.numpy(), answer_shares=stage.target_shares, uniform=uniform, rng=rng)
        segment = torch.arange(len(batch.users)).repeat_interleave(batch.offsets.diff())[positions]
        left_out = own_positives(candidates, [stage.positives[user] for user in batch.users])[segment]
    hidden = torch.from_numpy(rng.random(batch.tokens) < settings.unknown_item_share)
    vectors = state.model(batch.items.masked_fill(hidden, 0), batch.actions, batch.surfaces, batch.offsets)
    loss = next_item_loss(
        vectors[positions],
        state.model.targets(candidates.items),
        candidates,
        targets,
        temperature=state.model.temperature,
        left_out=left_out,
    )
    state.optimiser.zero_grad()
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(state.model.parameters(), _LONGEST_GRADIENT)
    if not (math.isfinite(loss.item()) and math.isfinite(norm.item())):
        raise DataError(
            f"training diverged at step {state.step}: loss {loss.item()}, gradient norm {norm.item()}",
            hint="lower pretrain.learning_rate; the last checkpoint is from before this step",
        )
    state.optimiser.step()
    state.average.update_parameters(state.model)
    return loss.item()


def _learning_rate(settings: PretrainSettings, stage: Stage, share_done: float) -> float:
    """`fit`: up from 0, then a cosine down. `refit`: a tenth, straight down."""
    if stage.name == "refit":
        return settings.learning_rate * _REFIT_RATE * (1 - share_done)
    rising = share_done / settings.warmup_share if settings.warmup_share else 1.0
    falling = _LOWEST_RATE + (1 - _LOWEST_RATE) * (1 + math.cos(math.pi * share_done)) / 2
    return settings.learning_rate * min(rising + 1e-3, 1.0) * falling


def _end_epoch(state: TrainState, plan: Plan, stage: Stage) -> None:
    if stage.name == "fit":
        found = evaluate(state.averaged_model, plan.held_out)
        state.evaluations.append(found | {"step": state.step})
    recall = state.evaluations[-1]["recall_at_10"]
    rate = _tokens_done(state, plan) / max(state.seconds, 1e-9)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"pretrain stage={stage.name} epoch={state.epoch}/{stage.epochs} step={state.step} "
        f"loss={state.losses[-1]:.4f} recall_at_10={recall:.4f} tokens/s={rate:.0f} peak_memory_mb={memory:.0f}",
        file=sys.stderr,
    )


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _tokens_done(state: TrainState, plan: Plan) -> int:
    """Events trained on so far, to the nearest batch."""
    before = sum(stage.tokens * stage.epochs for stage in plan.stages[: state.stage])
    if state.stage == len(plan.stages):
        return before
    stage = plan.stages[state.stage]
    return before + state.epoch * stage.tokens + min(state.batch * plan.settings.token_budget, stage.tokens)


def _stage(name: str, events: TrainingEvents, vocabulary: Vocabulary, model: ModelConfig, epochs: int) -> Stage:
    targets = events.targets[events.targets > 0]
    if len(targets) == 0:
        raise DataError(
            f"stage {name}: no user has a positive event after another event, so there is nothing to predict",
            hint="train on more events, or name other actions in pretrain.positive_actions",
        )
    shares = np.bincount(targets, minlength=len(vocabulary.items) + 1) / len(targets)
    slices = segments(events.offsets, max_events=model.max_events)
    return Stage(name, events, slices, shares, positives_by_user(events), epochs)


def _check_actions(settings: PretrainSettings, activity: Activity) -> None:
    unknown = sorted(set(settings.positive_actions) - set(activity.action_names))
    if unknown:
        raise UsageError(
            f"pretrain.positive_actions names {', '.join(unknown)}, which no event carries",
            hint=f"the events carry: {', '.join(activity.action_names)}",
        )


def _final_metrics(state: TrainState, plan: Plan) -> dict[str, float]:
    measured = {name: value for name, value in state.evaluations[-1].items() if name != "step"}
    return measured | {
        "held_out_from_ms": plan.held_out_from_ms,
        "final_loss": float(np.mean(state.losses[-50:])),
        "steps": state.step,
        "training_seconds": round(state.seconds, 1),
        "training_events": len(plan.activity.histories.values),
        "training_users": plan.activity.histories.count,
        "known_items": len(plan.vocabulary.items),
    }
