"""The demo's steps, in order. Each calls the functions of its printed commands and returns figures for the report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from spoor.activity.lake import open_lake
from spoor.base.files import atomic_path
from spoor.base.numbers import number_text
from spoor.base.times import iso_text
from spoor.demo.prepare import Demo
from spoor.demo.processes import WORKER_SECONDS, Worker, run_feast
from spoor.feature_repo.names import ITEM_ACTIVITY, USER_ACTIVITY

Record = dict[str, Any]
RELEASE = "demo-1"
DAY_MS = 86_400_000
TODAY_EVENTS_PER_SECOND = 1000.0


@dataclass(frozen=True)
class Step:
    name: str
    title: str
    commands: Callable[[Demo], list[str]]
    run: Callable[[Demo], Any]
    outcome: Callable[[Record], str]
    always: bool = False  # done in every run


def start_kafka(demo: Demo) -> Any:
    from spoor.services import local as services

    return services.ensure_up(demo.settings)


def produce_past(demo: Demo) -> Any:
    from spoor.operations.simulate import run_simulate

    return run_simulate(demo.settings, data=demo.events_file, to_ms=demo.t90)


def archive(demo: Demo) -> Any:
    from spoor.batch.kafka.archive import run_archive

    return run_archive(demo.settings)


def pretrain(demo: Demo) -> Any:
    from spoor.encoder.training.plan import PretrainRequest
    from spoor.encoder.training.run import run_pretrain

    result = run_pretrain(
        PretrainRequest(
            open_lake(demo.settings.lake),
            out=demo.settings.features.releases_folder / RELEASE,
            settings=demo.settings.pretrain,
            events=demo.settings.events,
            fixed=demo.settings.given("pretrain"),
            until_ms=demo.t70,
        ),
        resume=True,
        overwrite=True,
    )
    return {"metrics": result.metrics}


def existing_features(demo: Demo) -> Any:
    from spoor.ranking.features.existing_features import write_existing_features

    return write_existing_features(
        open_lake(demo.settings.lake), demo.settings.features, positive_actions=demo.positive_actions
    )


def register(demo: Demo) -> Any:
    for command in _feast_commands(demo):
        run_feast(demo, command)
    return {}


def backfill_snapshots(demo: Demo) -> Any:
    from spoor.batch.users.backfill import run_backfill

    times = (demo.t70, demo.t90, DAY_MS)
    return run_backfill(demo.settings, snapshots=times, into="offline", publish=False, resume=True)


def backfill(demo: Demo) -> Any:
    from spoor.batch.users.backfill import run_backfill
    from spoor.broker.create_topics import ensure_topics

    ensure_topics(demo.settings.kafka, releases=[RELEASE])
    return run_backfill(demo.settings, resume=True)


def stream(demo: Demo) -> Any:
    """Sends today's events at a steady rate while the worker runs; reads the shown user's features before and after."""
    from spoor.broker.reader import group_lag
    from spoor.operations.simulate import run_simulate
    from spoor.streaming.orders.control import group_members

    kafka, group = demo.settings.kafka, demo.settings.stream.group
    today = pc.sum(pc.greater_equal(demo.data.events["timestamp"], demo.t90)).as_py()
    _keep_features(demo, "before", demo.t90)
    with Worker(demo, seconds=2 * WORKER_SECONDS + 3 * today / TODAY_EVENTS_PER_SECOND) as worker:
        worker.wait_for(lambda: group_members(kafka, group) > 0, "joined the group")
        produced = run_simulate(demo.settings, data=demo.events_file, from_ms=demo.t90, rate=TODAY_EVENTS_PER_SECOND)
        worker.wait_for(lambda: sum(group_lag(kafka, group).values()) == 0, "caught up")
        summary = worker.stop()
    _keep_features(demo, "after", demo.end)
    return {"produced": produced, "summary": summary}


def archive_today(demo: Demo) -> Any:
    archived = archive(demo)
    existing_features(demo)
    return archived


def verify(demo: Demo) -> Any:
    from spoor.batch.users.verify import run_verify

    return run_verify(demo.settings)


def rank(demo: Demo) -> Any:
    """Trains and tests the ranker with and without the embedding; scores the shown user's features before and after."""
    from spoor.console import say
    from spoor.ranking.features.online import OnlineFeatures, feast_reader
    from spoor.ranking.ranker.lift import measure_lift
    from spoor.ranking.ranker.serving import RankerServer

    lift = measure_lift(
        demo.data.events,
        _catalogue(demo),
        feast_reader(demo.settings.features, RELEASE),
        train_ms=(demo.t70, demo.t90),
        test_ms=(demo.t90, demo.end),
        positive_actions=demo.positive_actions,
        progress=say,
    )
    server = RankerServer(OnlineFeatures(demo.settings.features, RELEASE), lift.ranker, demo.data.items)
    shown: dict[str, Any] = {"table": lift.table}
    for moment in ("before", "after"):
        table = pq.read_table(_features_file(demo, moment))
        served = server.rank(shown_user(demo), table, titles(demo), time_ms=demo.end)
        shown[moment] = {"recommendations": served.recommendations, "row": dict(served.row)}
    return shown


