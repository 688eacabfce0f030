"""Fine-tuning: from an event log and a feature store to a ranker file.

    events -> impressions of the training window [t0, t1) and of the test window after it
           -> features, vectors and histories of their requests, from Feast at their point in time
           -> host and encoder trained on the first window, measured on the second

The release was trained on events before t0, so pretraining, fine-tuning and test events are disjoint.
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

from spoor.base.errors import DataError, UsageError
from spoor.encoder.release.folder import Release
from spoor.kernels.backend import require_usable
from spoor.ranking.features.attributes import AttributeLayout
from spoor.ranking.features.dataset import Reader
from spoor.ranking.features.impressions import AGES_KNOWN_DAYS, DAY_MS, Impressions, find_impressions
from spoor.ranking.ranker.measure import GroupBy, measure
from spoor.ranking.ranker.rows import HistoryReader, RankingData, read_rows
from spoor.ranking.ranker.train import fine_tune
from spoor.ranking.ranker.tuned import check_free, save_ranker
from spoor.ranking.settings import FinetuneSettings, ImpressionSettings


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
                hint="give --from before --until, and both within the events",
            )


@dataclass(frozen=True, eq=False)
class Source:
    """Sources of a window's rows. `items`: attributes by item_id; only the column `item_id` is required."""

    events: pa.Table
    items: pa.Table
    release: Release
    read: Reader
    read_histories: HistoryReader

    def impressions(self, settings: ImpressionSettings, *, from_ms: int, to_ms: int) -> Impressions:
        """Impressions of [from_ms, to_ms), from events before its end only. Raises DataError if there are none."""
        return find_impressions(_before(self.events, to_ms), settings, from_ms=from_ms, to_ms=to_ms)

    def rows(self, impressions: Impressions, layout: AttributeLayout) -> RankingData:
        """All ranker inputs of the impressions. Raises DataError."""
        return read_rows(
            impressions,
            self.read,
            self.read_histories,
            items=self.items,
            layout=layout,
            dimension=self.release.info.dimension,
        )

    def missing_histories(self, data: RankingData) -> int:
        """Number of requests without a stored history although their user had earlier events."""
        first = self.events.group_by("user_id").aggregate([("timestamp", "min")])
        known = dict(zip(first["user_id"].to_pylist(), first["timestamp_min"].to_pylist(), strict=True))
        users, times = data.impressions.user_ids, data.impressions.times_ms
        acted = np.array([known[user] <= time for user, time in zip(users, times, strict=True)], bool)
        return int((acted & ~data.stored).sum())

    def layout(self, *, before_ms: int) -> AttributeLayout:
        """The attribute layout, computed from items with an event before this time."""
        known = pc.unique(_before(self.events, before_ms)["item_id"]).to_pylist()
        return AttributeLayout.of(self.items, known=known)


@dataclass(frozen=True)
class FinetuneResult:
    """`metrics`: of training, and under `test` of the test window if it has impressions; None for undefined values;
    empty after a dry run. `ranker`: the file's path, None after a dry run."""

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
    """Reports its plan, trains on one window, measures on the next and writes the ranker's file.

    Raises UsageError (also if the release was trained on events of the windows), DataError, InfrastructureError.
    """
    require_usable()
    check_windows(source.release, windows)
    check_free(out, overwrite=overwrite)
    shown = settings.impressions
    found = source.impressions(shown, from_ms=windows.tune_from, to_ms=windows.test_from)
    impressions = found.sample(settings.max_rows, seed=settings.seed)
    layout = source.layout(before_ms=windows.test_from)
    settings.fusion_config.check_attributes(layout.width)
    positives = zip(impressions.tasks, impressions.labels.sum(0), strict=True)
    plan = [
        f"release: {source.release.info.name}, trained through {_time(source.release.info.trained_through_ms)}",
        f"training: {len(impressions.item_ids):,} impressions of {_of(impressions, found, settings)} requests, "
        f"{_time(windows.tune_from)} to {_time(windows.test_from)}, "
        f"{impressions.candidates_per_history:.1f} candidates per request",
        f"ranker: {settings.fusion} fusion, module {settings.module}, tasks by positives: "
        + ", ".join(f"{task} {count:,.0f}" for task, count in positives),
        f"attributes: {', '.join(attribute.name for attribute in layout.attributes) or 'none'}",
        f"file: {out}",
        *(f"warning: {text}" for text in _doubts(source, windows, shown)),
    ]
    for line in plan:
        progress(line)
    if dry_run:
        return FinetuneResult(plan, None, {})
    train = source.rows(impressions, layout)
    test = _test_rows(source, layout, windows, settings, progress)
    read = {"training": train} | ({"test": test} if test is not None else {})
    histories = {window: _histories(source, data) for window, data in read.items()}
    if settings.fusion_config.reads_histories:
        _warn_of_missing(histories, progress)
    tuned = fine_tune(
        source.release, train, _before(source.events, windows.test_from), settings=settings, progress=progress
    )
    metrics: dict[str, Any] = {
        "training_rows": len(train.impressions.item_ids),
        "training_positives": int(train.impressions.labels[:, 0].sum()),
        "candidates_per_history": tuned.rows_per_context,
        "histories": histories,
        "epoch": tuned.epoch,
        "validation_auc": _number(tuned.validation_auc[tuned.epoch - 1]),
    }
    if test is not None:
        scores = {settings.fusion: tuned.ranker.score(test)[None, :, 0]}
        metrics["test"] = [
            {key: _number(value) for key, value in (asdict(row) | asdict(row.figure)).items() if key != "figure"}
            for row in measure(test.impressions, scores, group_by=group_by, seed=settings.seed).rows
        ]
    save_ranker(out, tuned.ranker, overwrite=overwrite)
    return FinetuneResult(plan, out, metrics)


