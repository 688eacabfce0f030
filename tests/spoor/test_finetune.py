"""`spoor finetune` as a modelling engineer runs it: a genuine Feast repo, histories and vectors in it, a ranker out."""

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from benchmarks.finetune import RELEASE, LogSet, prepare, report, table
from spoor.activity.events import Event, events_table
from spoor.activity.packing import pack
from spoor.base.errors import DataError, UsageError
from spoor.encoder.release.inference import FrozenEncoder
from spoor.feature_repo.settings import FeatureSettings
from spoor.ranking.features.online import OnlineFeatures
from spoor.ranking.ranker.finetune import Source, Windows, run_finetune
from spoor.ranking.ranker.rows import read_rows
from spoor.ranking.ranker.serving import RankerServer
from spoor.ranking.ranker.train import fine_tune
from spoor.ranking.ranker.tuned import load_ranker
from spoor.ranking.settings import FinetuneSettings
from spoor.store.online import open_online
from spoor.store.rows import UserWrite
from tests.ranking.shop import DAY, DIMENSION, SETTINGS, Shop, make_shop
from tests.releases import save_untrained_release

TUNING = [
    "finetune.positive_actions=like,save",
    "finetune.shown_actions=view",
    "finetune.epochs=2",
    "finetune.uniform_negatives=16",
]


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    return make_shop(tmp_path_factory.mktemp("shop"))


@pytest.fixture(scope="module")
def world(shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Source, Windows, FeatureSettings]:
    folder = tmp_path_factory.mktemp("world")
    source, windows, features = prepare(folder, shop.events, shop.items, SETTINGS, make_release=_untrained)
    pq.write_table(shop.events, folder / "events.parquet")
    pq.write_table(shop.items, folder / "items.parquet")
    return folder, source, windows, features


def _untrained(events: pa.Table, out: Path) -> None:
    save_untrained_release(
        out,
        items=pc.unique(events["item_id"]).to_pylist(),
        actions=["view", "like", "save"],
        surfaces=["app"],
        trained_through_ms=pc.max(events["timestamp"]).as_py(),
    )


def arguments(folder: Path, *more: str, settings: list[str] = TUNING) -> list[str]:
    features = {
        "feature_repo": folder / "feature_repo",
        "releases_folder": folder / "releases",
        "offline_folder": folder / "state" / "offline",
    }
    chosen = [*(f"features.{key}={path}" for key, path in features.items()), *settings]
    data = ["--data", str(folder / "events.parquet"), "--items", str(folder / "items.parquet")]
    return [*(word for text in chosen for word in ("--set", text)), "finetune", "--release", RELEASE, *data, *more]


def iso(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1000, UTC).isoformat()


def test_it_writes_a_ranker_and_measures_it_on_what_came_after(spoor, world, tmp_path):
    folder, source, windows, _ = world
    out = tmp_path / "ranker.safetensors"
    done = spoor(*arguments(folder, "--out", str(out), "--until", iso(windows.test_from), "--seed", "3", "--json"))
    assert done.code == 0, done.err
    metrics = done.json["metrics"]
    assert metrics["training_rows"] > 300 and metrics["candidates_per_history"] == pytest.approx(4, abs=0.5)
    assert {(row["slice"], row["metric"]) for row in metrics["test"]} >= {("all items", "AUC"), ("all items", "HIT@3")}
    ranker = load_ranker(out)
    assert ranker.about["release"] == RELEASE and ranker.about["settings"]["seed"] == 3
    asked = source.impressions(SETTINGS, from_ms=windows.test_from, to_ms=windows.test_to)
    test = source.rows(asked, ranker.layout)
    # Nothing that appeared after the training window is known, and nothing of it decided a scale.
    events = source.events.filter(pc.less(source.events["timestamp"], windows.test_from))
    assert set(ranker.vocabulary.item_ids) == set(events["item_id"].to_pylist())
    assert not set(asked.item_ids) <= set(ranker.vocabulary.item_ids)
    assert ranker.layout == source.layout(before_ms=windows.test_from) != source.layout(before_ms=windows.test_to)
    assert len(ranker.score(test)) == len(test.impressions.item_ids)
    again = spoor(*arguments(folder, "--out", str(out)))
    assert "exists already" in again.failed_with(2)
    events = (folder / "events.parquet").read_bytes()
    other = spoor(*arguments(folder, "--out", str(folder / "events.parquet"), "--overwrite"))
    assert "is no ranker" in other.failed_with(2) and (folder / "events.parquet").read_bytes() == events


