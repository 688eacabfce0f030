"""Renders the demo's report: pictures, and one self-contained HTML file (report.html.j2).

report.py fills a DemoResult; this module only renders it. All figures come from the run.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from jinja2 import Environment, FileSystemLoader

from spoor.base.files import atomic_write
from spoor.demo.pictures import freshness_histogram, user_map
from spoor.ranking.ranker.lift import LiftTable
from spoor.ranking.ranker.serving import Recommendation

CURVE, FRESHNESS, MAP, REPORT = "training_curve.png", "freshness.png", "user_map.png", "report.html"
_TEMPLATE = "report.html.j2"


@dataclass(frozen=True)
class FinishedStep:
    """A finished step of the demo, with the command that a user would type."""

    title: str
    command: str
    seconds: float
    outcome: str  # one line, e.g. `90,000 events`


@dataclass(frozen=True)
class HistoryLine:
    time_ms: int
    action: str
    title: str

    @property
    def time(self) -> str:
        """UTC to the second."""
        return datetime.fromtimestamp(self.time_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")


@dataclass(frozen=True)
class Rate:
    """`count` things of `unit` in `seconds`."""

    name: str
    count: int
    unit: str
    seconds: float

    @property
    def per_second(self) -> float:
        return self.count / self.seconds if self.seconds > 0 else 0.0


@dataclass(frozen=True, eq=False)
class DemoResult:
    data_name: str
    data_source: str
    events: int
    users: int
    items: int
    release: str
    dimension: int
    release_metrics: Mapping[str, float]  # from the release's metrics.json
    curve_png: bytes  # the release's curve.png
    steps: tuple[FinishedStep, ...]
    shown_user: str
    history: tuple[HistoryLine, ...]  # of the shown user, oldest first
    todays_events: int  # number of today's lines at the end of the history
    feature_row: Mapping[str, Any]  # as Feast returned it online; None = null
    before: tuple[Recommendation, ...]  # before today's events, best first
    after: tuple[Recommendation, ...]
    lift: LiftTable
    freshness_ms: npt.NDArray[np.float64]  # append → readable, one per event
    rates: tuple[Rate, ...]
    map_vectors: npt.NDArray[np.float32]  # float32[U, d]
    map_labels: tuple[str | None, ...]  # the users' favourite genres
    verified_users: int
    differences: int  # found by `spoor verify`
    machine: str  # processor, cores, memory, versions
    finished_at: datetime  # with a zone

    @property
    def freshness(self) -> tuple[float, float] | None:
        """p50 and p99 in ms; None without measurements."""
        if not len(self.freshness_ms):
            return None
        p50, p99 = np.percentile(self.freshness_ms, (50, 99))
        return float(p50), float(p99)


def write_report(folder: Path, result: DemoResult) -> Path:
    """Writes the three pictures and report.html to the folder, each atomically; returns the report's path. Raises
    InfrastructureError if the folder cannot be written."""
    pictures = {
        CURVE: result.curve_png,
        FRESHNESS: freshness_histogram(result.freshness_ms),
        MAP: user_map(result.map_vectors, result.map_labels),
    }
    for name, content in pictures.items():
        atomic_write(folder / name, content)
    path = folder / REPORT
    atomic_write(path, render(result, pictures).encode())
    return path


def render(result: DemoResult, pictures: Mapping[str, bytes]) -> str:
    """The report as one HTML document with embedded pictures."""
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True)
    environment.filters["fmt"] = format
    return environment.get_template(_TEMPLATE).render(
        result=result,
        pictures={name: base64.b64encode(content).decode() for name, content in pictures.items()},
        recommendations=_moves(result.before, result.after),
        finished=result.finished_at.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )


def _moves(before: Sequence[Recommendation], after: Sequence[Recommendation]) -> Iterator[tuple[str, str, str]]:
    """Per rank, best first: title before, title after, and the latter's move ("was 3", "new", or "" if none)."""
    earlier = {item.item_id: rank for rank, item in enumerate(before, 1)}
    for rank, (old, new) in enumerate(zip_longest(before, after), 1):
        was = None if new is None else earlier.get(new.item_id)
        move = "" if new is None or was == rank else "new" if was is None else f"was {was}"
        yield "" if old is None else old.title, "" if new is None else new.title, move
