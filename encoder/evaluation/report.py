"""The report of an evaluation: as JSON, as text and as a picture."""

from __future__ import annotations

import io
from dataclasses import asdict, dataclass
from typing import Any

from spoor.encoder.evaluation.metrics import TOP
from spoor.encoder.evaluation.slices import Slice

Interval = tuple[float, float]
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#8C6D31", "#666666")


@dataclass(frozen=True)
class Row:
    """One scorer. `intervals`: 95 %, by bootstrap over users."""

    name: str
    settings: str
    metrics: dict[str, float]
    intervals: dict[str, Interval]
    coverage: float  # share of items in at least one top ten
    popularity_share: float  # share of top-ten places taken by the most popular hundredth of items
    seconds: float  # for fitting and ranking

    def to_json(self) -> dict[str, Any]:
        intervals = {f"{name}_interval": list(bounds) for name, bounds in self.intervals.items()}
        shares = {f"coverage@{TOP}": self.coverage, f"popularity_share@{TOP}": self.popularity_share}
        return self.metrics | intervals | shares | {"seconds": self.seconds, "settings": self.settings}


@dataclass(frozen=True)
class Difference:
    """Paired difference: `row` minus `minus` on the same questions, with 95 % intervals by bootstrap over users."""

    row: str
    minus: str
    metrics: dict[str, float]
    intervals: dict[str, Interval]

    def to_json(self) -> dict[str, Any]:
        return self.metrics | {f"{name}_interval": list(bounds) for name, bounds in self.intervals.items()}


@dataclass(frozen=True)
class EvaluationReport:
    protocol: str
    role: str  # role of the events that are questions
    digest: str  # of the split
    seen: str  # the user's earlier items: filtered from the candidates, or kept
    users: int  # users with a question
    questions: int  # events to predict
    items: int  # candidates before filtering
    unknown_targets: int  # questions whose item is not in the vocabulary: misses
    seen_targets: int  # questions whose item is in the input: misses if seen items are filtered
    events: int  # events in the data
    seconds: float
    rows: tuple[Row, ...]
    differences: tuple[Difference, ...]  # the first row minus each other
    slices: tuple[Slice, ...]

    def to_json(self) -> dict[str, Any]:
        """The first row's metrics at the top level, every row's under `rows`."""
        shared = {
            name: value
            for name, value in asdict(self).items()
            if name not in ("rows", "differences", "slices", "seconds")
        }
        return (
            self.rows[0].to_json()
            | shared
            | {
                "row": self.rows[0].name,
                "seconds": self.seconds,
                "rows": {row.name: row.to_json() for row in self.rows},
                "differences": {difference.minus: difference.to_json() for difference in self.differences},
                "slices": [asdict(part) for part in self.slices],
            }
        )

    def text(self) -> str:
        """A table for the terminal."""
        widest = max(len(row.name) for row in self.rows)
        lines = [
            f"{self.protocol}, {self.role} events: {self.questions:,} of {self.users:,} users, "
            f"{self.items:,} items, seen items {self.seen}",
            f"targets seen before: {self.seen_targets:,}{' (misses)' if self.seen == 'filtered' else ''}; "
            f"never seen by anyone: {self.unknown_targets:,} (misses)",
            "",
            f"{'':{widest}}  {'Recall@10':>21}  {'NDCG@10':>21}  {'R@50':>6}  {'coverage':>8}  {'popular':>7}",
        ]
        for row in self.rows:
            recall, ndcg = (_with_interval(row, name) for name in ("recall@10", "ndcg@10"))
            lines.append(
                f"{row.name:{widest}}  {recall:>21}  {ndcg:>21}  {row.metrics['recall@50']:6.4f}  "
                f"{row.coverage:8.1%}  {row.popularity_share:7.1%}"
            )
        for difference in self.differences:
            low, high = difference.intervals["ndcg@10"]
            lines.append(
                f"{difference.row} - {difference.minus}: NDCG@10 {difference.metrics['ndcg@10']:+.4f} "
                f"({low:+.4f} to {high:+.4f})"
            )
        lines += ["", *(f"{row.name}: {row.settings}" for row in self.rows)]
        return "\n".join(lines)

    def picture(self) -> bytes:
        """A PNG: Recall@10 of every row by slice, with the number of questions below each band."""
        from matplotlib.figure import Figure  # slow import (0.5 s), seldom needed

        properties = list(dict.fromkeys(part.by for part in self.slices))
        figure = Figure(figsize=(10, 3.2 * len(properties)), dpi=120, layout="constrained")
        panels = figure.subplots(len(properties), 1, squeeze=False)[:, 0]
        width = 0.8 / len(self.rows)
        for axes, by in zip(panels, properties, strict=True):
            parts = [part for part in self.slices if part.by == by]
            for place, row in enumerate(self.rows):
                heights = [part.metrics[row.name]["recall@10"] for part in parts]
                left = [band + (place - (len(self.rows) - 1) / 2) * width for band in range(len(parts))]
                axes.bar(left, heights, width, color=_COLOURS[place % len(_COLOURS)], label=row.name)
            axes.set_xticks(range(len(parts)), [f"{part.band}\n{part.questions:,}" for part in parts])
            axes.set_ylabel("Recall@10")
            axes.set_title(f"by {by}", loc="left")
            axes.spines[["top", "right"]].set_visible(False)
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(self.rows))
        png = io.BytesIO()
        figure.savefig(png, format="png", metadata={"Software": None})
        return png.getvalue()


def _with_interval(row: Row, name: str) -> str:
    low, high = row.intervals[name]
    return f"{row.metrics[name]:.4f} ({low:.4f}-{high:.4f})"