def test_requests_without_a_stored_history_are_counted_and_warned_of_once(spoor, world, tmp_path):
    """A user who acted before and whose history nobody wrote; one who never acted is no cause for a warning."""
    folder, _, windows, _ = world
    events = pq.read_table(folder / "events.parquet")
    stranger = [
        Event("stranger", item, "view", "app", time)
        for item, time in (("i00", windows.tune_from - DAY), ("i01", windows.tune_from + DAY))
    ]
    new = [Event("new", "i02", "view", "app", windows.tune_from + DAY)]
    pq.write_table(pa.concat_tables([events, events_table([*stranger, *new])]), tmp_path / "events.parquet")
    data = ["--data", str(tmp_path / "events.parquet"), "--overwrite"]
    said = spoor(*arguments(folder, "--out", str(tmp_path / "r"), *data))
    assert "training requests without a history" in said.out
    done = spoor(*arguments(folder, "--out", str(tmp_path / "r"), *data, "--json"))
    assert done.code == 0, done.err
    found = done.json["metrics"]["histories"]
    assert found["training"]["without_history"] == 2 and found["training"]["without_history_despite_events"] == 1
    assert done.err.count("warning:") == 1 and "1 of" in done.err and "spoor backfill" in done.err


def test_doubts_are_told_before_anything_is_done(spoor, world, tmp_path):
    """An action that no event has; a log too short to tell an item's age."""
    folder, _, windows, _ = world
    events = pq.read_table(folder / "events.parquet")
    young = events.filter(pc.greater(events["timestamp"], windows.tune_from - 5 * DAY))
    pq.write_table(young, tmp_path / "events.parquet")
    done = spoor(
        *arguments(
            folder, "--out", str(tmp_path / "r"), "--data", str(tmp_path / "events.parquet"), "--dry-run", "--json",
            settings=["finetune.positive_actions=like,saev", "finetune.shown_actions=view"],
        )
    )  # fmt: skip
    plan = "\n".join(done.json["plan"])
    assert "saev 0" in plan and "warning: no event has the action saev, found like, save, view" in plan
    assert "begin 5 days before the training window, expected 28" in plan


def test_a_failing_read_of_the_test_window_is_told_before_training_and_not_taken_for_no_test(world, tmp_path):
    _, source, windows, _ = world

    def read(rows):
        if rows["event_timestamp"].max().timestamp() * 1000 >= windows.test_from:
            raise DataError("a damaged file")
        return source.read_histories(rows)

    settings = FinetuneSettings(positive_actions=("like", "save"), shown_actions=("view",), epochs=1)
    said: list[str] = []
    with pytest.raises(DataError, match="a damaged file"):
        run_finetune(
            replace(source, read_histories=read), windows, out=tmp_path / "r", settings=settings, progress=said.append
        )
    assert not any("epoch" in line for line in said)


def test_a_dry_run_says_what_it_would_do_and_writes_nothing(spoor, world, tmp_path):
    folder = world[0]
    done = spoor(*arguments(folder, "--out", str(tmp_path / "r"), "--dry-run", "--json"))
    assert done.code == 0 and done.json["dry_run"] is True
    assert any("early fusion" in line for line in done.json["plan"])
    assert list(tmp_path.glob("r*")) == []


@pytest.mark.parametrize(
    ("more", "chosen", "message"),
    [
        (["--from", "2000-01-01T00:00:00Z"], TUNING, "was trained on events up to"),
        (["--from", "2030-01-01T00:00:00Z"], TUNING, "ends before it begins"),
        ([], [], "no action is named as positive"),
        ([], [*TUNING, "finetune.fusion=late-last", "finetune.content=added"], "no candidate token"),
        (["--items", "BARE"], [*TUNING, "finetune.content=added"], "no item attribute"),
        (["--items", "NAMELESS"], TUNING, "no column item_id"),
    ],
)
def test_what_cannot_be_learnt_from_is_refused(spoor, world, tmp_path, more, chosen, message):
    pq.write_table(pa.table({"item_id": ["i00"]}), tmp_path / "BARE.parquet")
    pq.write_table(pa.table({"item": ["i00"]}), tmp_path / "NAMELESS.parquet")
    more = [str(tmp_path / f"{word}.parquet") if word in ("BARE", "NAMELESS") else word for word in more]
    done = spoor(*arguments(world[0], "--out", str(tmp_path / "r"), *more, settings=chosen))
    assert message in done.failed_with(2)


