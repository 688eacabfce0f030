import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as pq
import pytest

from activity.errors import UsageError
from activity.events import EVENT_SCHEMA, Event, events_table
from activity.settings import EventSettings
from activity.sources import read_events, scan_events, spread_ties

NOW = 1_800_000_000_000
SETTINGS = EventSettings()
ROWS = [
    {"user_id": "1", "item_id": "b", "action": "view", "surface": "s", "timestamp": 1_700_000_002_000},
    {"user_id": "1", "item_id": "a", "action": "view", "surface": "s", "timestamp": 1_700_000_001_000},
    {"user_id": "2", "item_id": "c", "action": "view", "surface": "s", "timestamp": 1_700_000_001_000},
]


def items(path):
    return read_events(path, SETTINGS, now_ms=NOW)["item_id"].to_pylist()


def test_parquet_csv_and_json_lines_are_read_alike_oldest_first(tmp_path):
    table = pa.Table.from_pylist(ROWS)
    pq.write_table(table, tmp_path / "e.parquet")
    csv.write_csv(table, tmp_path / "e.csv")
    (tmp_path / "e.jsonl").write_text("\n".join(str(row).replace("'", '"') for row in ROWS))
    for name in ("e.parquet", "e.csv", "e.jsonl"):
        events = read_events(tmp_path / name, SETTINGS, now_ms=NOW)
        assert events.schema == EVENT_SCHEMA
        assert events["item_id"].to_pylist() == ["a", "c", "b"]


def test_pos_breaks_ties_and_else_the_order_of_rows(tmp_path):
    table = pa.Table.from_pylist([row | {"timestamp": 1_700_000_000_000} for row in ROWS])
    pq.write_table(table, tmp_path / "rows.parquet")
    assert items(tmp_path / "rows.parquet") == ["b", "a", "c"]
    pq.write_table(table.append_column("pos", pa.array([2, 1, 0])), tmp_path / "pos.parquet")
    assert items(tmp_path / "pos.parquet") == ["c", "a", "b"]


def test_times_that_fall_along_pos_are_raised(tmp_path):
    pq.write_table(pa.Table.from_pylist(ROWS[:2]).append_column("pos", pa.array([0, 1])), tmp_path / "e.parquet")
    events = read_events(tmp_path / "e.parquet", SETTINGS, now_ms=NOW)
    assert events["item_id"].to_pylist() == ["b", "a"]
    assert events["timestamp"].to_pylist() == [1_700_000_002_000] * 2


def test_shuffled_ties_follow_the_seed_and_neither_rows_nor_pos(tmp_path):
    rows = [ROWS[0] | {"item_id": f"i{n}"} for n in range(20)] + [ROWS[1]]
    table = pa.Table.from_pylist(rows).append_column("pos", pa.array([*range(1, 21), 0]))

    def shuffled(table: pa.Table, seed: int) -> list[str]:
        pq.write_table(table, tmp_path / "e.parquet")
        events = read_events(tmp_path / "e.parquet", SETTINGS, now_ms=NOW, shuffle_ties=seed)
        assert events["timestamp"].to_pylist() == sorted(events["timestamp"].to_pylist())
        return events["item_id"].to_pylist()

    order = shuffled(table, 1)
    assert order[0] == "a"
    assert sorted(order) == sorted(row["item_id"] for row in rows)
    assert order[1:] not in ([f"i{n}" for n in range(20)], sorted(order[1:]))
    assert shuffled(table.take(list(range(20, -1, -1))), 1) == order
    assert shuffled(table.drop_columns("pos"), 1) == order
    assert shuffled(table, 2) != order


@pytest.mark.parametrize("places", [[0, None, 2], [0.5, 1.0, 2.0], ["0", "1", "2"]])
def test_a_pos_that_is_no_integer_in_every_row_is_refused(tmp_path, places):
    pq.write_table(pa.Table.from_pylist(ROWS).append_column("pos", pa.array(places)), tmp_path / "e.parquet")
    with pytest.raises(UsageError, match="pos"):
        items(tmp_path / "e.parquet")


def test_a_scan_gives_the_rows_of_a_file_in_their_order_piece_by_piece(tmp_path):
    table = pa.Table.from_pylist(ROWS * 50_000).append_column("other", pa.array(range(150_000)))
    pq.write_table(table, tmp_path / "e.parquet", row_group_size=70_000)
    pieces = list(scan_events(tmp_path / "e.parquet", SETTINGS, now_ms=NOW))
    assert len(pieces) > 1 and max(map(len, pieces)) < 150_000
    assert pa.concat_tables(pieces) == table.select(EVENT_SCHEMA.names).cast(EVENT_SCHEMA)


