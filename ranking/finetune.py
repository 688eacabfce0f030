"""Fine-tuning from a log and a feature store to a ranker in a file.

    events -> impressions of [t0, t1) and of what comes after
           -> features, vectors and histories of their requests, from Feast at their point in time
           -> host and encoder trained on the first, measured on the second

The release was trained before t0: what it saw, what the ranker learns from and what both are measured on are disjoint.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from activity.errors import DataError, UsageError
from encoder.release import Release
from ranking.attributes import AttributeLayout
from ranking.dataset import Reader
from ranking.host import HostConfig
from ranking.impressions import find_impressions
from ranking.measure import GroupBy, measure
from ranking.rows import HistoryReader, RankingData, read_rows
from ranking.settings import FinetuneSettings, ImpressionSettings
from ranking.train import fine_tune
from ranking.tuned import save_ranker


@dataclass(frozen=True)
class Windows:
    """In ms since 1970: pretraining before `tune_from`, fine-tuning before `test_from`, test before `test_to`."""

    tune_from: int
    test_from: int
    test_to: int

    def __post_init__(self) -> None:
        if not self.tune_from < self.test_from <= self.test_to:
            raise UsageError(
                f"the training window [{_time(self.tune_from)}, {_time(self.test_from)}) ends before it begins, or "
                f"after the last event, {_time(self.test_to)}",
                hint="--from and --until are ISO 8601 with a zone, both within the events",
            )


@dataclass(frozen=True, eq=False)
class Source:
    """Where a window's rows come from. `items`: attributes by item_id (a column `item_id` alone is enough)."""

    events: pa.Table
    items: pa.Table
    release: Release
    read: Reader
    read_histories: HistoryReader

    def rows(
        self, impressions: ImpressionSettings, layout: AttributeLayout, *, from_ms: int, to_ms: int
    ) -> RankingData:
        """The window [from_ms, to_ms), told by events before its end alone. Raises DataError."""
        events = _before(self.events, to_ms)
        return read_rows(
            find_impressions(events, impressions, from_ms=from_ms, to_ms=to_ms),
            self.read,
            self.read_histories,
            items=self.items,
            layout=layout,
            dimension=self.release.info.dimension,
        )

    def layout(self, *, before_ms: int) -> AttributeLayout:
        """Of the attributes, decided by the items that occurred before this time."""
        known = pc.unique(_before(self.events, before_ms)["item_id"]).to_pylist()
        return AttributeLayout.of(self.items, known=known)


@dataclass(frozen=True)
class FinetuneResult:
    """`metrics` are of the test window, empty where no events lie after the training; None for what cannot be
    measured. `ranker` is None after a dry run."""

    plan: list[str]
    ranker: Path | None
    metrics: dict[str, Any]


def run_finetune(
    source: Source,
    windows: Windows,
    *,
    out: Path,
    settings: FinetuneSettings,
    group_by: GroupBy = "request",
    dry_run: bool = False,
    overwrite: bool = False,
    progress: Callable[[str], None] = lambda line: print(line, file=sys.stderr),
) -> FinetuneResult:
    """Trains on one window, measures on the next and writes the ranker's file. Says what it will do first.

    Raises UsageError (also for a release that was trained on the windows' events), DataError, InfrastructureError.
    """
    check_windows(source.release, windows)
    if out.exists() and not overwrite:
        raise UsageError(f"`{out}` exists already", hint="choose another name, or ask to overwrite it")
    impressions = find_impressions(
        _before(source.events, windows.test_from),
        settings.impressions,
        from_ms=windows.tune_from,
        to_ms=windows.test_from,
    )
    plan = [
        f"release: {source.release.info.name}, trained through {_time(source.release.info.trained_through_ms)}",
        f"training: {len(impressions.item_ids):,} impressions of {impressions.requests:,} requests, "
        f"{_time(windows.tune_from)} to {_time(windows.test_from)}, "
        f"{impressions.candidates_per_history:.1f} candidates per request",
        f"ranker: {settings.fusion} fusion, module {settings.module}, tasks {', '.join(impressions.tasks)}",
        f"file: {out}",
    ]
    for line in plan:
        progress(line)
    if dry_run:
        return FinetuneResult(plan, None, {})
    layout = source.layout(before_ms=windows.test_from)
    train = source.rows(settings.impressions, layout, from_ms=windows.tune_from, to_ms=windows.test_from)
    tuned = fine_tune(
        source.release, train, _before(source.events, windows.test_from), settings=settings, progress=progress
    )
    metrics: dict[str, Any] = {
        "training_rows": len(train.impressions.item_ids),
        "training_positives": int(train.impressions.labels[:, 0].sum()),
        "candidates_per_history": tuned.rows_per_context,
        "epoch": tuned.epoch,
        "validation_auc": _number(tuned.validation_auc[tuned.epoch - 1]),
    }
    test = _test_rows(source, layout, windows, settings)
    if test is not None:
        scores = {settings.fusion: tuned.ranker.score(test)[None, :, 0]}
        metrics["test"] = [
            {key: _number(value) for key, value in (asdict(row) | asdict(row.figure)).items() if key != "figure"}
            for row in measure(test.impressions, scores, group_by=group_by, seed=settings.seed).rows
        ]
    save_ranker(out, tuned.ranker, host=HostConfig(), overwrite=overwrite)
    return FinetuneResult(plan, out, metrics)


def check_windows(release: Release, windows: Windows) -> None:
    """Raises UsageError for a release that has seen events of the windows."""
    through = release.info.trained_through_ms
    if through >= windows.tune_from:
        raise UsageError(
            f"release `{release.info.name}` was trained on events up to {_time(through)}, the windows begin at "
            f"{_time(windows.tune_from)}: it would be measured on what it has learnt",
            hint="choose a later --from, or train a release with `spoor pretrain --until`",
        )


def _test_rows(
    source: Source, layout: AttributeLayout, windows: Windows, settings: FinetuneSettings
) -> RankingData | None:
    """None where nothing was shown after the training window."""
    if windows.test_to == windows.test_from:
        return None
    try:
        return source.rows(settings.impressions, layout, from_ms=windows.test_from, to_ms=windows.test_to)
    except DataError as error:
        print(f"no test: {error.message}", file=sys.stderr)
        return None


def _before(events: pa.Table, time_ms: int) -> pa.Table:
    return events.filter(pc.less(events["timestamp"], time_ms))


def _time(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def _number(value: Any) -> Any:
    """JSON has no NaN."""
    if isinstance(value, float | np.floating):
        return None if math.isnan(value) else float(value)
    return value
