"""Pretraining: events to a release.

    lake, table or event file -> corpus on disk -> split -> recipe -> model -> training loop (train.py) -> release

A plan says what a run will do and is the same for the same arguments; a killed run resumes from its last checkpoint
and, on the same machine, repeats the losses bit for bit. The averaged weights are released.
"""

from __future__ import annotations

import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Collection
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import torch
from safetensors.torch import save as save_tensors

from spoor.activity.lake import Lake
from spoor.activity.settings import EventSettings
from spoor.base.errors import DataError, UsageError
from spoor.base.numbers import number_text
from spoor.base.release_names import check_release_name
from spoor.encoder.data.batches import BatchReader, build_vocabulary, target_counts
from spoor.encoder.data.corpus import Corpus
from spoor.encoder.data.item_links import count_links
from spoor.encoder.data.split import TRAIN, VALIDATION, Protocol, Split, make_split, training_statistics
from spoor.encoder.evaluation.mixture import FILE as MIXTURE_FILE
from spoor.encoder.evaluation.mixture import Mixture
from spoor.encoder.evaluation.validation import Validator
from spoor.encoder.model.config import ModelConfig, named_config
from spoor.encoder.model.user_encoder import UserEncoder
from spoor.encoder.model.vocabulary import Vocabulary
from spoor.encoder.release.folder import BEFORE_REFIT_FILE, Release, ReleaseInfo, load_release, save_release
from spoor.encoder.release.inference import new_model
from spoor.encoder.release.staging import check_free
from spoor.encoder.release.training_end import TrainingEnd
from spoor.encoder.training.checkpoint import TrainState, load_checkpoint, look_at_checkpoint
from spoor.encoder.training.loop import Schedule, Stage, train
from spoor.encoder.training.parallel import ALONE, Processes, processes_of_torchrun
from spoor.encoder.training.progress import draw_curve
from spoor.encoder.training.recipe import Recipe, choose
from spoor.encoder.training.settings import PretrainSettings
from spoor.encoder.training.warm_start import start_from_links, start_from_release
from spoor.kernels.backend import require_usable

_MOST_NAMED = 20  # actions of the events in a hint
_COPIES = 5  # of the weights while training: weights, average, two moments, best so far
_LARGE_TABLE = 5_000_000  # floats: from here on rows are updated one by one, where not every row has a gradient


@dataclass(frozen=True, eq=False)
class Plan:
    """What a run will do; nothing is trained yet. `reasons`: why the recipe chose what it chose."""

    out: Path
    settings: PretrainSettings
    model: ModelConfig
    reasons: tuple[str, ...]
    corpus: Corpus
    split: Split
    shuffle_ties: int | None
    vocabulary: Vocabulary
    schedule: Schedule
    trained_through_ms: int
    warm: Release | None

    @property
    def checkpoint(self) -> Path:
        return self.schedule.checkpoint

    def lines(self) -> list[str]:
        """The plan in words."""
        stages = " + ".join(
            f"{stage.epochs} x {stage.tokens:,} events ({stage.name})" for stage in self.schedule.stages
        )
        limit = f", at most {self.settings.steps:,} steps" if self.settings.steps else ""
        limit += f", at most {number_text(self.settings.max_minutes)} minutes" if self.settings.max_minutes else ""
        return [
            f"events: {self.corpus.events:,} of {self.corpus.users:,} users over {len(self.corpus.item_ids):,} items",
            f"protocol: {self.split.protocol}; {self.schedule.validator.questions:,} events measure quality",
            f"training: {stages}{limit}",
            f"model: {self.settings.model}, {self.model.dimension} dimensions, "
            f"newest {self.model.served_length} events, {self.model.layers} layers",
            *(f"recipe: {reason}" for reason in self.reasons),
            *([f"start: release {self.warm.info.name}"] if self.warm else []),
            f"precision: {dtype_policy()}",
            f"release: {self.out}",
        ]


@dataclass(frozen=True, eq=False)
class PretrainResult:
    """`release` is None after a dry run, and in every process of torchrun but the first."""

    plan: list[str]
    release: ReleaseInfo | None
    metrics: dict[str, float]
    losses: list[float]


def dtype_policy() -> str:
    """In which precision training computes here, and why."""
    if torch.cuda.is_available():
        return "bfloat16 for activations, float32 for weights, losses and optimiser: a GPU multiplies bfloat16 faster"
    return (
        "float32 for weights, activations and optimiser: processors without bfloat16 matrix units gain nothing from "
        "less, and batch and stream must agree on a vector to 1e-5"
    )


