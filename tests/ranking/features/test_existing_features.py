import json
import random
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from spoor.activity.events import Event, events_table
from spoor.activity.lake import Lake
from spoor.base.errors import DataError
from spoor.cli import run
from spoor.feature_repo.settings import FeatureSettings
from spoor.ranking.features.existing_features import write_existing_features

DAY = 86_400_000
START = 19_000 * DAY  # a midnight
POSITIVE = ["like"]


@pytest.fixture
def features(tmp_path: Path) -> FeatureSettings:
    return FeatureSettings(offline_folder=tmp_path / "offline")


@pytest.fixture
def lake_of(tmp_path: Path) -> Callable[[Iterable[Event]], Lake]:
    def build(events: Iterable[Event]) -> Lake:
        lake = Lake(tmp_path / "lake", buckets=2)
        rows = list(events)
        table = events_table(rows)
        for name, values in (
            ("partition", np.zeros(len(rows), np.int32)),
            ("offset", np.arange(len(rows), dtype=np.int64)),
            ("append_time", np.full(len(rows), START, np.int64)),
        ):
            table = table.append_column(name, pa.array(values))
        lake.write(f"0-{len(lake.manifest.records())}", table, {"partition": 0, "start": 0, "end": len(rows)})
        return lake

    return build


def random_events(count: int, seed: int) -> list[Event]:
    """Of few users and items over 60 days, some of them exactly at midnight, some delivered twice."""
    chance = random.Random(seed)
    events = []
    for _ in range(count):
        day, within = chance.randrange(60), chance.choice([0, 1, DAY - 1, chance.randrange(DAY)])
        user, item = f"u{chance.randrange(4)}", f"i{chance.randrange(5)}"
        events.append(Event(user, item, chance.choice(["like", "view"]), "app", START + day * DAY + within))
    return events + events[::7]


def rows_of(features: FeatureSettings, view: str) -> list[dict]:
    files = sorted((features.offline_folder / view).glob("day=*/activity.parquet"))
    return pa.concat_tables([pq.read_table(f, partitioning=None) for f in files]).to_pylist() if files else []


def value_at(rows: list[dict], key: str, midnight: int) -> dict | None:
    """What a point-in-time read finds: the newest row at or before `midnight`."""
    known = [r for r in rows if r[f"{key[0]}"] == key[1] and r["event_timestamp"].timestamp() * 1000 <= midnight]
    return max(known, key=lambda r: r["event_timestamp"], default=None)


def counted(events: set[Event], midnight: int) -> tuple[int, int, int, float] | None:
    """Total, last 7 days, last 28 days and positive rate of what lies before `midnight`, one event at a time."""
    before = [e for e in events if e.timestamp < midnight]
    if not before:
        return None
    recent = [sum(e.timestamp >= midnight - days * DAY for e in before) for days in (7, 28)]
    return len(before), *recent, sum(e.action in POSITIVE for e in before) / len(before)


def test_a_log_of_one_day_has_no_rows_and_tables_that_feast_can_read(lake_of, features):
    """Counts are of days that are over: there is none yet."""
    written = write_existing_features(lake_of([Event("u", "i", "view", "app", START + n) for n in range(9)]), features)
    assert (written.user_rows, written.item_rows) == (0, 0)
    for view, key in (("user_activity", "user_id"), ("item_activity", "item_id")):
        (file,) = (features.offline_folder / view).glob("day=*/*.parquet")
        empty = pq.read_table(file, partitioning=None)
        assert len(empty) == 0 and {key, "event_timestamp", "created_timestamp"} <= set(empty.column_names)


