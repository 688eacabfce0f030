"""Evaluates any number of scorers on the same questions, in chunks, into one report.

    corpus + split -> Training (events to fit scorers on) -> prepare -> questions -> scores -> places -> report

Legend: P questions, V known items, K columns of metrics.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from spoor.base.errors import DataError
from spoor.base.terminal import progress_bar
from spoor.encoder.data.corpus import Corpus
from spoor.encoder.data.split import TEST, TRAIN, VALIDATION, Split
from spoor.encoder.evaluation import metrics, slices
from spoor.encoder.evaluation.intervals import Values, bootstrap_means, interval, user_sums
from spoor.encoder.evaluation.questions import Questions, Seen, question_chunks
from spoor.encoder.evaluation.report import Difference, EvaluationReport, Row
from spoor.encoder.evaluation.scoring import Scorer, Training
from spoor.encoder.model.vocabulary import Indexes, Vocabulary

_BLOCK_EVENTS = 1_000_000
_ROLE_NAMES = {TRAIN: "train", VALIDATION: "validation", TEST: "test"}
_NEVER = np.iinfo(np.int64).max


@dataclass(eq=False)
class _Asked:
    """Properties of all questions, as lists of [P] arrays that grow by chunks. `first_times` int64[V + 1]: time of each
    item's first event, in ms; `events` int64[V + 1]: its number of training events."""

    first_times: Indexes
    events: Indexes
    users: list[Indexes] = field(default_factory=list)
    known: list[npt.NDArray[np.bool_]] = field(default_factory=list)  # the target is a candidate
    seen: list[npt.NDArray[np.bool_]] = field(default_factory=list)  # the user had the target before
    bands: list[dict[str, Indexes]] = field(default_factory=list)

    def add(self, questions: Questions) -> None:
        targets, lengths = questions.targets, questions.inputs.histories.lengths
        rows = np.repeat(np.arange(len(targets)), lengths)
        equal = (questions.inputs.items == targets[rows]) & (targets[rows] > 0)
        self.users.append(questions.users)
        self.known.append(targets > 0)
        self.seen.append(np.bincount(rows[equal], minlength=len(targets)) > 0)
        self.bands.append(
            slices.bands(
                lengths=lengths,
                ages_ms=questions.times - self.first_times[targets],
                events=self.events[targets],
                known=targets > 0,
            )
        )


@dataclass(eq=False)
class _Answers:
    """Results of one scorer. `recommended` int64[V + 1]: number of top-ten places of each item."""

    recommended: Indexes
    places: list[metrics.Places] = field(default_factory=list)
    seconds: float = 0.0


def evaluate_scorers(
    corpus: Corpus,
    split: Split,
    vocabulary: Vocabulary,
    scorers: Mapping[str, Scorer],
    *,
    seen: Seen = "filtered",
    role: int = TEST,
    seed: int = 0,
) -> EvaluationReport:
    """Evaluates every scorer on every event with `role`, and compares the first scorer with each of the others.

    `vocabulary`: the items to rank, normally those of events with an earlier role. Scorers are fitted on all events
    with an earlier role. `seed`: of the bootstrap. Shows progress on stderr if that is a terminal. Raises DataError if
    there is no question.
    """
    started = time.perf_counter()
    training, first_times = _read_training(corpus, split, vocabulary, role=role, seen=seen)
    answers = {name: _Answers(np.zeros(training.vocabulary_size + 1, np.int64)) for name in scorers}
    asked = _Asked(first_times, np.concatenate([[0], training.popularity()]))
    print(f"evaluating {', '.join(scorers)} on {corpus.events:,} events", file=sys.stderr)
    with progress_bar("fitting", total=None, unit="users") as show:
        for name, scorer in scorers.items():
            show(description=f"fitting {name}")
            before = time.perf_counter()
            scorer.prepare(training)
            answers[name].seconds += time.perf_counter() - before
        show(description="ranking", total=corpus.users)
        for first_user, last_user in corpus.blocks(_BLOCK_EVENTS):
            histories = corpus.read(first_user, last_user)
            roles = split.roles(histories)
            for questions in question_chunks(histories, roles, vocabulary, role=role, first_user=first_user):
                asked.add(questions)
                for name, scorer in scorers.items():
                    _answer(name, scorer, questions, answers[name], seen)
            show(completed=last_user)
    if not asked.users:
        raise DataError(
            f"the protocol {split.protocol} has no event to ask for in these data",
            hint="leave-one-out needs users with three events, global-time users with events before the newest tenth",
        )
    users, known = np.concatenate(asked.users), np.concatenate(asked.known)
    values = {name: metrics.per_question(np.concatenate(found.places)) for name, found in answers.items()}
    rows, differences = _compare(scorers, answers, values, users, training, seed=seed)
    return EvaluationReport(
        protocol=split.protocol,
        role=_ROLE_NAMES[role],
        digest=split.digest,
        seen=seen,
        users=len(np.unique(users)),
        questions=len(users),
        items=training.vocabulary_size,
        unknown_targets=int((~known).sum()),
        seen_targets=int(np.concatenate(asked.seen).sum()),
        events=corpus.events,
        seconds=round(time.perf_counter() - started, 2),
        rows=rows,
        differences=differences,
        slices=slices.table(asked.bands, values, users),
    )


