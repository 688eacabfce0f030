"""The default recipe: derives model and settings from counts of the training data, without tuning per data set.

Every rule is in `choose`, with its reason; docs/recipe.md has the table and the measurements.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from spoor.encoder.data.corpus import CorpusStatistics
from spoor.encoder.model.config import ModelConfig

_FULL_SOFTMAX_ITEMS = 50_000  # up to this, scoring all items costs less than good negatives
_DIRECT_ITEMS = 1_000_000  # up to this, one row per item fits in memory
_SMALL_CATALOGUE = 2_000  # items
_LONG_HISTORIES = 50  # mean events per user
_MANY_EVENTS = 500_000  # events in long histories that suffice for a deeper model
_REPEATS = 0.05  # share of events that repeat an item; above it, the user's own items are ranked too
_HASH_FUNCTIONS = 4
_STEPS_PER_EPOCH = 400
_TOKEN_BUDGETS = (256, 512, 1024, 2048, 4096)


@dataclass(frozen=True)
class Recipe:
    """`settings`: values for fields of PretrainSettings that the user has not set; `repeats`: users return to items in
    their history, so ranking keeps those items; `reasons`: one line per choice."""

    model: ModelConfig
    settings: dict[str, Any]
    repeats: bool
    reasons: tuple[str, ...]


def choose(counts: CorpusStatistics) -> Recipe:
    """The recipe for `counts` of the training events."""
    reasons: list[str] = []

    def because(what: str, why: str) -> None:
        reasons.append(f"{what}, because {why}")

    small = counts.items < _SMALL_CATALOGUE
    width = 64 if small else 128
    because(f"width {width}", f"there are {counts.items:,} items")
    long = counts.mean_length > _LONG_HISTORIES
    heads, length, dropout = (2, 200, 0.2) if long else (1, 50, 0.4)
    layers = 1 if not long else 4 if counts.events >= _MANY_EVENTS else 2
    because(
        f"{layers} layer{'s' * (layers > 1)}, {length} events, dropout {dropout}",
        f"a history has {counts.mean_length:.0f} events on average, all together {counts.events:,}",
    )
    because(
        "a short refit at a low rate" if long else "a refit from the full rate",
        "one more event matters little in a long history" if long else "one more event matters in a short history",
    )
    direct = counts.items <= _DIRECT_ITEMS
    because("a row for each item" if direct else "hashed item rows", f"there are {counts.items:,} items")
    full = counts.items <= _FULL_SOFTMAX_ITEMS
    because("all items as negatives" if full else "drawn negatives", f"there are {counts.items:,} items")
    wanted = counts.events / _STEPS_PER_EPOCH
    budget = min(_TOKEN_BUDGETS, key=lambda tokens: abs(tokens - wanted))
    because(f"{budget} events in a step", f"there are {counts.events:,} events")
    repeats = counts.repeat_share > _REPEATS
    because(
        "own items ranked, too" if repeats else "own items not ranked",
        f"{counts.repeat_share:.0%} of events repeat an item of their user",
    )
    model = ModelConfig(
        segment_length=length,
        served_length=length,
        items="direct" if direct else "hashed",
        hash_functions=1 if direct else _HASH_FUNCTIONS,
        table_rows=0 if direct else counts.items,
        table_width=width if direct else width // _HASH_FUNCTIONS,
        width=width,
        layers=layers,
        heads=heads,
        feed_forward_width=4 * width,
        dimension=width,
        projections="residual",
        projection_width=0,
        input_dropout=dropout,
        dropout=dropout,
    )
    settings = {
        "epochs": 8,
        "patience": 3,
        "refit_epochs": 1 if long else 4,
        "refit_rate": 0.3 if long else 1.0,
        "token_budget": budget,
        "learning_rate": 2e-3 if budget >= 2048 else 1e-3,
        "average_decay": 0.99,
        "negatives": "full" if full else "mixed",
        "uniform_negatives": 2048,
        "own_positives": "kept" if repeats else "masked",
        "item_start": "links" if direct else "random",
        "mixture": "fitted" if direct else "none",
    }
    return Recipe(model, settings, repeats, tuple(reasons))
