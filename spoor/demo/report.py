"""The end of the demo: turns the recorded results of the steps into the report, result.json and a terminal summary."""

from __future__ import annotations

import json
import os
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import numpy as np
import psutil
import pyarrow.compute as pc
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from spoor.base.files import atomic_write
from spoor.base.numbers import number_text
from spoor.console import to_json
from spoor.demo.page import DemoResult, FinishedStep, HistoryLine, Rate, write_report
from spoor.demo.pictures import favourite_genres
from spoor.demo.prepare import Demo
from spoor.demo.steps import RELEASE, STEPS, Step, shown_user
from spoor.encoder.release.folder import load_release
from spoor.ranking.ranker.lift import Estimate, LiftRow, LiftTable
from spoor.ranking.ranker.serving import Recommendation
from spoor.store.online import open_online

_HISTORY_LINES = 12
_TEST_SUBSET = "all requests"


def report(demo: Demo, done: dict[str, dict[str, Any]]) -> DemoResult:
    """Writes the pictures, report.html and result.json to the demo's folder."""
    release = load_release(demo.settings.features.releases_folder / RELEASE)
    summary, ranked = done["stream"]["summary"], done["rank"]
    history, todays = _history(demo)
    users, vectors = _vectors(demo)
    genres = favourite_genres(demo.data.events, demo.data.items, positive_actions=demo.positive_actions)
    result = DemoResult(
        data_name=demo.data.name,
        data_source=demo.data.source,
        events=len(demo.data.events),
        users=len(pc.unique(demo.data.events["user_id"])),
        items=len(pc.unique(demo.data.events["item_id"])),
        release=RELEASE,
        dimension=release.info.dimension,
        release_metrics={k: v for k, v in release.metrics.items() if isinstance(v, int | float)},
        curve_png=(release.info.folder / "curve.png").read_bytes(),
        steps=tuple(_step(demo, done[step.name], step) for step in STEPS),
        shown_user=shown_user(demo),
        history=history,
        todays_events=todays,
        feature_row=ranked["after"]["row"],
        before=_recommendations(ranked["before"]),
        after=_recommendations(ranked["after"]),
        lift=_lift_table(ranked["table"]),
        freshness_ms=_delays(summary["freshness_edges_ms"], summary["freshness_counts"]),
        rates=(
            _backfill_rate(done["backfill"]),
            Rate("stream, at the traffic's rate", summary["events"], "events", done["stream"]["produced"]["seconds"]),
        ),
        map_vectors=vectors,
        map_labels=tuple(genres.get(user) for user in users),
        verified_users=done["verify"]["users"],
        differences=done["verify"]["differences"],
        machine=_machine(),
        finished_at=datetime.now(UTC),
    )
    write_report(demo.folder, result)
    atomic_write(demo.folder / "result.json", json.dumps(figures(result), indent=2).encode())
    return result


def figures(result: DemoResult) -> dict[str, Any]:
    """The measurements with machine and data: a row for benchmarks/results."""
    return {
        "command": "spoor demo",
        "finished_at": result.finished_at.isoformat(timespec="seconds"),
        "machine": result.machine,
        "data": result.data_name,
        "seconds": {step.title: step.seconds for step in result.steps},
        "release_metrics": dict(result.release_metrics),
        "freshness_ms": dict(zip(("p50", "p99"), result.freshness or (), strict=False)),
        "rates_per_second": {rate.name: {"unit": rate.unit, "value": rate.per_second} for rate in result.rates},
        "verify": {"users": result.verified_users, "differences": result.differences},
        "lift": to_json(result.lift),
    }


