"""The plan of a pretraining run, made before training starts.

    request -> corpus on disk -> split -> recipe -> model, settings and stages

Equal requests give equal plans.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import KW_ONLY, asdict, dataclass, fields, replace
from pathlib import Path

import psutil
import pyarrow as pa
import torch

from spoor.activity.lake import Lake
from spoor.activity.settings import EventSettings
from spoor.base.errors import DataError, UsageError
from spoor.base.numbers import number_text
from spoor.encoder.data.batches import BatchReader, build_vocabulary, target_counts
from spoor.encoder.data.corpus import Corpus
from spoor.encoder.data.split import TRAIN, VALIDATION, Protocol, Split, make_split, training_statistics
from spoor.encoder.evaluation.validation import Validator
from spoor.encoder.model.config import ModelConfig, named_config
from spoor.encoder.model.vocabulary import Vocabulary
from spoor.encoder.release.folder import Release, load_release
from spoor.encoder.training.loop import Schedule, Stage
from spoor.encoder.training.parallel import ALONE, Processes
from spoor.encoder.training.recipe import Recipe, choose
from spoor.encoder.training.settings import PretrainSettings

_MOST_NAMED = 20  # most action names listed in a hint
_COPIES = 5  # copies of the weights while training: weights, average, two moments, best so far


@dataclass(frozen=True, eq=False)
class PretrainRequest:
    """What to train, on which events, into which folder."""

    source: Lake | pa.Table | Path  # the lake, a table of EVENT_SCHEMA, or an event file (event_files.py)
    _: KW_ONLY
    out: Path  # the release folder; its last path component is the release's name
    settings: PretrainSettings
    events: EventSettings | None = None
    protocol: Protocol = "newest"
    shuffle_ties: int | None = None  # seed that shuffles events with equal times in an event file
    until_ms: int | None = None  # only events before this time; None: all
    warm_start: Path | None = None  # folder of the release to start from
    fixed: Collection[str] = ()  # settings the recipe must not change, besides those that differ from defaults


@dataclass(frozen=True, eq=False)
class Plan:
    """What a run will do. `reasons`: one line per choice of the recipe."""

    request: PretrainRequest
    settings: PretrainSettings
    model: ModelConfig
    reasons: tuple[str, ...]
    corpus: Corpus
    split: Split
    vocabulary: Vocabulary
    schedule: Schedule
    trained_through_ms: int
    warm: Release | None

    @property
    def checkpoint(self) -> Path:
        return self.schedule.checkpoint

    def lines(self) -> list[str]:
        """The plan as lines of text."""
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
            f"release: {self.request.out}",
        ]


def dtype_policy() -> str:
    """The precision of training on this machine, and the reason."""
    if torch.cuda.is_available():
        return "bfloat16 for activations, float32 for weights, losses and optimiser: a GPU multiplies bfloat16 faster"
    return (
        "float32 for weights, activations and optimiser: processors without bfloat16 matrix units gain nothing from "
        "less, and batch and stream must agree on a vector to 1e-5"
    )


def make_plan(request: PretrainRequest, *, folder: Path | None = None, processes: Processes = ALONE) -> Plan:
    """Builds the corpus in `folder` (None: beside `request.out`, so that a resumed run finds it), splits its events and
    applies the recipe. Raises DataError for too few events, UsageError for settings that do not fit.
    """
    folder = folder or request.out.parent / f".training-{request.out.name}"
    if not processes.first:
        processes.wait()  # the first process builds the corpus, the others open it
    corpus = Corpus.build(
        request.source,
        folder / "corpus",
        events=request.events or EventSettings(),
        until_ms=request.until_ms,
        shuffle_ties=request.shuffle_ties,
    )
    if processes.first:
        processes.wait()
    split = make_split(corpus, request.protocol)
    warm = load_release(request.warm_start) if request.warm_start else None
    if warm is not None:
        _check_warm(warm, split)
    recipe = choose(training_statistics(corpus, split))
    model, settings, reasons = _resolve(recipe, request, warm)
    _check_actions(settings, corpus)
    vocabulary = build_vocabulary(corpus, split)
    _check_memory(model, vocabulary)
    roles = (TRAIN, VALIDATION) if settings.refit_epochs else (TRAIN,)
    schedule = Schedule(
        name=request.out.name,
        settings=settings,
        stages=tuple(_stage(role, corpus, split, vocabulary, model, settings) for role in roles),
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
    return Plan(request, settings, model, reasons, corpus, split, vocabulary, schedule, newest, warm)


def _resolve(
    recipe: Recipe, request: PretrainRequest, warm: Release | None
) -> tuple[ModelConfig, PretrainSettings, tuple[str, ...]]:
    """Model and settings: the recipe's, except where the caller has chosen; and the recipe's reasons."""
    settings = request.settings
    if settings.model != "auto":
        return named_config(settings.model), settings, ()
    chosen = {field.name for field in fields(settings) if getattr(settings, field.name) != field.default} | set(
        request.fixed
    )
    taken = {name: value for name, value in recipe.settings.items() if name not in chosen}
    model = warm.info.model if warm else recipe.model
    return model, replace(settings, **taken), recipe.reasons


def _stage(
    role: int, corpus: Corpus, split: Split, vocabulary: Vocabulary, model: ModelConfig, settings: PretrainSettings
) -> Stage:
    """`fit` trains on training events only, `refit` on validation events too."""
    name, epochs = ("fit", settings.epochs) if role == TRAIN else ("refit", settings.refit_epochs)
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
    return Stage(name, reader, counts / counts.sum(), epochs)


def _check_warm(warm: Release, split: Split) -> None:
    """A release that may have trained on this split's held-out events would leak them into the new release."""
    same = warm.info.split is not None and warm.info.split["digest"] == split.digest
    older = split.test_from_ms is not None and warm.info.trained_through_ms < split.test_from_ms
    if split.protocol != "newest" and not same and not older:
        raise DataError(
            f"release `{warm.info.name}` may have trained on the events that {split.protocol} holds out here",
            hint="begin with a release of the same events and protocol, or with --protocol newest",
        )


def _check_memory(model: ModelConfig, vocabulary: Vocabulary) -> None:
    """Tables are not sharded: each process needs memory for all of them."""
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
    """Time of the newest event used in training; includes validation events, which choose the weights."""
    allowed = split.allowed_histories(corpus, upto=VALIDATION)
    return max(int(histories.values["timestamp"].max(initial=corpus.oldest_ms)) for histories in allowed)