def run_pretrain(
    source: Lake | pa.Table | Path,
    *,
    out: Path,
    settings: PretrainSettings,
    events: EventSettings | None = None,
    protocol: Protocol = "newest",
    shuffle_ties: int | None = None,
    until_ms: int | None = None,
    warm_start: Path | None = None,
    fixed: Collection[str] = (),
    resume: bool = False,
    dry_run: bool = False,
    overwrite: bool = False,
) -> PretrainResult:
    """Trains on the events before `until_ms` (exclusive) and writes the release folder `out`, named by its last part.

    `source`: the lake, a table of EVENT_SCHEMA, or an event file (event_files.py), whose ties `shuffle_ties`
    orders anew. `warm_start`: the folder of a release to begin with. `fixed`: names of settings that the recipe leaves
    alone, besides those that differ from their defaults. `resume` goes on from the checkpoint of a killed run, if there
    is one. Says what it will do, and how far it is, on stderr. Raises UsageError, DataError, InfrastructureError.
    """
    started = time.perf_counter()
    check_release_name(out.name)
    check_free(out, overwrite=overwrite)
    require_usable()
    with processes_of_torchrun() as processes, tempfile.TemporaryDirectory() as scratch:
        plan = make_plan(
            source,
            out=out,
            settings=settings,
            events=events,
            protocol=protocol,
            shuffle_ties=shuffle_ties,
            until_ms=until_ms,
            warm_start=warm_start,
            fixed=fixed,
            folder=Path(scratch) if dry_run else None,
            processes=processes,
        )
        if processes.first:
            print("\n".join(plan.lines()), file=sys.stderr)
        if dry_run:
            return PretrainResult(plan.lines(), None, {}, [])
        state = fresh_state(plan)
        if resume and plan.checkpoint.exists():
            load_checkpoint(plan.checkpoint, state, plan.schedule.identity)
        if processes.first:
            for line in _start_lines(plan, state, resume=resume):
                print(line, file=sys.stderr)
        train(state, plan.schedule, processes=processes, seconds_before=time.perf_counter() - started)
        if not processes.first:
            return PretrainResult(plan.lines(), None, {}, state.losses)
        metrics = _final_metrics(state, plan)
        ended = _training_end(state)
        if ended.line:
            print(f"pretrain: {ended.line}", file=sys.stderr)
        mixture = None
        if plan.settings.mixture == "fitted":
            mixture, measured = _mixture(state, plan)
            metrics |= measured
        info = _release(state, plan, metrics, mixture, ended, overwrite=overwrite)
    shutil.rmtree(plan.schedule.folder, ignore_errors=True)
    return PretrainResult(plan.lines(), info, metrics, state.losses)


def make_plan(
    source: Lake | pa.Table | Path,
    *,
    out: Path,
    settings: PretrainSettings,
    events: EventSettings | None = None,
    protocol: Protocol = "newest",
    shuffle_ties: int | None = None,
    until_ms: int | None = None,
    warm_start: Path | None = None,
    fixed: Collection[str] = (),
    folder: Path | None = None,
    processes: Processes = ALONE,
) -> Plan:
    """Builds the corpus in `folder` (None: beside `out`, where a killed run finds it again), divides its events, and
    asks the recipe. Raises DataError when there is too little to learn from, UsageError for settings that do not fit.
    """
    folder = folder or out.parent / f".training-{out.name}"
    if not processes.first:
        processes.wait()  # the first process builds, the others find it built
    corpus = Corpus.build(
        source, folder / "corpus", events=events or EventSettings(), until_ms=until_ms, shuffle_ties=shuffle_ties
    )
    if processes.first:
        processes.wait()
    split = make_split(corpus, protocol)
    warm = load_release(warm_start) if warm_start else None
    if warm is not None:
        _check_warm(warm, split)
    recipe = choose(training_statistics(corpus, split))
    model, settings, reasons = _resolve(recipe, settings, warm, fixed)
    _check_actions(settings, corpus)
    vocabulary = build_vocabulary(corpus, split)
    _check_memory(model, vocabulary)
    stages = [_stage("fit", corpus, split, vocabulary, model, settings, TRAIN)]
    if settings.refit_epochs:
        stages.append(_stage("refit", corpus, split, vocabulary, model, settings, VALIDATION))
    schedule = Schedule(
        name=out.name,
        settings=settings,
        stages=tuple(stages),
        validator=Validator(
            corpus,
            split,
            vocabulary,
            seen="kept" if recipe.repeats else "filtered",
            max_users=settings.validation_users,
            seed=settings.seed,
        ),
        folder=folder,
        identity={
            "settings": asdict(settings),
            "model": model.to_json(),
            "data_fingerprint": corpus.fingerprint,
            "split": split.digest,
            "warm_start": [warm.info.name, warm.info.created_at, warm.info.data_fingerprint] if warm else None,
            "processes": processes.count,
        },
    )
    newest = _newest_ms(corpus, split)
    return Plan(out, settings, model, reasons, corpus, split, shuffle_ties, vocabulary, schedule, newest, warm)


