"""The lift table: one ranker with the embedding beside the existing features, one without, on the same requests.

All unseen items are ranked (no sampled candidates); where that would be too many rows, a random choice of the requests
is ranked, and the table says of how many. Each metric is averaged over a user's requests and over the seeds
first, then over users; intervals are the 2.5 % and 97.5 % quantiles of a bootstrap over users, and the difference is
paired. Settings are fixed beforehand and the same for both rankers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from spoor.base.errors import DataError
from spoor.ranking.features.dataset import (
    Inputs,
    Reader,
    Request,
    candidate_parts,
    embedding_inputs,
    existing_inputs,
    find_requests,
    has_user_vector,
    read_features,
    sample_requests,
    training_rows,
)
from spoor.ranking.ranker.ranker import Ranker, RankerConfig, train_ranker

METRICS = ("NDCG@10", "Recall@10", "AUC")
_CUTOFF = 10
_BOOTSTRAPS = 2_000
MOST_TRAINING_ROWS = 50_000  # a request makes up to a hundred
MOST_TEST_ROWS = 1_000_000  # a request makes one for each unseen item
_ROWS_AT_ONCE = 20_000
_NEGATIVES = 4  # training rows for each relevant one
_MOST_RELEVANT = 20  # of a training request
_LAYOUTS: dict[str, Callable[[pa.Table], Inputs]] = {"without": existing_inputs, "with": embedding_inputs}

Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    mean: float
    low: float  # 95 % interval
    high: float


@dataclass(frozen=True)
class LiftRow:
    subset: str  # which requests
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
    train_covered: float  # share of training requests whose user had an embedding then
    test_requests: int
    test_rows: int
    test_covered: float
    train_requests_found: int = 0  # from which those were drawn at random; 0 in tables from before this was kept
    test_requests_found: int = 0

    @property
    def sampled(self) -> str:
        """What was left out, in words; empty where nothing was."""
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
    ranker: Ranker  # with the embedding, first seed: the one to serve
    baseline: Ranker  # without it


def measure_lift(
    events: pa.Table,
    catalogue: Sequence[str],
    read: Reader,
    *,
    train_ms: tuple[int, int],
    test_ms: tuple[int, int],
    positive_actions: Sequence[str] = (),
    config: RankerConfig | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    most_training_rows: int = MOST_TRAINING_ROWS,
    most_test_rows: int = MOST_TEST_ROWS,
    progress: Callable[[str], None] = lambda _: None,
) -> Lift:
    """Trains on the requests of one span of time [from, to) and tests on another. Where they make more than
    `most_training_rows` or `most_test_rows`, a random choice of them stands for all. Raises DataError where a span has
    no request. `progress` gets a line per step."""
    config = config or RankerConfig()
    all_train = _requests(events, train_ms, positive_actions, "training")
    all_test = _requests(events, test_ms, positive_actions, "test")
    train = sample_requests(
        all_train,
        most_rows=most_training_rows,
        rows_of=lambda request: (1 + _NEGATIVES) * min(len(request.relevant), _MOST_RELEVANT),
        seed=config.seed,
    )
    test = sample_requests(
        all_test,
        most_rows=most_test_rows,
        rows_of=lambda request: max(len(catalogue) - len(request.seen), 1),
        seed=config.seed,
    )
    rows = training_rows(train, catalogue, negatives=_NEGATIVES, max_relevant=_MOST_RELEVANT, seed=config.seed)
    progress(
        f"reads {len(rows):,} training rows of {_of(train, all_train, config)} requests at their point in time",
    )
    table = pa.concat_tables([part for _, part in read_features(rows, read)], promote_options="permissive")
    labels = rows["label"].to_numpy(np.float32)
    inputs = {name: layout(table) for name, layout in _LAYOUTS.items()}
    rankers = {
        name: [train_ranker(inputs[name], labels, replace(config, seed=seed)) for seed in seeds] for name in _LAYOUTS
    }
    train_known = _per_request(has_user_vector(table), rows["request"].to_numpy(), len(train))
    progress(f"ranks every unseen item of {_of(test, all_test, config)} requests")
    measured = {name: {metric: np.zeros(len(test)) for metric in METRICS} for name in _LAYOUTS}
    test_known, test_rows = np.zeros(len(test), bool), 0
    for part, candidates in candidate_parts(test, catalogue, rows_at_once=_ROWS_AT_ONCE, seed=config.seed):
        scores, known = _scores(candidates, read, rankers)
        numbers = candidates["request"].to_numpy() - part.start
        test_known[part] = _per_request(known, numbers, part.stop - part.start)
        test_rows += len(candidates)
        for name, values in scores.items():
            found = _mean_metrics(values, candidates["label"].to_numpy(np.float32), numbers, part.stop - part.start)
            for metric in METRICS:
                measured[name][metric][part] = found[metric]
    lift_rows = _lift_rows(measured, [request.user_id for request in test], test_known)
    lift_table = LiftTable(
        rows=lift_rows,
        seeds=len(seeds),
        train_requests=len(train),
        train_rows=len(rows),
        train_covered=float(train_known.mean()),
        test_requests=len(test),
        test_rows=test_rows,
        test_covered=float(test_known.mean()),
        train_requests_found=len(all_train),
        test_requests_found=len(all_test),
    )
    return Lift(lift_table, rankers["with"][0], rankers["without"][0])


def _of(used: Sequence[Request], found: Sequence[Request], config: RankerConfig) -> str:
    if len(used) == len(found):
        return f"{len(used):,}"
    return f"{len(used):,} of {len(found):,} (a random sample, seed {config.seed}, to bound memory and time)"


def _scores(
    rows: pd.DataFrame, read: Reader, rankers: Mapping[str, Sequence[Ranker]]
) -> tuple[dict[str, npt.NDArray[np.float32]], npt.NDArray[np.bool_]]:
    """Per layout [seeds, n], and bool[n]: whether the row's user had an embedding."""
    scores = {name: np.zeros((len(trained), len(rows)), np.float32) for name, trained in rankers.items()}
    known = np.zeros(len(rows), bool)
    for where, part in read_features(rows, read):
        known[where] = has_user_vector(part)
        for name, layout in _LAYOUTS.items():
            part_inputs = layout(part)
            for k, ranker in enumerate(rankers[name]):
                scores[name][k, where] = ranker.score(part_inputs)
    return scores, known


