"""The demo's report: pictures and one HTML file that holds everything and needs no network.

run.py fills a DemoResult; this file only tells it. Figures come from the run, none is rounded to look better.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from spoor.base.files import atomic_write
from spoor.demo.pictures import freshness_histogram, user_map
from spoor.ranking.ranker.evaluate import Estimate, LiftTable
from spoor.ranking.ranker.recommend import Recommendation

CURVE, FRESHNESS, MAP, REPORT = "training_curve.png", "freshness.png", "user_map.png", "report.html"


@dataclass(frozen=True)
class Step:
    """One step of the demo as a user would type it."""

    title: str
    command: str
    seconds: float
    outcome: str  # one line, e.g. `90,000 events into 12 files`; `reused` where nothing was left to do


@dataclass(frozen=True)
class HistoryLine:
    time_ms: int
    action: str
    title: str


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
    steps: tuple[Step, ...]
    shown_user: str
    history: tuple[HistoryLine, ...]  # of the shown user, oldest first
    todays_events: int  # how many of the newest lines of the history are today's
    feature_row: Mapping[str, Any]  # as Feast returned it online; None = null
    before: tuple[Recommendation, ...]  # before today's events, best first
    after: tuple[Recommendation, ...]
    lift: LiftTable
    freshness_ms: npt.NDArray[np.float64]  # append → readable, one per event
    rates: tuple[Rate, ...]
    map_vectors: npt.NDArray[np.float32]  # float32[U, d]
    map_labels: tuple[str | None, ...]  # the users' favourite genres
    verified_users: int
    differences: int  # that `spoor verify` found
    machine: str  # processor, cores, memory, versions
    finished_at: datetime  # with a zone

    @property
    def freshness(self) -> tuple[float, float] | None:
        """p50 and p99 in ms; None where nothing was measured."""
        if not len(self.freshness_ms):
            return None
        p50, p99 = np.percentile(self.freshness_ms, (50, 99))
        return float(p50), float(p99)


def write_report(folder: Path, result: DemoResult) -> Path:
    """Writes the three pictures and report.html into the folder, each atomically. Returns the report's path. Raises
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
    """The report as one HTML document; pictures are embedded."""
    sections = [
        _summary(result),
        _section("What ran", _steps_table(result.steps)),
        _section("A ranker reads it", _shown_user(result)),
        _section("Does the embedding help?", _lift(result.lift)),
        _section("Freshness and speed", _picture(pictures[FRESHNESS], "Freshness histogram") + _rates(result.rates)),
        _section("The release", _release(result) + _picture(pictures[CURVE], "Training curve")),
        _section("The users", _picture(pictures[MAP], "Map of users") + f"<p class=note>{_MAP_NOTE}</p>"),
    ]
    title = f"Spoor: {result.data_name}"
    return _PAGE.format(title=escape(title), style=_STYLE, body="\n".join(sections))


def _summary(result: DemoResult) -> str:
    freshness = result.freshness
    tiles = [
        (f"{result.events:,}", f"events of {result.users:,} users and {result.items:,} items"),
        (f"{freshness[0]:,.0f} / {freshness[1]:,.0f} ms" if freshness else "not measured", "freshness p50 / p99"),
        (f"{result.differences:,}", f"differences that verify found in {result.verified_users:,} users"),
        (f"{sum(step.seconds for step in result.steps):,.0f} s", "for all steps"),
    ]
    cells = "".join(f"<div><b>{escape(value)}</b><span>{escape(name)}</span></div>" for value, name in tiles)
    when = result.finished_at.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")
    source = f"{result.data_name} from {result.data_source}. {result.machine}. {when}."
    return f"<header><h1>From Kafka to a ranker's feature row</h1><p class=note>{escape(source)}</p></header>" + (
        f'<div class="tiles">{cells}</div>'
    )


def _steps_table(steps: Sequence[Step]) -> str:
    rows = [
        [escape(s.title), f"<code>{escape(s.command)}</code>", escape(s.outcome), f"{s.seconds:,.1f}"] for s in steps
    ]
    return _table(["step", "command", "outcome", "seconds"], rows, numbers={3})


def _shown_user(result: DemoResult) -> str:
    lines = list(enumerate(result.history))
    first_today = len(lines) - result.todays_events
    newest = [
        [_moment(line.time_ms), escape(line.action), escape(line.title), "today" if index >= first_today else ""]
        for index, line in reversed(lines)
    ]
    history = _table(["when (UTC)", "action", "item", ""], newest)
    features = _table(
        ["feature", "value"], [[f"<code>{escape(k)}</code>", _value(v)] for k, v in result.feature_row.items()]
    )
    return (
        f"<h3>Newest history of user {escape(result.shown_user)}</h3>{history}"
        f"<h3>The feature row, as the ranker sees it</h3>{features}"
        "<h3>Recommendations before and after today's events</h3>" + _recommendations(result.before, result.after)
    )


