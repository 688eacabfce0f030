"""The lift table: a ranker with existing features only against one with the embedding too, on the same requests.

Both are fine-tuning rankers: without a module (fusion `none`), and with Feast's vectors (frozen `late-last`). All
unseen items are ranked (no sampled candidates). If these are too many rows, a random sample of requests is ranked, and
the table reports its size. Each metric is averaged over seeds and over a user's requests, then over users. Intervals
are the 2.5 % and 97.5 % quantiles of a bootstrap over users; differences are paired. Settings are fixed beforehand and
equal for both rankers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from spoor.base.errors import DataError
from spoor.encoder.evaluation.auc import auc
from spoor.encoder.evaluation.intervals import bootstrap_means, interval
from spoor.ranking.features.dataset import (
    Reader,
    Request,
    candidate_parts,
    find_requests,
    sample_requests,
    training_rows,
)
from spoor.ranking.ranker.measure import Estimate
from spoor.ranking.ranker.rows import read_rows
from spoor.ranking.ranker.train import train_ranker
from spoor.ranking.ranker.tuned import TunedRanker
from spoor.ranking.settings import FinetuneSettings

METRICS = ("NDCG@10", "Recall@10", "AUC")
_CUTOFF = 10
MOST_TRAINING_ROWS = 50_000  # up to a hundred rows per request
MOST_TEST_ROWS = 1_000_000  # one row per unseen item of a request
_ROWS_AT_ONCE = 20_000
_NEGATIVES = 4  # negative training rows per relevant item
_MOST_RELEVANT = 20  # relevant items per training request

Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class LiftRow:
    subset: str  # name of the subset of requests
    metric: str
    users: int
    requests: int
    without_embedding: Estimate
    with_embedding: Estimate
    difference: Estimate  # with minus without, per user

    @property
    def verdict(self) -> str:
        if self.difference.low > 0:
            return "better with the embedding"
        return "worse with the embedding" if self.difference.high < 0 else "no difference shown"


@dataclass(frozen=True)
class LiftTable:
    rows: tuple[LiftRow, ...]
    seeds: int  # rankers trained per column
    train_requests: int
    train_rows: int
    train_covered: float  # share of training requests whose user had an embedding at the request
    test_requests: int
    test_rows: int
    test_covered: float
    train_requests_found: int = 0  # requests before sampling; 0 in older tables without this field
    test_requests_found: int = 0

    @property
    def sampled(self) -> str:
        """The sample sizes as text; empty if nothing was left out."""
        parts = [
            f"{used:,} of {found:,} {name} requests"
            for name, used, found in (
                ("training", self.train_requests, self.train_requests_found),
                ("test", self.test_requests, self.test_requests_found),
            )
            if used < found
        ]
        return f"a random sample: {' and '.join(parts)}" if parts else ""


@dataclass(frozen=True)
class Lift:
    table: LiftTable
    ranker: TunedRanker  # with the embedding, first seed; this one is served
    baseline: TunedRanker  # without it


def measure_lift(
    events: pa.Table,
    catalogue: Sequence[str],
    read: Reader,
    *,
    train_ms: tuple[int, int],
    test_ms: tuple[int, int],
    positive_actions: Sequence[str] = (),
    settings: FinetuneSettings | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    most_training_rows: int = MOST_TRAINING_ROWS,
    most_test_rows: int = MOST_TEST_ROWS,
    progress: Callable[[str], None] = lambda _: None,
) -> Lift:
    """Trains on the requests of one time span [from, to) and tests on another. If a span has more than
    `most_training_rows` or `most_test_rows` rows, a random sample of its requests is used, drawn with `settings.seed`.
    Each ranker is trained with one of `seeds`. `progress` gets a line per step. Raises DataError if a span has no
    request."""
    settings = settings or FinetuneSettings()
    all_train = _requests(events, train_ms, positive_actions, "training")
    all_test = _requests(events, test_ms, positive_actions, "test")
    train = sample_requests(
        all_train,
        most_rows=most_training_rows,
        rows_of=lambda request: (1 + _NEGATIVES) * min(len(request.relevant), _MOST_RELEVANT),
        seed=settings.seed,
    )
    test = sample_requests(
        all_test,
        most_rows=most_test_rows,
        rows_of=lambda request: max(len(catalogue) - len(request.seen), 1),
        seed=settings.seed,
    )
    rows = training_rows(train, catalogue, negatives=_NEGATIVES, max_relevant=_MOST_RELEVANT, seed=settings.seed)
    progress(
        f"reads {len(rows.item_ids):,} training rows of {_of(train, all_train, settings)} requests at their point in "
        "time"
    )
    data = read_rows(rows, read)
    kinds = {
        "without": replace(settings, fusion="none", module="frozen"),
        "with": replace(settings, fusion="late-last", module="frozen"),
    }
    rankers = {
        name: [train_ranker(data, settings=replace(kind, seed=seed)).ranker for seed in seeds]
        for name, kind in kinds.items()
    }
    progress(f"ranks every unseen item of {_of(test, all_test, settings)} requests")
    measured = {name: np.full((len(test), len(METRICS)), np.nan) for name in kinds}
    known, test_rows = np.zeros(len(test), bool), 0
    for part, candidates in candidate_parts(test, catalogue, rows_at_once=_ROWS_AT_ONCE, seed=settings.seed):
        if not candidates.item_ids:
            continue  # these users have seen the whole catalogue
        found = read_rows(candidates, read, dimension=data.user_vectors.shape[1])
        known[part] = found.has_user_vector
        test_rows += len(candidates.item_ids)
        for name, trained in rankers.items():
            scores = np.stack([ranker.score(found)[:, 0] for ranker in trained])
            measured[name][part] = _mean_metrics(scores, candidates.labels[:, 0], candidates.offsets)
    table = LiftTable(
        rows=_lift_rows(measured["without"], measured["with"], [request.user_id for request in test], known),
        seeds=len(seeds),
        train_requests=len(train),
        train_rows=len(rows.item_ids),
        train_covered=float(data.has_user_vector.mean()),
        test_requests=len(test),
        test_rows=test_rows,
        test_covered=float(known.mean()),
        train_requests_found=len(all_train),
        test_requests_found=len(all_test),
    )
    return Lift(table, rankers["with"][0], rankers["without"][0])


def _of(used: Sequence[Request], found: Sequence[Request], settings: FinetuneSettings) -> str:
    if len(used) == len(found):
        return f"{len(used):,}"
    return f"{len(used):,} of {len(found):,} (a random sample, seed {settings.seed}, to bound memory and time)"


def request_metrics(scores: npt.NDArray[np.floating], labels: npt.NDArray[np.floating]) -> dict[str, float]:
    """Metrics of one request: NDCG@10, Recall@10 (of at most ten relevant items), and AUC with ties counted half; NaN
    if undefined. NDCG and Recall break ties by position, which the caller has shuffled."""
    positives = int(labels.sum())
    if not positives:
        return dict.fromkeys(METRICS, float("nan"))
    top = labels[np.argsort(-scores, kind="stable")[:_CUTOFF]]
    discounts = 1 / np.log2(np.arange(2, _CUTOFF + 2))
    ideal = discounts[: min(positives, _CUTOFF)].sum()
    return {
        "NDCG@10": float((top * discounts[: len(top)]).sum() / ideal),
        "Recall@10": float(top.sum() / min(positives, _CUTOFF)),
        "AUC": auc(scores, labels),
    }


def estimates(values: Values, *, seed: int = 0) -> list[Estimate]:
    """`values`: float64[U, K] of U users. The mean of each column with its 95 % interval over resampled users. All
    columns share the draws."""
    draws = bootstrap_means(values, np.ones(len(values)), seed=seed)
    return [Estimate(float(column.mean()), *interval(drawn)) for column, drawn in zip(values.T, draws.T, strict=True)]


def _requests(events: pa.Table, span: tuple[int, int], positive_actions: Sequence[str], name: str) -> list[Request]:
    found = find_requests(events, from_ms=span[0], to_ms=span[1], positive_actions=positive_actions)
    if not found:
        raise DataError(
            f"the {name} span has no visit with a relevant item", hint="check which actions count as positive"
        )
    return found


def _mean_metrics(
    scores: npt.NDArray[np.float32], labels: npt.NDArray[np.float32], offsets: npt.NDArray[np.int64]
) -> Values:
    """float64[requests, METRICS], the mean over seeds. `scores`: [seeds, n]; rows of a request are adjacent."""
    return np.array(
        [
            np.mean([list(request_metrics(one[start:end], labels[start:end]).values()) for one in scores], axis=0)
            for start, end in pairwise(offsets)
        ]
    )


def _lift_rows(
    without: Values, with_: Values, users: Sequence[str], known: npt.NDArray[np.bool_]
) -> tuple[LiftRow, ...]:
    """`without`, `with_`: float64[requests, METRICS]."""
    subsets: Mapping[str, npt.NDArray[np.bool_]] = {
        "all requests": np.ones(len(users), bool),
        "user had an embedding": known,
        "user had none yet": ~known,
    }
    rows = []
    for subset, mask in subsets.items():
        for column, metric in enumerate(METRICS):
            chosen = mask & ~np.isnan(with_[:, column])
            if not chosen.any():
                continue
            names, index, counts = np.unique(np.array(users)[chosen], return_inverse=True, return_counts=True)
            means = [np.bincount(index, values[chosen, column]) / counts for values in (without, with_)]
            found = estimates(np.stack([*means, means[1] - means[0]], 1))
            rows.append(LiftRow(subset, metric, len(names), int(chosen.sum()), *found))
    return tuple(rows)