def request_metrics(scores: npt.NDArray[np.floating], labels: npt.NDArray[np.floating]) -> dict[str, float]:
    """One request: NDCG@10, Recall@10 (of at most ten), and AUC with ties counted half; NaN where undefined. Ties in
    the first two are broken by position, which the caller shuffled."""
    positives = int(labels.sum())
    negatives = len(labels) - positives
    if not positives:
        return dict.fromkeys(METRICS, float("nan"))
    top = labels[np.argsort(-scores, kind="stable")[:_CUTOFF]]
    discounts = 1 / np.log2(np.arange(2, _CUTOFF + 2))
    ideal = discounts[: min(positives, _CUTOFF)].sum()
    ordered, below = np.unique(scores, return_inverse=True)
    counts = np.bincount(below, minlength=len(ordered))
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[below]
    above = ranks[labels > 0].sum() - positives * (positives + 1) / 2
    return {
        "NDCG@10": float((top * discounts[: len(top)]).sum() / ideal),
        "Recall@10": float(top.sum() / min(positives, _CUTOFF)),
        "AUC": float(above / (positives * negatives)) if negatives else float("nan"),
    }


def bootstrap(values: Values, *, seed: int = 0) -> Estimate:
    """Mean of the values (one per user) with its 95 % interval over resampled users."""
    chance = np.random.default_rng(seed)
    means = values[chance.integers(0, len(values), (_BOOTSTRAPS, len(values)))].mean(1)
    low, high = np.quantile(means, (0.025, 0.975))
    return Estimate(float(values.mean()), float(low), float(high))


def _requests(events: pa.Table, span: tuple[int, int], positive_actions: Sequence[str], name: str) -> list[Request]:
    found = find_requests(events, from_ms=span[0], to_ms=span[1], positive_actions=positive_actions)
    if not found:
        raise DataError(
            f"the {name} span has no visit with a relevant item", hint="check which actions count as positive"
        )
    return found


def _per_request(known: npt.NDArray[np.bool_], numbers: npt.NDArray[np.int64], requests: int) -> npt.NDArray[np.bool_]:
    """All rows of a request share its user and time, so any row tells."""
    found = np.zeros(requests, bool)
    found[numbers] = known
    return found


def _mean_metrics(
    scores: npt.NDArray[np.float32],
    labels: npt.NDArray[np.float32],
    numbers: npt.NDArray[np.int64],
    requests: int,
) -> dict[str, Values]:
    """Per metric float64[requests], the mean over seeds. `scores`: [seeds, n], rows of a request lie together."""
    bounds = np.searchsorted(numbers, np.arange(requests + 1))
    totals = {metric: np.zeros(requests) for metric in METRICS}
    for number, (start, end) in enumerate(pairwise(bounds)):
        for seed_scores in scores:
            for metric, value in request_metrics(seed_scores[start:end], labels[start:end]).items():
                totals[metric][number] += value / len(scores)
    return totals


def _lift_rows(
    measured: dict[str, dict[str, Values]], users: list[str], known: npt.NDArray[np.bool_]
) -> tuple[LiftRow, ...]:
    subsets = {
        "all requests": np.ones(len(users), bool),
        "user had an embedding": known,
        "user had none yet": ~known,
    }
    rows = []
    for subset, mask in subsets.items():
        for metric in METRICS:
            chosen = mask & ~np.isnan(measured["with"][metric])
            if not chosen.any():
                continue
            names, index = np.unique(np.array(users)[chosen], return_inverse=True)
            counts = np.bincount(index)
            with_, without = (
                np.bincount(index, measured[name][metric][chosen]) / counts for name in ("with", "without")
            )
            estimates = bootstrap(without), bootstrap(with_), bootstrap(with_ - without)
            rows.append(LiftRow(subset, metric, len(names), int(chosen.sum()), *estimates))
    return tuple(rows)