def fresh_state(plan: Plan) -> TrainState:
    """The model before its first step."""
    settings = plan.settings
    model = new_model(plan.model, plan.vocabulary)
    model.initialise(settings.seed)
    if plan.warm is not None:
        start_from_release(model, plan.vocabulary, plan.warm)
    elif settings.item_start == "links":
        start_from_links(model, plan.corpus, plan.split, plan.vocabulary, seed=settings.seed)
    model.recompute = settings.activations == "recomputed"
    model.items.sparse = _sparse(model.items.weight.numel(), settings)
    return TrainState.of(model.to("cuda" if torch.cuda.is_available() else "cpu"), settings)


def _start_lines(plan: Plan, state: TrainState, *, resume: bool) -> list[str]:
    """What this run has to do with an earlier one of its name."""
    if state.step:
        of = f" of {state.planned.total:,}" if state.planned else ""
        return [f"resuming after step {state.step:,}{of} from {plan.checkpoint}"]
    if resume:
        return [f"nothing to resume: there is no checkpoint {plan.checkpoint}; training starts from the beginning"]
    if not plan.checkpoint.exists():
        return []
    try:
        left = look_at_checkpoint(plan.checkpoint, plan.schedule.identity)
    except DataError as error:
        return [f"{error.message}; training starts from the beginning"]
    found = f"found an unfinished run of `{plan.out.name}`, stopped after step {left.step:,}"
    if left.changed:
        return [f"{found}, of other {', '.join(left.changed)}: training starts from the beginning and replaces it"]
    return [f"{found}: training starts from the beginning and replaces it; to continue it, stop and add --resume"]


def _resolve(
    recipe: Recipe, settings: PretrainSettings, warm: Release | None, fixed: Collection[str]
) -> tuple[ModelConfig, PretrainSettings, tuple[str, ...]]:
    """The model and the settings in force: of the recipe, but for what the caller has chosen; why."""
    if settings.model != "auto":
        return named_config(settings.model), settings, ()
    chosen = {field.name for field in fields(settings) if getattr(settings, field.name) != field.default} | set(fixed)
    taken = {name: value for name, value in recipe.settings.items() if name not in chosen}
    model = warm.info.model if warm else recipe.model
    return model, replace(settings, **taken), recipe.reasons


def _stage(
    name: str,
    corpus: Corpus,
    split: Split,
    vocabulary: Vocabulary,
    model: ModelConfig,
    settings: PretrainSettings,
    role: int,
) -> Stage:
    counts = target_counts(corpus, split, vocabulary, roles_upto=role, positive_actions=settings.positive_actions)
    if counts.sum() == 0:
        raise DataError(
            f"stage {name}: no user has a positive event after another event, so there is nothing to predict",
            hint="train on more events, or name other actions in pretrain.positive_actions",
        )
    reader = BatchReader(
        corpus,
        split,
        vocabulary,
        roles_upto=role,
        segment_length=model.segment_length,
        token_budget=settings.token_budget,
        seed=settings.seed + role,
        positive_actions=settings.positive_actions,
    )
    epochs = settings.epochs if role == TRAIN else settings.refit_epochs
    return Stage(name, reader, counts / counts.sum(), epochs)


def _sparse(table_floats: int, settings: PretrainSettings) -> bool:
    if settings.table_updates == "auto":
        return settings.negatives != "full" and table_floats >= _LARGE_TABLE
    if settings.table_updates == "sparse" and settings.negatives == "full":
        raise UsageError(
            "pretrain.table_updates is sparse, but with negatives = full every row has a gradient",
            hint='set pretrain.negatives to "mixed", or pretrain.table_updates to "auto"',
        )
    return settings.table_updates == "sparse"


def _check_warm(warm: Release, split: Split) -> None:
    """A release that may have trained on what this split holds out would carry it into the new one."""
    same = warm.info.split is not None and warm.info.split["digest"] == split.digest
    older = split.test_from_ms is not None and warm.info.trained_through_ms < split.test_from_ms
    if split.protocol != "newest" and not same and not older:
        raise DataError(
            f"release `{warm.info.name}` may have trained on the events that {split.protocol} holds out here",
            hint="begin with a release of the same events and protocol, or with --protocol newest",
        )


def _check_memory(model: ModelConfig, vocabulary: Vocabulary) -> None:
    """Tables are not divided among processes: each process needs all of them."""
    rows = model.hash_functions * model.rows_for(len(vocabulary.items))
    needed, available = rows * model.table_width * 4 * _COPIES, psutil.virtual_memory().total
    if needed > available:
        raise UsageError(
            f"the item tables need {needed / 1e9:,.0f} GB in each process while training, this machine has "
            f"{available / 1e9:,.0f} GB; dividing tables among processes is not supported",
            hint="train a model with smaller tables (fewer table_rows)",
        )