def shown_user(demo: Demo) -> str:
    """The user that the demo shows: the one with the most events both before today and today (the smaller count)."""
    times = demo.data.events["timestamp"]
    past = Counter(demo.data.events.filter(pc.less(times, demo.t90))["user_id"].to_pylist())
    today = Counter(demo.data.events.filter(pc.greater_equal(times, demo.t90))["user_id"].to_pylist())
    return max(sorted(today), key=lambda user: min(past[user], today[user]))


def titles(demo: Demo) -> dict[str, str]:
    """Title by item id, for the items of `_catalogue`."""
    known = set(_catalogue(demo))
    return {row["item_id"]: row["title"] for row in demo.data.items.to_pylist() if row["item_id"] in known}


def _catalogue(demo: Demo) -> list[str]:
    """Every item with an event before today, the candidates for recommendations."""
    before = pc.less(demo.data.events["timestamp"], demo.t90)
    return sorted(set(demo.data.events.filter(before)["item_id"].to_pylist()))


def _keep_features(demo: Demo, moment: str, now_ms: int) -> None:
    """Writes the feature rows that the ranker reads now, for the shown user and every item not seen before `now_ms`."""
    from spoor.ranking.features.online import OnlineFeatures

    user = shown_user(demo)
    mine = demo.data.events.filter(pc.equal(demo.data.events["user_id"], user))
    seen = set(mine.filter(pc.less(mine["timestamp"], now_ms))["item_id"].to_pylist())
    items = [item for item in _catalogue(demo) if item not in seen]
    table = OnlineFeatures(demo.settings.features, RELEASE).read(user, items)
    with atomic_path(_features_file(demo, moment)) as temporary:
        pq.write_table(table.append_column("item_id", pa.array(items, pa.string())), temporary)


def _features_file(demo: Demo, moment: str) -> Path:
    return demo.folder / "state" / f"features-{moment}.parquet"


def _feast_commands(demo: Demo) -> list[str]:
    repo, named = quote(str(demo.folder / "feature_repo")), demo.settings.features.named
    start, end = (iso_text(ms)[:19] for ms in (int(pc.min(demo.data.events["timestamp"]).as_py()) - DAY_MS, demo.t90))
    return [
        f"feast -c {repo} apply",
        f"feast -c {repo} materialize {start} {end} --views {named(USER_ACTIVITY)} --views {named(ITEM_ACTIVITY)}",
    ]


def _positive(demo: Demo) -> str:
    return "".join(f" --positive {quote(action)}" for action in demo.positive_actions)


