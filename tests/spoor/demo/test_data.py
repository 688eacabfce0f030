import io
import json
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from spoor.activity.events import EVENT_SCHEMA, Event, events_table
from spoor.base.errors import DataError, InfrastructureError, UsageError
from spoor.demo import data as demo_data
from spoor.demo.data import cut_timeline, load_demo_data, read_grouplens_zip, read_recbole_wheel

USERS, ITEMS = 943, 1_682


def ratings() -> list[tuple[int, int, int, int]]:
    """100,000 ratings with the published counts: every user and every item occurs, many share a second."""
    return [(k % USERS + 1, k % ITEMS + 1, k % 5 + 1, 881_250_949 + k // 3) for k in range(100_000)]


def zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def grouplens_zip() -> bytes:
    flags = "|".join(["0", "1", "0", "0", "1"])
    return zipped(
        {
            "ml-100k/u.data": "".join(f"{u}\t{i}\t{r}\t{s}\n" for u, i, r, s in ratings()).encode(),
            "ml-100k/u.genre": b"unknown|0\nAction|1\nAdventure|2\nAnimation|3\nChildren's|4\n\n",
            "ml-100k/u.item": "".join(
                f"{k}|Misérables {k} (1995)|01-Jan-1995||http://imdb|{flags}\n" for k in range(1, ITEMS + 1)
            ).encode("latin-1"),
        }
    )


def recbole_wheel() -> bytes:
    folder = "recbole/dataset_example/ml-100k/ml-100k"
    lines = "".join(f"{u}\t{i}\t{r}\t{s}\n" for u, i, r, s in ratings())
    items = "".join(f"{k}\tMisérables {k}\t1995\tAction Children's\n" for k in range(1, ITEMS + 1))
    return zipped(
        {
            f"{folder}.inter": ("user_id:token\titem_id:token\trating:float\ttimestamp:float\n" + lines).encode(),
            f"{folder}.item": ("item_id:token\tmovie_title:t\trelease_year:t\tclass:t\n" + items).encode(),
        }
    )


def unreachable() -> bytes:
    raise InfrastructureError("not reachable", hint="")


def test_both_published_forms_give_the_same_events_and_items():
    events, items = read_grouplens_zip(grouplens_zip())
    wheel_events, wheel_items = read_recbole_wheel(recbole_wheel())
    assert events.schema == EVENT_SCHEMA
    assert events.equals(wheel_events)
    assert items.equals(wheel_items)
    assert items.slice(0, 1).to_pylist() == [
        {"item_id": "1", "title": "Misérables 1 (1995)", "genres": ["Action", "Children's"]}
    ]


def test_a_users_ties_within_a_second_are_spread_in_published_order():
    rows = [["1", "30", "5", "100"], ["1", "20", "3", "100"], ["2", "7", "4", "100"], ["1", "10", "1", "101"]]
    events = demo_data._rated_events(rows).to_pylist()
    assert [(e["user_id"], e["item_id"], e["action"], e["timestamp"]) for e in events] == [
        ("1", "30", "rate_5", 100_000),
        ("2", "7", "rate_4", 100_000),
        ("1", "20", "rate_3", 100_500),
        ("1", "10", "rate_1", 101_000),
    ]


def test_the_wheel_is_used_where_grouplens_is_down_and_the_cache_the_next_time(settings, monkeypatch):
    monkeypatch.setattr(demo_data, "_download_zip", unreachable)
    monkeypatch.setattr(demo_data, "_download_wheel", recbole_wheel)
    first = load_demo_data(settings)
    assert first.source == "the wheel recbole==1.2.1"
    monkeypatch.setattr(demo_data, "_download_wheel", unreachable)
    second = load_demo_data(settings)
    assert second.source.startswith("cache ")
    assert second.events.equals(first.events) and second.items.equals(first.items)


def test_a_damaged_cache_is_fetched_again(settings, monkeypatch, caplog):
    monkeypatch.setattr(demo_data, "_download_zip", grouplens_zip)
    load_demo_data(settings)
    next(settings.state_folder.rglob("events.parquet")).write_bytes(b"PAR1 cut off")
    assert load_demo_data(settings).source.startswith("https://")
    assert "damaged" in caplog.text


def test_a_wrong_number_of_events_is_refused_and_nothing_is_cached(settings, monkeypatch):
    short = zipped({"ml-100k/u.data": b"1\t1\t5\t1\n", "ml-100k/u.genre": b"", "ml-100k/u.item": b"1|T|||\n"})
    monkeypatch.setattr(demo_data, "_download_zip", lambda: short)
    monkeypatch.setattr(demo_data, "_download_wheel", unreachable)
    with pytest.raises(InfrastructureError, match=r"expected \{.events.: 100000") as caught:
        load_demo_data(settings)
    assert "--data" in caught.value.hint
    assert not list(settings.state_folder.rglob("*.parquet"))


@pytest.mark.parametrize("read", [read_grouplens_zip, read_recbole_wheel])
@pytest.mark.parametrize("content", [b"", b"no zip", zipped({"other": b""})])
def test_what_is_not_the_published_archive_is_a_data_error(read, content):
    with pytest.raises(DataError, match="expected"):
        read(content)


def test_a_file_of_ones_own_with_titles_and_attributes(settings, tmp_path):
    events = events_table([Event("u", "a", "view", "app", 1_600_000_000_000 + k) for k in range(3)])
    pq.write_table(events, tmp_path / "mine.parquet")
    (tmp_path / "items.jsonl").write_text(json.dumps({"item_id": "b", "title": "B", "genres": "War|Drama"}) + "\n")
    loaded = load_demo_data(settings, data=tmp_path / "mine.parquet", items=tmp_path / "items.jsonl")
    assert loaded.name == "mine" and loaded.events.equals(events)
    assert loaded.items.to_pylist() == [
        {"item_id": "b", "title": "B", "genres": ["War", "Drama"]},
        {"item_id": "a", "title": "a", "genres": []},
    ]


def test_other_columns_of_ones_own_items_may_hold_anything(settings, tmp_path):
    events = events_table([Event("u", "a", "view", "app", 1_600_000_000_000 + k) for k in range(3)])
    pq.write_table(events, tmp_path / "mine.parquet")
    born = pa.array([1], pa.timestamp("us", "Mars/Phobos"))
    items = pa.table({"item_id": ["a"], "genres": [["War", None]], "born": born})
    pq.write_table(items, tmp_path / "items.parquet")
    loaded = load_demo_data(settings, data=tmp_path / "mine.parquet", items=tmp_path / "items.parquet")
    assert loaded.items.to_pylist() == [{"item_id": "a", "title": "a", "genres": ["War"]}]


def test_items_without_events_are_a_usage_error(settings, tmp_path):
    with pytest.raises(UsageError, match="without events"):
        load_demo_data(settings, items=tmp_path / "items.csv")


def test_the_timeline_is_cut_by_count_and_equal_times_stay_together():
    times = [0, 1, 2, 3, 4, 5, 7, 7, 8, 9]
    events = events_table([Event("u", str(k), "view", "app", t) for k, t in enumerate(times)])
    t70, t90 = cut_timeline(events)
    assert (t70, t90) == (7, 9)
    assert [sum(t < t70 for t in times), sum(t70 <= t < t90 for t in times)] == [6, 3]


@pytest.mark.parametrize("times", [[], [1], [5] * 20, [0] * 7 + [1] * 13])
def test_a_timeline_that_cannot_be_cut_twice_is_an_error(times):
    events = events_table([Event("u", str(k), "view", "app", t) for k, t in enumerate(times)])
    with pytest.raises(DataError, match="cannot be cut"):
        cut_timeline(events)


def test_events_in_any_order_are_cut_alike():
    events = events_table([Event("u", str(k), "view", "app", k) for k in range(40)])
    shuffled = events.take(pa.array([(k * 7) % 40 for k in range(40)]))
    assert cut_timeline(shuffled) == cut_timeline(events)
