"""Metrics by slice: length of the input, age of the target item, and popularity of the target item.

Legend: P questions, K columns of metrics.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from spoor.encoder.evaluation.metrics import METRICS
from spoor.encoder.model.vocabulary import Indexes

Bands = tuple[tuple[str, int | None], ...]
_DAY_MS = 86_400_000
_LENGTHS = (
    ("1 to 4", 5),
    ("5 to 9", 10),
    ("10 to 19", 20),
    ("20 to 49", 50),
    ("50 to 199", 200),
    ("200 or more", None),
)
_AGES = (
    ("under a day", _DAY_MS),
    ("1 to 7 days", 7 * _DAY_MS),
    ("7 to 28 days", 28 * _DAY_MS),
    ("28 days to a year", 365 * _DAY_MS),
    ("over a year", None),
)
_EVENTS = (("0", 1), ("1 to 4", 5), ("5 to 19", 20), ("20 to 99", 100), ("100 to 999", 1000), ("1000 or more", None))
_PROPERTIES: dict[str, Bands] = {"history length": _LENGTHS, "item age": _AGES, "item popularity": _EVENTS}
_UNKNOWN = "unknown to the release"
_SHOWN = ("recall@10", "ndcg@10")


@dataclass(frozen=True)
class Slice:
    """The questions of one band. `metrics`: recall@10 and ndcg@10 by row."""

    by: str  # history length (events), item age (since the item's first event), item popularity (training events)
    band: str
    questions: int
    users: int
    metrics: dict[str, dict[str, float]]


def bands(*, lengths: Indexes, ages_ms: Indexes, events: Indexes, known: npt.NDArray[np.bool_]) -> dict[str, Indexes]:
    """The band of every question by property, int64[P] from [P] arrays. Targets that are not `known` have no age or
    popularity; they form a separate band."""
    return {
        "history length": _places(_LENGTHS, lengths),
        "item age": np.where(known, _places(_AGES, ages_ms), len(_AGES)),
        "item popularity": np.where(known, _places(_EVENTS, events), len(_EVENTS)),
    }


def table(
    chunks: Sequence[Mapping[str, Indexes]], values: Mapping[str, npt.NDArray[np.float64]], users: Indexes
) -> tuple[Slice, ...]:
    """Every band with a question. `chunks`: results of `bands`, P questions in total; `values`: float64[P, K] of each
    row; `users` int64[P]."""
    return tuple(
        Slice(
            by=by,
            band=name,
            questions=int(inside.sum()),
            users=len(np.unique(users[inside])),
            metrics={
                row: {key: float(found[inside, METRICS.index(key)].mean()) for key in _SHOWN}
                for row, found in values.items()
            },
        )
        for by, limits in _PROPERTIES.items()
        for place, name in enumerate([*(name for name, _ in limits), _UNKNOWN])
        if (inside := np.concatenate([chunk[by] for chunk in chunks]) == place).any()
    )


def _places(limits: Bands, values: Indexes) -> Indexes:
    return np.searchsorted([limit for _, limit in limits if limit is not None], values, side="right")
