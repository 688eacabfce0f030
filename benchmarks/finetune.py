"""What does a user encoder give a ranker: by its vector, by crossing candidate and history, to new items?

    python -m benchmarks.finetune --set deskdrop --seeds 3 --json
    python -m benchmarks.finetune --set ml100k --seeds 3 --json
    python -m benchmarks.finetune --table

Three windows of one log follow one another: pretraining (60 % of the events), fine-tuning (20 %), test (20 %). A Feast
repo gets what a company would have: features of the days before, each history as it was at each request, the release's
vectors. Every row of the table is the same host on the same impressions; only the module beside it differs. The figures
are means over seeds with 95 % intervals by bootstrap over users (measure.py); `ratio` is the AUC of the best
row with a module over that of the row without. Data are read from ../shared/data and never committed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from spoor.activity.history import Histories, group_events, history_values
from spoor.activity.lake import Lake
from spoor.activity.packing import pack
from spoor.activity.settings import EventSettings
from spoor.activity.sources.event_files import read_events, read_table, spread_ties
from spoor.encoder.release.folder import Release, load_release
from spoor.encoder.release.inference import FrozenEncoder
from spoor.encoder.training.plan import PretrainRequest
from spoor.encoder.training.run import run_pretrain
from spoor.encoder.training.settings import PretrainSettings
from spoor.feature_repo.settings import FeatureSettings
from spoor.ranking.features.existing_features import write_existing_features
from spoor.ranking.features.impressions import find_impressions, window_times
from spoor.ranking.features.online import feast_reader, history_reader
from spoor.ranking.ranker.finetune import Source, Windows, check_windows
from spoor.ranking.ranker.measure import CLAIM_POSITIVES, GroupBy, Measurements, measure
from spoor.ranking.ranker.rows import RankingData
from spoor.ranking.ranker.train import fine_tune
from spoor.ranking.settings import FinetuneSettings, ImpressionSettings
from spoor.store.offline import open_offline
from spoor.store.repo import apply, create_repo
from spoor.store.rows import EmbeddingRow, UserWrite

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
RESULTS = Path(__file__).parent / "results" / "finetune.jsonl"
RELEASE = "pretrained-1"
GOAL = 1.0
_LAKE_BUCKETS = 2


@dataclass(frozen=True)
class LogSet:
    """`group_by`: what HIT@3 ranks within; deskdrop's visits are too short for five candidates."""

    impressions: ImpressionSettings
    group_by: GroupBy


SETS = {
    # Views are the impressions of the like, bookmark, comment or follow that comes later.
    "deskdrop": LogSet(
        ImpressionSettings(positive=("like", "bookmark", "comment_created", "follow"), shown=("view",)), "user-week"
    ),
    # Every rating is an impression; four stars and more are wanted.
    "ml100k": LogSet(ImpressionSettings(positive=("rate_4", "rate_5")), "request"),
}
ROWS: dict[str, dict[str, Any]] = {
    "no module": {"fusion": "none"},
    "frozen late": {"fusion": "late-last", "module": "frozen"},
    "tuned late": {"fusion": "late-last"},
    "tuned late, mean": {"fusion": "late-mean"},
    "frozen early": {"module": "frozen"},
    "early": {},
    "early + LT": {"learnable_token": "before candidate"},
    "early + GSLT": {"learnable_token": "before candidate", "content": "added"},
    "early + CIR": {"cold_start": "cir"},
    "early + CIR + IDD": {"cold_start": "cir+idd"},
    "early + CIR + IDD + GSLT": {
        "cold_start": "cir+idd",
        "learnable_token": "before candidate",
        "content": "added",
    },
}
# The paper's directions, each as (lower, higher).
DIRECTIONS = (
    ("no module", "frozen late"),
    ("no module", "tuned late"),
    ("no module", "early"),
    ("frozen late", "tuned late"),
    ("tuned late", "early"),
    ("frozen early", "early"),
    ("early", "early + LT"),
    ("early", "early + GSLT"),
    ("early", "early + CIR"),
    ("early + CIR", "early + CIR + IDD"),
    ("early", "early + CIR + IDD + GSLT"),
)