def _read_training(
    corpus: Corpus, split: Split, vocabulary: Vocabulary, *, role: int, seen: Seen
) -> tuple[Training, Indexes]:
    """The training data, and int64[V + 1]: time of each known item's first event, in ms."""
    items, roles, lengths = [], [], []
    first_times = np.full(len(vocabulary.items) + 1, _NEVER)
    for first_user, last_user in corpus.blocks(_BLOCK_EVENTS):
        histories = corpus.read(first_user, last_user)
        indexes = vocabulary.item_indexes(histories.values["item"])
        np.minimum.at(first_times, indexes, histories.values["timestamp"])
        found = split.roles(histories)
        before = found < role
        items.append(indexes[before].astype(np.int32))
        roles.append(found[before])
        lengths.append(np.diff(np.concatenate([[0], np.cumsum(before)])[histories.offsets]))
    offsets = np.concatenate([[0], *lengths]).cumsum().astype(np.int64)
    training = Training(np.concatenate(items), offsets, np.concatenate(roles), len(vocabulary.items), seen)
    return training, first_times


def _answer(name: str, scorer: Scorer, questions: Questions, answers: _Answers, seen: Seen) -> None:
    before = time.perf_counter()
    scores = torch.from_numpy(scorer.scores(questions.inputs))
    if seen == "filtered":
        metrics.leave_out_seen(scores, questions.inputs.items, questions.inputs.offsets)
    try:
        answers.places.append(metrics.target_places(scores, questions.targets))
    except ValueError as error:
        raise DataError(f"{name}: {error}", hint="the release is damaged or diverged: train it again") from None
    answers.recommended += np.bincount(metrics.top_items(scores).ravel(), minlength=len(answers.recommended))
    answers.seconds += time.perf_counter() - before


def _compare(
    scorers: Mapping[str, Scorer],
    answers: Mapping[str, _Answers],
    values: Mapping[str, Values],
    users: Indexes,
    training: Training,
    *,
    seed: int,
) -> tuple[tuple[Row, ...], tuple[Difference, ...]]:
    """Rows share the draws of users, so their differences are paired. `values`: float64[P, K] per row."""
    sums, counts = user_sums(np.concatenate(list(values.values()), axis=1), users)
    drawn = bootstrap_means(sums, counts, seed=seed).reshape(-1, len(values), len(metrics.METRICS))
    means = (sums.sum(0) / counts.sum()).reshape(len(values), -1)
    popularity = training.popularity()

    def named(mean: Values, draws: Values) -> dict[str, dict[str, Any]]:
        return {
            "metrics": dict(zip(metrics.METRICS, mean.tolist(), strict=True)),
            "intervals": {key: interval(draws[:, k]) for k, key in enumerate(metrics.METRICS)},
        }

    rows = tuple(
        Row(
            name=name,
            settings=scorers[name].describe(),
            coverage=metrics.coverage(found.recommended[1:]),
            popularity_share=metrics.popularity_share(found.recommended[1:], popularity),
            seconds=round(found.seconds, 2),
            **named(means[place], drawn[:, place]),
        )
        for place, (name, found) in enumerate(answers.items())
    )
    differences = tuple(
        Difference(rows[0].name, rows[k].name, **named(means[0] - means[k], drawn[:, 0] - drawn[:, k]))
        for k in range(1, len(rows))
    )
    return rows, differences