@pytest.mark.parametrize("seed", [0, 1])
def test_every_midnight_equals_a_count_by_hand(features, lake_of, seed):
    events = random_events(150, seed)
    written = write_existing_features(lake_of(events), features, positive_actions=POSITIVE)
    users, items = rows_of(features, "user_activity"), rows_of(features, "item_activity")
    assert (written.user_rows, written.item_rows) == (len(users), len(items))
    newest = max(e.timestamp for e in events) // DAY
    assert written.as_of_ms == newest * DAY
    for day in range(START // DAY - 1, newest + 1):
        for user in {e.user_id for e in events}:
            row = value_at(users, ("user_id", user), day * DAY)
            expected = counted({e for e in events if e.user_id == user}, day * DAY)
            assert (row is None) == (expected is None)
            if row and expected:
                names = ("user_events_total", "user_events_7d", "user_events_28d", "user_positive_rate")
                assert [row[n] for n in names] == pytest.approx(expected, rel=1e-6)
        for item in {e.item_id for e in events}:
            mine = {e for e in events if e.item_id == item}
            row = value_at(items, ("item_id", item), day * DAY)
            expected = counted(mine, day * DAY)
            assert (row is None) == (expected is None)
            if row and expected:
                names = ("item_events_total", "item_events_7d", "item_events_28d", "item_positive_rate")
                assert [row[n] for n in names] == pytest.approx(expected, rel=1e-6)
                assert row["item_users_total"] == len({e.user_id for e in mine if e.timestamp < day * DAY})


def test_a_later_event_changes_nothing_before_it(features, lake_of):
    events = random_events(80, 3)
    write_existing_features(lake_of(events), features)
    before = {view: rows_of(features, view) for view in ("user_activity", "item_activity")}
    newest = max(e.timestamp for e in events)
    late = [Event("u1", "i1", "like", "app", newest + 40 * DAY), Event("u2", "i9", "like", "app", newest + 3 * DAY)]
    write_existing_features(lake_of(late), features)
    for view, rows in before.items():
        now = rows_of(features, view)
        assert [row for row in now if row["event_timestamp"].timestamp() * 1000 <= newest // DAY * DAY] == rows
        assert len(now) > len(rows)


def test_an_event_of_today_is_not_counted_before_the_day_is_over(features, lake_of):
    written = write_existing_features(lake_of([Event("u", "i", "like", "app", START + 5)]), features)
    assert (written.user_rows, written.as_of_ms) == (0, START)


def test_rows_were_known_at_the_midnight_they_describe(features, lake_of):
    write_existing_features(lake_of(random_events(30, 4)), features)
    rows = rows_of(features, "item_activity")
    assert all(row["created_timestamp"] == row["event_timestamp"] for row in rows)
    assert all(row["event_timestamp"].timestamp() % 86_400 == 0 for row in rows)


def test_writing_again_replaces_the_files_and_leaves_no_old_month(features, lake_of):
    lake = lake_of(random_events(60, 5))
    first = write_existing_features(lake, features)
    stale = features.offline_folder / "user_activity" / "day=1999-01-01" / "activity.parquet"
    stale.parent.mkdir()
    stale.write_bytes(b"")
    assert write_existing_features(lake, features) == first
    assert not stale.exists()
    assert not [p for p in features.offline_folder.rglob(".*") if p.is_file()]


def test_an_empty_lake_has_no_rows(features, tmp_path):
    written = write_existing_features(Lake(tmp_path / "lake", buckets=2), features)
    assert (written.users, written.item_rows, written.as_of_ms) == (0, 0, 0)


def test_integer_ids_carry_the_companys_key_and_type(tmp_path, lake_of):
    features = FeatureSettings(offline_folder=tmp_path / "o", user_join_key="member", user_id_type="int64")
    events = [Event("7", "i", "like", "app", START), Event("7", "i", "like", "app", START + 2 * DAY)]
    write_existing_features(lake_of(events), features)
    assert rows_of(features, "user_activity")[0]["member"] == 7


@pytest.mark.parametrize("user", ["seven", "007"])
def test_an_id_that_is_no_integer_is_a_data_error(tmp_path, lake_of, user):
    features = FeatureSettings(offline_folder=tmp_path / "o", user_id_type="int64")
    events = [Event(user, "i", "like", "app", START), Event(user, "i", "like", "app", START + DAY)]
    with pytest.raises(DataError, match="user_id"):
        write_existing_features(lake_of(events), features)


def test_a_lake_whose_path_reads_as_a_pattern(features, lake_of, tmp_path):
    written = write_existing_features(lake_of(random_events(30, 8)), features)
    for odd in ("run [1]", "a*b?", "ümlaut, {x}"):
        (tmp_path / odd).mkdir()
        shutil.copytree(tmp_path / "lake", tmp_path / odd / "lake")
        assert write_existing_features(Lake(tmp_path / odd / "lake", buckets=2), features) == written


def test_a_damaged_lake_file_is_a_data_error(features, lake_of):
    lake = lake_of(random_events(5, 6))
    lake.files()[0].write_bytes(b"PAR1")
    with pytest.raises(DataError, match="lake"):
        write_existing_features(lake, features)


def test_it_runs_as_a_command_with_the_settings_file(tmp_path, lake_of, capsys):
    lake_of(random_events(40, 7))
    (tmp_path / "spoor.toml").write_text('state_folder = "state"\n[lake]\nfolder = "lake"\nbuckets = 2\n')
    assert run(["--config", str(tmp_path / "spoor.toml"), "features", "build", "--positive", "like", "--json"]) == 0
    written = json.loads(capsys.readouterr().out)
    pattern = str(tmp_path / "state/offline/user_activity/**/*.parquet")
    found = duckdb.sql(f"SELECT count(*) FROM read_parquet('{pattern}')").fetchall()[0][0]
    assert written["user_rows"] == found > 0


def test_a_missing_settings_file_is_told_with_a_hint(tmp_path, capsys):
    assert run(["--config", str(tmp_path / "none.toml"), "features", "build"]) == 2
    assert "hint:" in capsys.readouterr().err