def prepare(
    folder: Path,
    events: pa.Table,
    items: pa.Table,
    impressions: ImpressionSettings,
    *,
    make_release: Callable[[pa.Table, Path], object],
) -> tuple[Source, Windows, FeatureSettings]:
    """A Feast repo in `folder` with everything as it could be known at each request of the two later windows.
    `make_release` writes a release folder from the events of the first window."""
    t0, t1, end = window_times(events)
    releases = folder / "releases"
    make_release(events.filter(pc.less(events["timestamp"], t0)), releases / RELEASE)
    release = load_release(releases / RELEASE)
    features = FeatureSettings(
        feature_repo=folder / "feature_repo", releases_folder=releases, offline_folder=folder / "state" / "offline"
    )
    (folder / "spoor.toml").write_text('state_folder = "state"\n')
    create_repo(features.feature_repo, online_store={"type": "sqlite"}, state_folder=folder / "state")
    apply(features)
    write_existing_features(_lake(folder / "state" / "lake", events), features, positive_actions=impressions.positive)
    _write_vectors(features, release, events, impressions, windows=((t0, t1), (t1, end)))
    source = Source(events, items, release, feast_reader(features, RELEASE), history_reader(features))
    windows = Windows(t0, t1, end)
    check_windows(release, windows)
    return source, windows, features


def table(
    source: Source,
    windows: Windows,
    chosen: LogSet,
    settings: FinetuneSettings,
    *,
    seeds: int,
    rows: Mapping[str, Mapping[str, Any]] = ROWS,
    progress: Callable[[str], None],
) -> tuple[Measurements, dict[str, Any]]:
    """Every row for every seed, measured on the test window; and what is to be said of the data."""
    layout = source.layout(before_ms=windows.test_from)
    train, test = (
        source.rows(source.impressions(chosen.impressions, from_ms=start, to_ms=end), layout)
        for start, end in ((windows.tune_from, windows.test_from), (windows.test_from, windows.test_to))
    )
    before_test = source.events.filter(pc.less(source.events["timestamp"], windows.test_from))
    scores: dict[str, np.ndarray] = {}
    about: dict[str, Any] = {"training": _counts(source, train), "test": _counts(source, test), "rows": {}}
    for name, changes in rows.items():
        by_seed, seconds, epochs, r = [], time.perf_counter(), [], 0.0
        for seed in range(seeds):
            tuned = fine_tune(
                source.release,
                train,
                before_test,
                settings=replace(settings, seed=seed, **changes),
                progress=lambda line, name=name, seed=seed: progress(f"{name}, seed {seed}: {line}"),
            )
            by_seed.append(tuned.ranker.score(test)[:, 0])
            epochs.append(tuned.epoch)
            r = tuned.rows_per_context
        scores[name] = np.stack(by_seed)
        spent = (time.perf_counter() - seconds) / seeds
        about["rows"][name] = {"epochs": epochs, "seconds": spent, "candidates_per_history": r}
    return measure(test.impressions, scores, group_by=chosen.group_by), about


def report(measured: Measurements, about: dict[str, Any], *, rows: Mapping[str, Any] = ROWS) -> dict[str, Any]:
    """The JSON object, without the circumstances of the run."""
    overall = {row.ranker: row.figure.mean for row in measured.rows if (row.slice, row.metric) == ("all items", "AUC")}
    best = max((name for name in overall if name != "no module"), key=lambda name: overall[name])
    compared = [
        asdict(c) | {"verdict": c.verdict}
        for first, second in DIRECTIONS
        if first in rows and second in rows
        for c in measured.compare(first, second)
    ]
    found = {
        "ratio": overall[best] / overall["no module"],
        "goal": GOAL,
        "best": best,
        "about": about,
        "table": [asdict(row) for row in measured.rows],
        "directions": compared,
    }
    return json.loads(json.dumps(found), parse_constant=lambda _: None)