def print_summary(demo: Demo, result: DemoResult) -> None:
    """Prints a summary on stderr."""
    console = Console(stderr=True, highlight=False)
    console.print(f"\n[bold]User {escape(result.shown_user)}[/bold], newest first:")
    for line in reversed(result.history[-6:]):
        console.print(
            f"  {datetime.fromtimestamp(line.time_ms / 1000, UTC):%Y-%m-%d %H:%M}  "
            f"{escape(line.action)}  {escape(line.title)}"
        )
    console.print("\n[bold]The feature row[/bold] of the first recommendation, as the ranker reads it from Feast:")
    for name, value in result.feature_row.items():
        console.print(f"  {name}: {escape(str(_short(value)))}")
    recommendations = Table("before today's events", "after", title="Recommendations", title_justify="left")
    for before, after in zip(result.before, result.after, strict=False):
        recommendations.add_row(escape(before.title), escape(after.title))
    console.print(recommendations)
    lift = Table("metric", "without", "with the embedding", "difference [95 %]", "reading", title="Lift")
    for row in result.lift.rows:
        if row.subset == _TEST_SUBSET:
            d = row.difference
            lift.add_row(
                row.metric,
                f"{row.without_embedding.mean:.4f}",
                f"{row.with_embedding.mean:.4f}",
                f"{d.mean:+.4f} [{d.low:+.4f}, {d.high:+.4f}]",
                row.verdict,
            )
    console.print(lift)
    if result.freshness is not None:
        console.print("freshness, append to readable: p50 {:,.0f} ms, p99 {:,.0f} ms".format(*result.freshness))
    for rate in result.rates:
        console.print(f"{rate.name}: {rate.per_second:,.0f} {rate.unit}/s")
    console.print(f"verify: {result.verified_users:,} users, {result.differences:,} differences")


def _backfill_rate(done: dict[str, Any]) -> Rate:
    """Rate of this run; `rows` also counts those of interrupted runs."""
    return Rate("backfill", round(done["users_per_second"] * done["seconds"]), "users", done["seconds"])


def _step(demo: Demo, done: dict[str, Any], step: Step) -> FinishedStep:
    return FinishedStep(step.title, "\n".join(step.commands(demo)), done["step_seconds"], step.outcome(done))


def _history(demo: Demo) -> tuple[tuple[HistoryLine, ...], int]:
    """The shown user's newest events, oldest first, and how many of them are today's."""
    mine = demo.data.events.filter(pc.equal(demo.data.events["user_id"], shown_user(demo)))
    titles = dict(zip(demo.data.items["item_id"].to_pylist(), demo.data.items["title"].to_pylist(), strict=True))
    rows = sorted(mine.to_pylist(), key=lambda row: row["timestamp"])[-_HISTORY_LINES:]
    lines = tuple(
        HistoryLine(row["timestamp"], row["action"], titles.get(row["item_id"], row["item_id"])) for row in rows
    )
    return lines, sum(row["timestamp"] >= demo.t90 for row in rows)


def _vectors(demo: Demo) -> tuple[list[str], Any]:
    """Every user with an embedding online: ids and float32[U, d]."""
    online = open_online(demo.settings.features)
    rows = [row for row in online.read_embeddings(RELEASE, sorted(online.user_ids())) if row is not None]
    return [row.user_id for row in rows], np.stack([row.embedding for row in rows])


def _delays(edges_ms: list[float], counts: list[int]) -> np.ndarray:
    """One delay per event of the worker's histogram (bins 5 % wide), spread evenly over its bin."""
    bins = zip(edges_ms, edges_ms[1:], counts, strict=False)
    return np.concatenate([np.linspace(low, high, count) for low, high, count in bins] or [np.empty(0)])


def _recommendations(served: dict[str, Any]) -> tuple[Recommendation, ...]:
    return tuple(Recommendation(**row) for row in served["recommendations"])


def _lift_table(table: dict[str, Any]) -> LiftTable:
    """The lift table from JSON, the only form that a reused step has."""
    estimates = ("without_embedding", "with_embedding", "difference")
    rows = [LiftRow(**(row | {name: Estimate(**row[name]) for name in estimates})) for row in table["rows"]]
    counts: dict[str, Any] = {name: value for name, value in table.items() if name != "rows"}
    return LiftTable(rows=tuple(rows), **counts)


def _machine() -> str:
    memory = psutil.virtual_memory().total / 2**30
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "feast", "apache-beam", "faust-streaming"))
    return f"{os.cpu_count()} cores, {memory:.0f} GiB, Python {platform.python_version()}, {versions}"


def _short(value: Any) -> str:
    if isinstance(value, list):
        head = ", ".join(f"{number:.3f}" for number in value[:4])
        return f"[{head}, …] ({len(value)} floats)"
    return number_text(value) if isinstance(value, int | float) else str(value)