def _recommendations(before: Sequence[Recommendation], after: Sequence[Recommendation]) -> str:
    earlier = {item.item_id: rank for rank, item in enumerate(before, 1)}
    rows = []
    for rank in range(1, max(len(before), len(after)) + 1):
        left = escape(before[rank - 1].title) if rank <= len(before) else ""
        right, move = "", ""
        if rank <= len(after):
            item = after[rank - 1]
            right = escape(item.title)
            was = earlier.get(item.item_id)
            move = "new" if was is None else "" if was == rank else f"was {was}"
        rows.append([str(rank), left, right, move])
    return _table(["", "before", "after", ""], rows, numbers={0})


def _lift(table: LiftTable) -> str:
    rows = [
        [
            escape(row.subset),
            escape(row.metric),
            f"{row.users:,}",
            f"{row.requests:,}",
            _estimate(row.without_embedding),
            _estimate(row.with_embedding),
            _estimate(row.difference, signed=True),
            escape(row.verdict),
        ]
        for row in table.rows
    ]
    head = ["requests of", "metric", "users", "requests", "without", "with the embedding", "difference", "reading"]
    note = (
        f"The same small ranker, trained on {table.train_rows:,} rows of {table.train_requests:,} requests and tested "
        f"on {table.test_requests:,} later requests ({table.test_rows:,} candidates: every item that the user had not "
        "seen). A request is the start of a visit; relevant is what the user then acted on positively. In brackets: "
        "95 % intervals, bootstrap over users; the difference is paired; mean of "
        f"{table.seeds} seeds. Features are read at the request's time: {table.train_covered:.0%} of the training "
        f"requests and {table.test_covered:.0%} of the test requests had an embedding by then. Nothing was tuned on "
        "the test requests." + (f" To bound memory and time, this is {table.sampled}." if table.sampled else "")
    )
    return _table(head, rows, numbers={2, 3, 4, 5, 6}) + f"<p class=note>{note}</p>"


def _rates(rates: Sequence[Rate]) -> str:
    rows = [
        [escape(r.name), f"{r.count:,} {escape(r.unit)}", f"{r.seconds:,.1f}", f"{r.per_second:,.0f}"] for r in rates
    ]
    return _table(["what", "how many", "seconds", "per second"], rows, numbers={1, 2, 3})


def _release(result: DemoResult) -> str:
    rows = [["name", f"<code>{escape(result.release)}</code>"], ["dimension", str(result.dimension)]]
    rows += [[f"<code>{escape(name)}</code>", _value(value)] for name, value in result.release_metrics.items()]
    return _table(["", ""], rows)


def _section(title: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{body}</section>"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: set[int] | None = None) -> str:
    """Cells are HTML already. `numbers`: columns that are aligned to the right."""

    def line(cells: Sequence[str], tag: str) -> str:
        marks = (' class="number"' if index in (numbers or set()) else "" for index in range(len(cells)))
        return "<tr>" + "".join(f"<{tag}{m}>{c}</{tag}>" for m, c in zip(marks, cells, strict=True)) + "</tr>"

    top = f"<thead>{line([escape(name) for name in head], 'th')}</thead>" if any(head) else ""
    return f'<div class="wide"><table>{top}<tbody>{"".join(line(row, "td") for row in rows)}</tbody></table></div>'


def _picture(content: bytes, name: str) -> str:
    data = base64.b64encode(content).decode()
    return f'<img alt="{escape(name)}" src="data:image/png;base64,{data}">'


def _estimate(estimate: Estimate, *, signed: bool = False) -> str:
    sign = "+" if signed else ""
    interval = f"[{estimate.low:{sign}.4f}, {estimate.high:{sign}.4f}]"
    return f"{estimate.mean:{sign}.4f} <small>{interval}</small>"


def _value(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, list | tuple | np.ndarray):
        shown = ", ".join(f"{float(number):.3f}" for number in value[:6])
        return f"[{shown}{', …' if len(value) > 6 else ''}] <small>{len(value)} floats</small>"
    if isinstance(value, float):
        return f"{value:,.0f}" if value.is_integer() else f"{value:.4f}"
    return escape(f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value))


def _moment(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")


_MAP_NOTE = (
    "Principal components of the users' embeddings. A user's favourite genre is the one whose share of the user's "
    "liked items lies furthest above the average; the model never sees genres."
)
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff; max-width: 62rem; margin: 2rem auto;
  padding: 0 1rem; }
h1 { font-size: 1.8rem; margin-bottom: .2rem; } h2 { margin-top: 2.5rem; } h3 { margin: 1.5rem 0 .5rem; }
.note { color: #555; font-size: .9rem; } small { color: #666; white-space: nowrap; }
.tiles { display: flex; flex-wrap: wrap; gap: 1rem; margin: 1.5rem 0; }
.tiles div { flex: 1 1 11rem; border: 1px solid #ddd; border-radius: 6px; padding: .8rem 1rem; }
.tiles b { display: block; font-size: 1.35rem; } .tiles span { color: #555; font-size: .85rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; margin: .5rem 0 1rem; font-size: .9rem; }
th, td { text-align: left; padding: .3rem .9rem .3rem 0; border-bottom: 1px solid #eee; vertical-align: top; }
th { color: #555; font-weight: 600; } .number { text-align: right; font-variant-numeric: tabular-nums; }
code { font: .85em ui-monospace, monospace; } img { max-width: 100%; height: auto; }
"""
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>{style}</style></head><body>
{body}
</body></html>
"""