def text(found: Mapping[str, Any]) -> str:
    """For people: one line per row and slice, then the paper's directions."""
    lines = [f"{'ranker':<26} {'items':<22} {'metric':<7} {'mean [95 %]':<26} {'positives':>9}"]
    for row in found["table"]:
        if row["figure"]["mean"] is not None:
            shown = "{mean:.4f} [{low:.4f}, {high:.4f}]".format(**row["figure"])
            lines.append(f"{row['ranker']:<26} {row['slice']:<22} {row['metric']:<7} {shown:<26} {row['positives']:>9}")
    for row in found["directions"]:
        if row["difference"]["mean"] is not None:
            shown = "{mean:+.4f} [{low:+.4f}, {high:+.4f}]".format(**row["difference"])
            lines.append(
                f"{row['first']} -> {row['second']}, {row['slice']}, {row['metric']}: {shown}  {row['verdict']}"
            )
    return "\n".join(lines)


def markdown() -> str:
    """The newest kept run of each set: every row, then the paper's directions, where there are positives enough."""
    newest = {found["set"]: found for found in map(json.loads, RESULTS.read_text().splitlines())}
    return "\n\n".join(_markdown_of(found) for _, found in sorted(newest.items()))


def _markdown_of(found: dict[str, Any]) -> str:
    cells = {(row["ranker"], row["slice"], row["metric"]): _figure(row["figure"]) for row in found["table"]}
    positives = {(row["slice"], row["metric"]): row["positives"] for row in found["table"]}
    columns = [column for column, count in positives.items() if count >= CLAIM_POSITIVES]
    few = [f"{metric}, {slice_} ({count})" for (slice_, metric), count in positives.items() if count < CLAIM_POSITIVES]
    rankers = dict.fromkeys(row["ranker"] for row in found["table"])
    heading = [f"{metric}, {slice_} ({positives[slice_, metric]:,})" for slice_, metric in columns]
    lines = [f"| {found['set']} | {' | '.join(heading)} |", f"|---|{'---|' * len(columns)}"]
    lines += [f"| {ranker} | {' | '.join(cells[ranker, *column] for column in columns)} |" for ranker in rankers]
    if few:
        lines += ["", f"Positives too few for a claim: {'; '.join(few)}."]
    compared = {
        (row["first"], row["second"], row["slice"], row["metric"]): f"{_figure(row['difference'], sign='+')} {verdict}"
        for row in found["directions"]
        for verdict in [{"better": "▲", "worse": "▼"}.get(row["verdict"], "")]
    }
    lines += ["", f"| {found['set']}: from → to | {' | '.join(heading)} |", f"|---|{'---|' * len(columns)}"]
    for first, second in dict.fromkeys((row["first"], row["second"]) for row in found["directions"]):
        shown = " | ".join(compared[first, second, *column].strip() for column in columns)
        lines.append(f"| {first} → {second} | {shown} |")
    return "\n".join(lines)