def test_the_table_has_every_row_slice_and_direction(world):
    """The benchmark's own parts, on Feast's answers."""
    _, source, windows, _ = world
    settings = FinetuneSettings(positive_actions=("like", "save"), shown_actions=("view",), epochs=1, window=16)
    rows = {"no module": {"fusion": "none"}, "frozen late": {"fusion": "late-last", "module": "frozen"}, "early": {}}
    measured, about = table(
        source, windows, LogSet(SETTINGS, "user-week"), settings, seeds=2, rows=rows, progress=lambda _: None
    )
    found = report(measured, about, rows=rows)
    assert {row["ranker"] for row in found["table"]} == set(rows)
    assert len(found["table"]) == len(rows) * 3 * 2
    pairs = {(row["first"], row["second"]) for row in found["directions"]}
    assert pairs == {("no module", "frozen late"), ("no module", "early")}
    assert found["about"]["test"]["candidates_per_context"] > 1
    assert found["about"]["test"]["requests_without_history_despite_events"] == 0
    assert found["ratio"] > 0


def test_point_in_time_reads_give_frozen_late_fusion_what_the_release_knew(world):
    """Feast's vector at a request equals the release's own over the history that Feast gives for it."""
    _, source, windows, _ = world
    asked = source.impressions(SETTINGS, from_ms=windows.tune_from, to_ms=windows.test_from)
    data = source.rows(asked, source.layout(before_ms=0))
    vectors, _ = FrozenEncoder(source.release).encode(data.contexts)
    of_row = data.request_contexts[data.impressions.row_requests]
    np.testing.assert_allclose(data.user_vectors, vectors[of_row], atol=1e-5)
    assert data.user_vectors.any(1).all()


def test_early_fusion_is_served_from_the_online_store(world, caplog):
    """The history that lies online gives the scores that the same history gives offline; nothing else is online."""
    _, source, windows, _ = world
    settings = FinetuneSettings(
        positive_actions=("like", "save"), shown_actions=("view",), epochs=1, content="added", window=16
    )
    layout = source.layout(before_ms=windows.test_from)
    train = source.rows(source.impressions(SETTINGS, from_ms=windows.tune_from, to_ms=windows.test_from), layout)
    events = source.events.filter(pc.less(source.events["timestamp"], windows.test_from))
    ranker = fine_tune(source.release, train, events, settings=settings, progress=lambda _: None).ranker

    asked = train.impressions.take(np.array([train.impressions.requests - 1]))
    user, time_ms = asked.user_ids[0], int(asked.times_ms[0])
    offline = read_rows(
        asked, source.read, source.read_histories, items=source.items, layout=layout, dimension=DIMENSION
    )
    nulls = replace(offline.features, values=np.full_like(offline.features.values, np.nan))

    features, history = world[3], offline.contexts
    last = int(history.last_times()[0])
    write = UserWrite(user, 0, 1, pack(history)[0], int(history.lengths[0]), last, last, [])
    assert open_online(features).write([write]).all()
    server = RankerServer(OnlineFeatures(features, RELEASE), ranker, source.items)
    found = server.score(user, asked.item_ids, time_ms=time_ms, surface="app")
    np.testing.assert_allclose(found, ranker.score(replace(offline, features=nulls)), atol=1e-5)
    stranger = server.score("nobody", asked.item_ids, time_ms=time_ms, surface="app")
    assert np.isfinite(stranger).all() and not np.allclose(stranger, found, atol=1e-5)
    assert server.score(user, [], time_ms=time_ms).shape == (0, 3)
    server.score("nobody else", asked.item_ids, time_ms=time_ms)
    assert (server.requests, server.without_history) == (3, 2)
    assert [record.getMessage() for record in caplog.records if record.name == "spoor.ranking.ranker.serving"] == [
        "user 'nobody' has no history online: scored as a new user; later ones are counted only"
    ]
    with pytest.raises(UsageError, match="no column kind"):
        RankerServer(OnlineFeatures(features, RELEASE), ranker, source.items.select(["item_id"])).score(
            user, asked.item_ids, time_ms=time_ms
        )


def test_a_ranker_that_reads_vectors_is_not_served_those_of_another_release(world):
    _, source, windows, features = world
    settings = FinetuneSettings(
        positive_actions=("like", "save"), shown_actions=("view",), epochs=1, fusion="late-last", module="frozen"
    )
    layout = source.layout(before_ms=windows.test_from)
    train = source.rows(source.impressions(SETTINGS, from_ms=windows.tune_from, to_ms=windows.test_from), layout)
    ranker = fine_tune(source.release, train, source.events, settings=settings, progress=lambda _: None).ranker
    online = OnlineFeatures(features, RELEASE)
    RankerServer(online, ranker, source.items)
    with pytest.raises(UsageError, match=f"in the space of release `another`, those of `{RELEASE}`"):
        RankerServer(online, replace(ranker, about={**ranker.about, "space": "another"}), source.items)