def check_windows(release: Release, windows: Windows) -> None:
    """Raises UsageError if the release was trained on events of the windows."""
    through = release.info.trained_through_ms
    if through >= windows.tune_from:
        raise UsageError(
            f"release `{release.info.name}` was trained on events up to {_time(through)}, the windows begin at "
            f"{_time(windows.tune_from)}: it would be measured on what it has learnt",
            hint="choose a later --from, or train a release with "
            f"`spoor pretrain --release NAME --until {_iso(windows.tune_from)}`",
        )


def _doubts(source: Source, windows: Windows, settings: ImpressionSettings) -> list[str]:
    """Warnings on input that can be trained on but may be a mistake."""
    doubts = []
    known = set(pc.unique(source.events["action"]).to_pylist())
    unknown = [action for action in (*settings.positive, *settings.shown) if action not in known]
    if unknown:
        doubts.append(f"no event has the action {', '.join(unknown)}, found {', '.join(sorted(known))}")
    days = (windows.tune_from - pc.min(source.events["timestamp"]).as_py()) / DAY_MS
    if days < AGES_KNOWN_DAYS:
        doubts.append(
            f"the events begin {days:.0f} days before the training window, expected {AGES_KNOWN_DAYS}: items of "
            "unknown age count as new"
        )
    return doubts


def _histories(source: Source, data: RankingData) -> dict[str, int]:
    return {
        "requests": data.impressions.requests,
        "without_history": int((~data.stored).sum()),
        "without_history_despite_events": source.missing_histories(data),
    }


def _warn_of_missing(histories: dict[str, dict[str, int]], progress: Callable[[str], None]) -> None:
    """Reports one warning for all windows."""
    found = [
        f"{counts['without_history_despite_events']:,} of {counts['requests']:,} {window} requests"
        for window, counts in histories.items()
        if counts["without_history_despite_events"]
    ]
    if found:
        progress(
            f"warning: {' and '.join(found)} have no history in the feature store although their users had acted "
            "before; an empty one stands in (hint: cover their time with `spoor backfill --from`)"
        )


def _test_rows(
    source: Source,
    layout: AttributeLayout,
    windows: Windows,
    settings: FinetuneSettings,
    progress: Callable[[str], None],
) -> RankingData | None:
    """Rows of the test window; None without impressions after the training window."""
    if windows.test_to == windows.test_from:
        return None
    try:
        found = source.impressions(settings.impressions, from_ms=windows.test_from, to_ms=windows.test_to)
    except DataError as error:
        progress(f"no test: {error.message}")
        return None
    impressions = found.sample(settings.max_rows, seed=settings.seed)
    if impressions is not found:
        progress(f"test: {len(impressions.item_ids):,} impressions of {_of(impressions, found, settings)} requests")
    return source.rows(impressions, layout)


def _of(used: Impressions, found: Impressions, settings: FinetuneSettings) -> str:
    if used is found:
        return f"{used.requests:,}"
    return f"{used.requests:,} of {found.requests:,} (a random sample, seed {settings.seed}; finetune.max_rows)"


def _before(events: pa.Table, time_ms: int) -> pa.Table:
    return events.filter(pc.less(events["timestamp"], time_ms))


def _time(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def _iso(time_ms: int) -> str:
    """The time in the format of command options."""
    return datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _number(value: Any) -> Any:
    """NaN becomes None, since JSON has no NaN."""
    if isinstance(value, float | np.floating):
        return None if math.isnan(value) else float(value)
    return value