def test_files_without_rows_have_no_events_but_need_the_columns(tmp_path):
    empty = pa.Table.from_pylist(ROWS).slice(0, 0)
    pq.write_table(empty, tmp_path / "e.parquet")
    assert read_events(tmp_path / "e.parquet", SETTINGS, now_ms=NOW) == EVENT_SCHEMA.empty_table()
    pq.write_table(empty.drop_columns("surface"), tmp_path / "e.parquet")
    with pytest.raises(UsageError, match="surface"):
        items(tmp_path / "e.parquet")


@pytest.mark.parametrize("text", ["2023-11-14T22:13:20Z", "2023-11-14T23:13:20+0100"])
def test_times_may_be_iso_8601_with_a_zone(tmp_path, text):
    pq.write_table(pa.Table.from_pylist([ROWS[0] | {"timestamp": text}]), tmp_path / "e.parquet")
    assert read_events(tmp_path / "e.parquet", SETTINGS, now_ms=NOW)["timestamp"].to_pylist() == [1_700_000_000_000]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"timestamp": 1_700_000_000}, "timestamp"),  # seconds
        ({"timestamp": NOW + 10**9}, "timestamp"),
        ({"item_id": ""}, "item_id"),
        ({"item_id": None}, "item_id"),
        ({"action": "a" * 65}, "action"),
        ({"timestamp": "soon"}, "timestamp"),
    ],
)
def test_bad_rows_are_refused_with_the_column(tmp_path, change, message):
    pq.write_table(pa.Table.from_pylist([ROWS[0] | change]), tmp_path / "e.parquet")
    with pytest.raises(UsageError, match=message):
        items(tmp_path / "e.parquet")


def test_missing_columns_files_and_unknown_kinds_are_usage_errors(tmp_path):
    pq.write_table(pa.table({"user_id": ["1"]}), tmp_path / "e.parquet")
    with pytest.raises(UsageError, match="item_id, action, surface, timestamp"):
        items(tmp_path / "e.parquet")
    for name in ("absent.parquet", "e.xlsx"):
        with pytest.raises(UsageError):
            items(tmp_path / name)
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    with pytest.raises(UsageError, match="cannot read"):
        items(tmp_path / "broken.parquet")


def test_ties_within_a_second_spread_over_its_milliseconds_in_order():
    events = events_table(
        [Event("1", "x", "a", "s", 5000), Event("2", "y", "a", "s", 5000)]
        + [Event("1", f"i{k}", "a", "s", 5000) for k in range(3)]
        + [Event("1", "z", "a", "s", 6000)]
    )
    spread = spread_ties(events, resolution_ms=1000)
    by_user = {(row["user_id"], row["item_id"]): row["timestamp"] for row in spread.to_pylist()}
    assert [by_user["1", i] for i in ("x", "i0", "i1", "i2", "z")] == [5000, 5250, 5500, 5750, 6000]
    assert by_user["2", "y"] == 5000
    assert len(spread_ties(events_table([]), resolution_ms=1000)) == 0


def test_ids_of_a_csv_stay_text_to_the_letter(tmp_path):
    """Guessed types would make one id of `007` and `7`, and of two ids beyond 64 bits."""
    ids = ["007", "7", "12345678901234567890", "12345678901234567891", "1.50", "true", "NA"]
    rows = "".join(f"{name},{name},{name},{name},{1_700_000_000_000 + k}\n" for k, name in enumerate(ids))
    (tmp_path / "e.csv").write_text("user_id,item_id,action,surface,timestamp\n" + rows)
    events = read_events(tmp_path / "e.csv", SETTINGS, now_ms=NOW)
    for column in ("user_id", "item_id", "action", "surface"):
        assert events[column].to_pylist() == ids


def test_a_csv_without_rows_has_no_events(tmp_path):
    (tmp_path / "e.csv").write_text("user_id,item_id,action,surface,timestamp\n")
    assert read_events(tmp_path / "e.csv", SETTINGS, now_ms=NOW) == EVENT_SCHEMA.empty_table()
    (tmp_path / "e.csv").write_text("user_id,item_id,action,surface,timestamp\nu,i,v,s,\n")
    with pytest.raises(UsageError, match="timestamp has 1 empty values"):
        items(tmp_path / "e.csv")


@pytest.mark.parametrize("text", ["2023-11-14T22:13:20Z", "2023-11-14T23:13:20+0100"])
def test_times_with_a_zone_are_read_from_every_kind_of_file(tmp_path, text):
    (tmp_path / "e.csv").write_text(f"user_id,item_id,action,surface,timestamp\nu,i,v,s,{text}\n")
    (tmp_path / "e.jsonl").write_text(
        f'{{"user_id": "u", "item_id": "i", "action": "v", "surface": "s", "timestamp": "{text}"}}\n'
    )
    for name in ("e.csv", "e.jsonl"):
        assert read_events(tmp_path / name, SETTINGS, now_ms=NOW)["timestamp"].to_pylist() == [1_700_000_000_000]