def _features_command(demo: Demo) -> str:
    return f"spoor features build{_positive(demo)}"


def _compare_command(demo: Demo) -> str:
    times = f"--train-from {iso_text(demo.t70)} --test-from {iso_text(demo.t90)}"
    return f"spoor lift --data {quote(str(demo.events_file))} --release {RELEASE} {times}{_positive(demo)}"


def _metrics_line(done: Record) -> str:
    numbers = {key: value for key, value in done["metrics"].items() if isinstance(value, int | float)}
    return ", ".join(f"{name} {number_text(value)}" for name, value in list(numbers.items())[:4])


def _ranked_line(done: Record) -> str:
    ranked, found = (done["table"].get(name, 0) for name in ("test_requests", "test_requests_found"))
    return f"{ranked:,} requests ranked" + (f", a random sample of {found:,}" if ranked < found else "")


STEPS = (
    Step(
        "kafka",
        "A genuine Kafka",
        lambda demo: ["spoor services up"] if demo.settings.kafka.embedded else ["spoor services status"],
        start_kafka,
        lambda done: f"answers at {done['address']}",
        always=True,
    ),
    Step(
        "past",
        "The first 90 % of the events, as a product would send them",
        lambda demo: [f"spoor simulate --data {quote(str(demo.events_file))} --to {iso_text(demo.t90)}"],
        produce_past,
        lambda done: f"{done['events']:,} events of {done['users']:,} users",
    ),
    Step(
        "archive",
        "Kafka's events into the lake",
        lambda demo: ["spoor archive"],
        archive,
        lambda done: f"{done['events']:,} events",
    ),
    Step(
        "pretrain",
        "The encoder learns from the first 70 %",
        lambda demo: [f"spoor pretrain --release {RELEASE} --until {iso_text(demo.t70)} --resume"],
        pretrain,
        _metrics_line,
    ),
    Step(
        "features",
        "The features that a company has already",
        lambda demo: [_features_command(demo)],
        existing_features,
        lambda done: f"{done['user_rows']:,} user rows, {done['item_rows']:,} item rows",
    ),
    Step("feast", "Feast: definitions, and its own materialisation", _feast_commands, register, lambda done: "applied"),
    Step(
        "snapshots",
        "Daily snapshots of 70 to 90 % for the ranker's training",
        lambda demo: [f"spoor backfill --from {iso_text(demo.t70)} --to {iso_text(demo.t90)} --every 24h"],
        backfill_snapshots,
        lambda done: f"{done['offline_rows']:,} rows at {done['snapshots']} times",
    ),
    Step(
        "backfill",
        "Everybody's history and embedding, online and offline",
        lambda demo: ["spoor backfill"],
        backfill,
        lambda done: f"{done['rows']:,} users, {done['item_vectors']:,} item vectors",
    ),
    Step(
        "stream",
        "Today's traffic, while the worker keeps the store fresh",
        lambda demo: [
            "spoor stream --from-lake &",
            f"spoor simulate --data {quote(str(demo.events_file))} --from {iso_text(demo.t90)} "
            f"--rate {TODAY_EVENTS_PER_SECOND:g}",
        ],
        stream,
        lambda done: f"{done['summary']['events']:,} events, p50 {done['summary']['freshness_p50_ms'] or 0:,.0f} ms",
    ),
    Step(
        "today",
        "Today's events into the lake, and what the stream published into the offline log",
        lambda demo: ["spoor archive", _features_command(demo)],
        archive_today,
        lambda done: f"{done['events']:,} events",
    ),
    Step(
        "verify",
        "What is online, recomputed from the lake",
        lambda demo: ["spoor verify"],
        verify,
        lambda done: f"{done['users']:,} users, {done['differences']:,} differences",
        always=True,
    ),
    Step(
        "rank",
        "A ranker with and without the embedding",
        lambda demo: [_compare_command(demo)],
        rank,
        _ranked_line,
    ),
)