def _check_actions(settings: PretrainSettings, corpus: Corpus) -> None:
    unknown = sorted(set(settings.positive_actions) - set(corpus.action_names))
    if unknown:
        more = f" and {others:,} more" if (others := len(corpus.action_names) - _MOST_NAMED) > 0 else ""
        raise UsageError(
            f"pretrain.positive_actions names {', '.join(unknown)}, which no event carries",
            hint=f"the events carry: {', '.join(corpus.action_names[:_MOST_NAMED])}{more}",
        )


def _newest_ms(corpus: Corpus, split: Split) -> int:
    """Time of the newest event that has any part in training; validation events choose the weights."""
    allowed = split.allowed_histories(corpus, upto=VALIDATION)
    return max(int(histories.values["timestamp"].max(initial=corpus.oldest_ms)) for histories in allowed)


def _best_model(state: TrainState, plan: Plan) -> UserEncoder:
    """The averaged weights of the best epoch, which have seen no validation event."""
    model = new_model(plan.model, plan.vocabulary)
    model.load_state_dict({name: value.cpu() for name, value in state.best.items()})
    return model.eval()


def _mixture(state: TrainState, plan: Plan) -> tuple[Mixture | None, dict[str, float]]:
    """What is added to the best epoch's vectors, weighted on the validation events, and how it ranks them; None where
    it ranks them no better. What is kept has its links counted with the validation events."""
    validator, model = plan.schedule.validator, _best_model(state, plan)
    links = count_links(plan.corpus, plan.split, plan.vocabulary, upto=TRAIN)
    mixture = Mixture.fit(links, validator.asked(model), seen=validator.seen)
    measured = validator.measure_mixture(model, mixture)
    if measured["mixture_ndcg_at_10"] <= state.evaluations[state.best_epoch]["ndcg_at_10"]:
        print("pretrain: the mixture ranks no better than the vectors alone, so it is left out", file=sys.stderr)
        return None, {}
    return Mixture(count_links(plan.corpus, plan.split, plan.vocabulary, upto=VALIDATION), mixture.weights), measured


def _release(
    state: TrainState,
    plan: Plan,
    metrics: dict[str, float],
    mixture: Mixture | None,
    ended: TrainingEnd,
    *,
    overwrite: bool,
) -> ReleaseInfo:
    training = asdict(plan.settings) | {
        "torch": torch.__version__,
        "processor": platform.machine(),
        "recipe": list(plan.reasons),
        "warm_start": plan.warm.info.name if plan.warm else None,
    }
    more_files = {path.name: path.read_bytes() for path in sorted(plan.schedule.folder.glob("events.out.tfevents.*"))}
    if mixture is not None:
        more_files[MIXTURE_FILE] = mixture.to_bytes()
    if plan.settings.refit_epochs and plan.split.protocol != "newest":
        more_files[BEFORE_REFIT_FILE] = save_tensors({name: value.cpu() for name, value in state.best.items()})
    return save_release(
        plan.out,
        model=plan.model,
        weights={name: value.cpu().numpy() for name, value in state.average.state_dict().items()},
        vocabulary=plan.vocabulary,
        trained_through_ms=plan.trained_through_ms,
        data_fingerprint=plan.corpus.fingerprint,
        metrics=metrics,
        training=training,
        curve_png=draw_curve(state.losses, state.evaluations, title=f"{plan.out.name}: pretraining"),
        split=plan.split.record(shuffle_ties=plan.shuffle_ties),
        ended=ended,
        more_files=more_files,
        overwrite=overwrite,
    )


def _training_end(state: TrainState) -> TrainingEnd:
    return TrainingEnd.of(
        by=state.ended_by,
        cut=state.cut,
        steps=state.step,
        planned_steps=state.planned.total if state.planned else 0,
        evaluations=state.evaluations,
    )


def _final_metrics(state: TrainState, plan: Plan) -> dict[str, float]:
    """Those of the best epoch, measured before the refit."""
    best = state.evaluations[state.best_epoch] if state.evaluations else {}
    return {name: value for name, value in best.items() if name != "step"} | {
        "best_epoch": state.best_epoch + 1,
        "final_loss": float(np.mean(state.losses[-50:])),
        "steps": state.step,
        "planned_steps": state.planned.total if state.planned else 0,
        "stopped_while_rising": int(_training_end(state).rising),
        "training_seconds": round(state.seconds, 1),
        "training_events": int(plan.schedule.stages[-1].tokens),
        "training_users": plan.corpus.users,
        "known_items": len(plan.vocabulary.items),
    }