def _figure(figure: dict[str, float | None], *, sign: str = "") -> str:
    if figure["mean"] is None:
        return "–"
    mean, low, high = (format(figure[name], f"{sign}.4f") for name in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.finetune", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--set", dest="name", choices=SETS)
    parser.add_argument("--table", action="store_true", help="of the committed runs, as Markdown; trains nothing")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="rankers per row, seeds 0 to N - 1")
    parser.add_argument("--epochs", type=int, default=FinetuneSettings().epochs)
    parser.add_argument("--window", type=int, default=64, help="slots of a history with its candidate")
    parser.add_argument("--pretrain-minutes", type=float, default=10.0, help="at most; 0 = no limit")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW", help="of the table")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--keep", action="store_true", help=f"append the object to {RESULTS.name}")
    options = parser.parse_args()
    if options.table:
        print(markdown())
        return 0
    if options.name is None:
        parser.error("name a --set, or ask for the --table")
    chosen = SETS[options.name]
    events = spread_ties(
        read_events(DATA / options.name / "events.parquet", EventSettings(), now_ms=time.time_ns() // 1_000_000),
        resolution_ms=1000,
    )
    settings = FinetuneSettings(
        positive_actions=chosen.impressions.positive,
        shown_actions=chosen.impressions.shown,
        epochs=options.epochs,
        window=options.window,
    )
    pretraining = PretrainSettings(max_minutes=options.pretrain_minutes)
    rows = {name: ROWS[name] for name in dict.fromkeys(["no module", *options.rows])}
    with tempfile.TemporaryDirectory() as folder:
        source, windows, _ = prepare(
            Path(folder),
            events,
            read_table(DATA / options.name / "items.parquet"),
            chosen.impressions,
            make_release=lambda table, out: run_pretrain(PretrainRequest(table, out=out, settings=pretraining)),
        )
        measured, about = table(source, windows, chosen, settings, seeds=options.seeds, rows=rows, progress=_say)
    found = {
        "benchmark": "finetune",
        "set": options.name,
        "seeds": options.seeds,
        "command": " ".join(["python -m benchmarks.finetune", *sys.argv[1:]]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{os.cpu_count()} cores, Python {platform.python_version()}",
        "windows": asdict(windows),
        "settings": asdict(settings),
    } | report(measured, about, rows=rows)
    if options.keep:
        with RESULTS.open("a") as file:
            file.write(json.dumps(found) + "\n")
    print(json.dumps(found) if options.json else text(found))
    return 0


def _write_vectors(
    features: FeatureSettings,
    release: Release,
    events: pa.Table,
    impressions: ImpressionSettings,
    *,
    windows: tuple[tuple[int, int], ...],
) -> None:
    """What stream and archive would have logged: each user's history and vector at each of their requests."""
    encoder, offline = FrozenEncoder(release), open_offline(features)
    trained = release.info.trained_through_ms
    offline.write_items(RELEASE, "items", encoder.item_ids, encoder.item_vectors(encoder.item_hashes), trained)
    users, histories = group_events(events["user_id"].to_pylist(), history_values(events), max_events=2**62)
    number = {user: place for place, user in enumerate(users)}
    wanted: set[tuple[int, int]] = set()
    for start, end in windows:
        found = find_impressions(events, impressions, from_ms=start, to_ms=end)
        for user, time_ms in zip(found.user_ids, found.times_ms, strict=True):
            times = histories[number[user]]["timestamp"]
            wanted.add((number[user], int(np.searchsorted(times, time_ms, side="right"))))
    revisions = sorted(pair for pair in wanted if pair[1] > 0)
    then = Histories.of([histories[user][max(0, count - release.info.max_events) : count] for user, count in revisions])
    vectors, used = encoder.encode(then)
    packed, last = pack(then), then.last_times().tolist()
    writes, rows = [], []
    for place, (user, revision) in enumerate(revisions):
        as_of, known = last[place], max(last[place], trained)
        row = EmbeddingRow(users[user], vectors[place], revision, int(used[place]), as_of, known, known, RELEASE)
        rows.append(row)
        writes.append(UserWrite(users[user], 0, revision, packed[place], int(then.lengths[place]), as_of, as_of, [row]))
    offline.write_histories("requests", writes)
    offline.write_embeddings(RELEASE, "requests", rows)


def _lake(folder: Path, events: pa.Table) -> Lake:
    lake, count = Lake(folder, buckets=_LAKE_BUCKETS), len(events)
    appended = (("partition", np.zeros(count, np.int32)), ("offset", np.arange(count, dtype=np.int64)))
    for name, values in (*appended, ("append_time", events["timestamp"].to_numpy())):
        events = events.append_column(name, pa.array(values))
    lake.write("0-0", events, {"partition": 0, "start": 0, "end": count})
    return lake


def _counts(source: Source, data: RankingData) -> dict[str, Any]:
    labels = data.impressions.labels
    return {
        "impressions": len(labels),
        "requests": data.impressions.requests,
        "requests_without_history": int((~data.stored).sum()),
        "requests_without_history_despite_events": source.missing_histories(data),
        "users": len(set(data.impressions.user_ids)),
        "positives": {task: int(n) for task, n in zip(data.impressions.tasks, labels.sum(0), strict=True)},
        "contexts": data.contexts.count,
        "candidates_per_context": data.rows_per_context,
        "events_per_context": float(data.contexts.lengths.mean()) if data.contexts.count else 0.0,
    }


def _say(line: str) -> None:
    print(line, file=sys.stderr)


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # DuckDB's binding prints pages about its own leaks while the interpreter is torn down
