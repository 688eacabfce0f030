from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as pq
import pytest

from spoor.activity.events import EVENT_SCHEMA, Event, events_table
from spoor.activity.settings import EventDefaults, EventFields, EventSettings
from spoor.activity.sources.event_files import read_events, read_table, scan_events, spread_ties
from spoor.base.errors import UsageError

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
    with pytest.raises(UsageError, match="line 2, column timestamp: found nothing"):
        items(tmp_path / "e.csv")


@pytest.mark.parametrize("text", ["2023-11-14T22:13:20Z", "2023-11-14T23:13:20+0100"])
def test_times_with_a_zone_are_read_from_every_kind_of_file(tmp_path, text):
    (tmp_path / "e.csv").write_text(f"user_id,item_id,action,surface,timestamp\nu,i,v,s,{text}\n")
    (tmp_path / "e.jsonl").write_text(
        f'{{"user_id": "u", "item_id": "i", "action": "v", "surface": "s", "timestamp": "{text}"}}\n'
    )
    for name in ("e.csv", "e.jsonl"):
        assert read_events(tmp_path / name, SETTINGS, now_ms=NOW)["timestamp"].to_pylist() == [1_700_000_000_000]


HEADER = "user_id,item_id,action,surface,timestamp"
LINE = '{"user_id": "u", "item_id": "i", "action": "v", "surface": "s", "timestamp": 1700000000000}\n'


def read(path, settings=SETTINGS):
    return read_events(path, settings, now_ms=NOW)


def refusal(path, settings=SETTINGS):
    with pytest.raises(UsageError) as error:
        read(path, settings)
    assert error.value.hint
    return f"{error.value.message}\n{error.value.hint}"


def test_one_integer_beyond_64_bits_changes_no_other_id(tmp_path):
    users = [12345678901234567, 12345678901234568, 2**63, 2**64 + 1]
    (tmp_path / "e.jsonl").write_text("".join(LINE.replace('"u"', str(user)) for user in users))
    (tmp_path / "e.csv").write_text(HEADER + "".join(f"\n{user},i,v,s,1700000000000" for user in users))
    for name in ("e.jsonl", "e.csv"):
        assert read(tmp_path / name)["user_id"].to_pylist() == [str(user) for user in users]


def test_ignored_columns_may_hold_anything(tmp_path):
    extras = ["1", '"x"', "1.5", "null", "[1, {}]", '{"a": {"b": 1}}', "true", str(10**30), '"2023-11-14T22:13:20Z"']
    lines = "".join(LINE.replace("}", f', "more": {extra}}}') for extra in extras)
    (tmp_path / "e.jsonl").write_text(lines)
    assert len(read(tmp_path / "e.jsonl")) == len(extras)
    (tmp_path / "e.csv").write_bytes(
        f"{HEADER},more\nu,i,v,s,1700000000000,".encode() + b'\xff"\nu,i,v,s,1700000000000,'
    )
    assert len(read(tmp_path / "e.csv")) == 2
    table = pa.Table.from_pylist(ROWS).append_column("more", pa.array([[{"a": 1}], None, []]))
    pq.write_table(table, tmp_path / "e.parquet")
    assert len(read(tmp_path / "e.parquet")) == 3


@pytest.mark.parametrize("rows", [3, 60_000])
def test_a_line_end_in_quotes_is_read_in_files_of_any_size(tmp_path, rows):
    lines = "".join(f'u{k},i,v,h,1700000000000,"one\ntwo\r\n""{k}"""\n' for k in range(rows))
    (tmp_path / "e.csv").write_text(f"{HEADER},title\n{lines}")
    assert len(read(tmp_path / "e.csv")) == rows


@pytest.mark.parametrize(
    ("lines", "found"),
    [
        ('1,"a,v,h,1700000000000\n2,b,v,h,1700000000000\n', "line 2: a quote that is not closed"),
        ('1,a,v,h,1700000000000\n2,"b,v,h,1700000000000\n3,"c",v,h,1700000000000\n', "line 3: a quote"),
        ('1,"a,v,h,1700000000000\n2,b,v,h,1700000000000\n3,c",v,h,1700000000000\n', "line 2, column item_id"),
        ('1,"a"b,v,h,1700000000000\n', "line 2: a quote"),
        ("1,a,v,h,1700000000000\n\n1,a,v,h\n", "line 4: found 4 columns, expected 5"),
        ("1,a,v,h,1700000000000,6\n", "line 2: found 6 columns, expected 5"),
        ('1,a,v,"h\nh",1700000000000\n1,a,,h,1700000000000', "line 2, column surface"),
        ('1,a,v,h,1700000000000\n1,a,,h,"x\n"\n', "line 3, column action: found nothing"),
    ],
)
def test_a_broken_csv_is_refused_with_the_line(tmp_path, lines, found):
    (tmp_path / "e.csv").write_text(f"{HEADER}\n{lines}")
    assert found in refusal(tmp_path / "e.csv")


def test_the_first_bad_row_is_named_whichever_its_column(tmp_path):
    good, bad_time, bad_user = "u,i,v,s,1700000000000", "u,i,v,s,soon", ",i,v,s,1700000000000"
    (tmp_path / "e.csv").write_text("\n".join([HEADER, good, bad_time, bad_user, bad_user]))
    assert "line 3, column timestamp: found 'soon'" in refusal(tmp_path / "e.csv")
    table = pa.Table.from_pylist([ROWS[0]] * 150_000 + [ROWS[0] | {"item_id": "a\x7f"}])
    pq.write_table(table, tmp_path / "e.parquet", row_group_size=70_000)
    assert "row 150001, column item_id: found a control character (U+007F)" in refusal(tmp_path / "e.parquet")


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (LINE + "[1]\n", "line 2: value: found a JSON list"),
        ("[" + LINE.strip() + "]\n", "jq -c"),
        ("[\n" + LINE + "]\n", "jq -c"),
        (LINE + LINE.replace("}", ""), "line 2: value: found Expecting"),
        (LINE.replace("}", ', "more": NaN}'), "line 1: value: found NaN is not JSON"),
        (LINE + "\n" + LINE.replace("}", ', "user_id": "other"}'), "line 3: user_id: found it more than once"),
        (LINE.replace("}", ', "more": ' + "[" * 100 + "]" * 100 + "}"), "more than 100 deep"),
        (LINE.replace('"u"', '"\\ud800"'), "line 1, column user_id: found an unpaired surrogate"),
        ('{"user_id": "u"}\n', "line 1, column item_id: found nothing"),
    ],
)
def test_a_broken_line_of_json_is_refused_with_its_number(tmp_path, content, found):
    (tmp_path / "e.jsonl").write_text(content)
    assert found in refusal(tmp_path / "e.jsonl")


def test_columns_that_come_twice_are_refused_where_they_count(tmp_path):
    (tmp_path / "e.csv").write_text(f"{HEADER},item_id\nu,i,v,s,1700000000000,j\n")
    assert "column item_id 2 times" in refusal(tmp_path / "e.csv")
    (tmp_path / "e.csv").write_text(f"{HEADER},more,more\nu,i,v,s,1700000000000,j,k\n")
    assert len(read(tmp_path / "e.csv")) == 1
    names = [*EVENT_SCHEMA.names, "item_id"]
    columns = [*(pa.array([ROWS[0][name]]) for name in EVENT_SCHEMA.names), pa.array(["j"])]
    pq.write_table(pa.table(columns, names=names), tmp_path / "e.parquet")
    assert "column item_id 2 times" in refusal(tmp_path / "e.parquet")


@pytest.mark.parametrize("name", ["e.csv", "e.tsv", "e.jsonl", "e.ndjson", "e.json", "E.CSV"])
@pytest.mark.parametrize("codec", ["", ".gz", ".zst", ".bz2", ".lz4"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_text_files_may_be_compressed_and_begin_with_a_byte_order_mark(tmp_path, name, codec, mark):
    separator = "\t" if name.endswith("tsv") else ","
    text = HEADER.replace(",", separator) + "\r\n" + separator.join(["u", "i", "v", "s", "1700000000000"]) + "\r\n"
    if "j" in name:
        text = LINE + "\r\n" + LINE
    codecs = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2", ".lz4": "lz4", "": None}
    with pa.output_stream(str(tmp_path / (name + codec)), compression=codecs[codec]) as file:
        file.write((mark + text).encode())
    assert read(tmp_path / (name + codec))["user_id"].unique().to_pylist() == ["u"]


def test_what_no_reader_takes_is_named_with_the_way_out(tmp_path):
    for encoding, named in (("utf-16", "UTF-16"), ("utf-16-le", "UTF-16LE"), ("utf-16-be", "UTF-16BE")):
        (tmp_path / "e.csv").write_bytes((HEADER + "\nu,i,v,s,1700000000000\n").encode(encoding))
        assert f"iconv -f {named} " in refusal(tmp_path / "e.csv")
    (tmp_path / "e.csv").write_bytes(b"\0")
    assert "has no column" in refusal(tmp_path / "e.csv")
    (tmp_path / "e.csv.gz").write_bytes(b"no gzip")
    assert "cannot read" in refusal(tmp_path / "e.csv.gz")
    with pa.output_stream(str(tmp_path / "whole.csv.gz")) as file:
        file.write((HEADER + "\nu,i,v,s,1700000000000\n" * 1000).encode())
    (tmp_path / "cut.csv.gz").write_bytes((tmp_path / "whole.csv.gz").read_bytes()[:-9])
    assert "cannot read" in refusal(tmp_path / "cut.csv.gz")
    for name in ("e.gz", "e.parquet.gz", "e", "e.csv.zip"):
        (tmp_path / name).write_bytes(b"")
        assert "use one of" in refusal(tmp_path / name)
    (tmp_path / "semicolons.csv").write_text(HEADER.replace(",", ";") + "\n1;2;3;4;5\n")
    assert "has no column user_id" in refusal(tmp_path / "semicolons.csv")
    (tmp_path / "empty.csv").write_text("")
    assert "has no column user_id" in refusal(tmp_path / "empty.csv")


def test_a_folder_of_parts_is_one_file(tmp_path):
    folder = tmp_path / "events"
    (folder / "day=2").mkdir(parents=True)
    for name, row in zip(("part-0.parquet", "part-1.parquet", "day=2/part-0.snappy.parquet"), ROWS, strict=True):
        pq.write_table(pa.Table.from_pylist([row | {"user_id": len(name)}]), folder / name)
    for name in ("_SUCCESS", ".part-0.parquet.crc", "_metadata"):
        (folder / name).write_bytes(b"no data")
    assert sorted(items(folder)) == ["a", "b", "c"]
    (folder / "notes.txt").write_text("x")
    assert "notes.txt" in refusal(folder)
    (tmp_path / "nothing").mkdir()
    assert "holds no data file" in refusal(tmp_path / "nothing")


def test_pos_is_an_integer_in_every_row_or_in_none(tmp_path):
    with_pos = LINE.replace("}", ', "pos": 1}')
    (tmp_path / "e.jsonl").write_text(with_pos + LINE)
    assert "line 2, column pos" in refusal(tmp_path / "e.jsonl")
    (tmp_path / "e.jsonl").write_text(with_pos * 2)
    assert len(read(tmp_path / "e.jsonl")) == 2
    (tmp_path / "e.csv").write_text(f"{HEADER},pos\nu,a,v,s,1700000000000,2\nu,b,v,s,1700000000000,1\n")
    assert items(tmp_path / "e.csv") == ["b", "a"]
    (tmp_path / "e.csv").write_text(f"{HEADER},pos\nu,a,v,s,1700000000000,1.0\n")
    assert "line 2, column pos: found '1.0'" in refusal(tmp_path / "e.csv")
    (tmp_path / "f").mkdir()
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "f" / "1.parquet")
    pq.write_table(pa.Table.from_pylist(ROWS).append_column("pos", pa.array([1, 2, 3])), tmp_path / "f" / "2.parquet")
    assert "only some have a pos" in refusal(tmp_path / "f")


def test_a_setting_that_refuses_an_id_is_named_with_it(tmp_path):
    (tmp_path / "e.csv").write_text(f"{HEADER}\n1,abc,v,s,1700000000000\n")
    found = refusal(tmp_path / "e.csv", EventSettings(user_id_type="int64", item_id_type="int64"))
    assert "line 2, column item_id: found 'abc'" in found and 'set events.item_id_type = "string"' in found


def test_columns_are_found_under_the_configured_names(tmp_path):
    settings = EventSettings(fields=EventFields(user_id="userId", item_id="item.id"), defaults=EventDefaults("v", "s"))
    (tmp_path / "e.csv").write_text("userId,item.id,timestamp\n007,i,1700000000000\n")
    assert read(tmp_path / "e.csv", settings).to_pylist() == [Event("007", "i", "v", "s", 1_700_000_000_000)._asdict()]
    assert "has no column user_id, item_id, action, surface" in refusal(tmp_path / "e.csv")
    (tmp_path / "e.csv").write_text("userId,item.id,timestamp\n007,,1700000000000\n")
    assert "line 2, column item.id (item_id): found nothing" in refusal(tmp_path / "e.csv", settings)


def test_other_tables_keep_their_ids_too(tmp_path):
    (tmp_path / "items.csv").write_text('item_id,price,title\n007,1.5,"a\nb"\n7,2,\n')
    table = read_table(tmp_path / "items.csv")
    assert table["item_id"].to_pylist() == ["007", "7"] and table["price"].to_pylist() == [1.5, 2.0]
    (tmp_path / "items.jsonl").write_text(
        '{"item_id": 1, "tags": ["x"]}\n{"item_id": 9223372036854775808, "tags": "y"}\n'
    )
    table = read_table(tmp_path / "items.jsonl")
    assert table["item_id"].to_pylist() == ["1", str(2**63)] and table["tags"].to_pylist() == ['["x"]', '"y"']
    pq.write_table(pa.table({"item_id": [1.0, 2.0]}), tmp_path / "items.parquet")
    (tmp_path / "twice.csv").write_text("item_id,item_id\n1,2\n")
    (tmp_path / "open.csv").write_text('item_id,title\n1,"a\n2,b\n')
    for name, found in (("items.parquet", "row 1, column item_id"), ("twice.csv", "2 times"), ("open.csv", "line 2")):
        with pytest.raises(UsageError, match=found):
            read_table(tmp_path / name)


def test_rows_with_ids_of_another_type_can_be_left_out_and_told(tmp_path):
    rows = ["1,7,v,s,1700000000000", "a,7,v,s,1700000000001", "2,007,v,s,1700000000002", "b,x,v,s,1700000000003"]
    (tmp_path / "e.csv").write_text("\n".join([HEADER, *rows]))
    told: list[str] = []
    settings = EventSettings(user_id_type="int64", item_id_type="int64")
    events = read_events(tmp_path / "e.csv", settings, now_ms=NOW, unfit=told)
    assert events["timestamp"].to_pylist() == [1_700_000_000_000]
    assert [text.split("`, ")[1].split(": found")[0] for text in told] == [
        "line 3, column user_id", "line 4, column item_id", "line 5, column user_id",
    ]  # fmt: skip
    (tmp_path / "e.csv").write_text("\n".join([HEADER, *rows, "1,7,v,s,soon"]))
    with pytest.raises(UsageError, match="line 6, column timestamp"):
        read_events(tmp_path / "e.csv", settings, now_ms=NOW, unfit=[])


def test_types_of_pandas_alone_are_no_ids_by_what_they_store():
    def frame(users):
        return pd.DataFrame({"user_id": users, "item_id": "i", "action": "v", "surface": "h", "timestamp": [10**12]})

    for users in (pd.period_range("2020-01", periods=1), [1j], pd.arrays.SparseArray([1.5])):
        assert "row 1, column user_id" in refusal(frame(users))
    assert read(frame(pd.arrays.SparseArray([5])))["user_id"].to_pylist() == ["5"]


@pytest.mark.parametrize(
    ("user", "hint"), [("u" * 129, "events.max_id_bytes"), ("a\x7f", "UTF-8"), ("", "every event has a value")]
)
def test_the_hint_is_about_what_was_found(tmp_path, user, hint):
    (tmp_path / "e.csv").write_text(f"{HEADER}\n{user},i,v,h,1700000000000\n")
    with pytest.raises(UsageError) as refused:
        read(tmp_path / "e.csv")
    assert hint in refused.value.hint


def test_a_column_that_comes_twice_is_refused_where_it_is_needed():
    names = ["user_id", "item_id", "action", "surface", "timestamp", "x", "x"]
    once = pa.table([["u"], ["i"], ["v"], ["h"], [10**12], [1], [2]], names=names)
    frame = pd.DataFrame([["u", "i", "v", "h", 10**12, 1, 2]], columns=names)
    assert read(once).to_pylist() == read(frame).to_pylist() == [Event("u", "i", "v", "h", 10**12)._asdict()]
    for name in ("user_id", "timestamp"):
        twice = [name if each == "x" else each for each in names]
        for source in (once.rename_columns(twice), frame.set_axis(twice, axis=1)):
            assert f"has the column {name} 3 times" in refusal(source)


def test_columns_under_other_names_are_shown(tmp_path):
    table = pa.table({"userId": ["u"], "ts": [10**12]})
    pq.write_table(table, tmp_path / "e.parquet")
    for source in (table, table.to_pandas(), tmp_path / "e.parquet"):
        assert "has no column user_id, item_id, action, surface, timestamp; it has userId, ts" in refusal(source)


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("i.csv", "item_id,title\n1,José\n".encode("cp1252"), "column title: found bytes that are no UTF-8"),
        ("i.jsonl", b'{"item_id": 1, "title": "\\ud800"}\n', "column title: found an unpaired surrogate"),
        ("i.jsonl", b'{"item_id": 1, "title": "a", "title": "b"}\n', "line 1: title: found it more than once"),
        ("i.csv", "item_id,größe\n1,2\n".encode("cp1252"), r"column 'gr.udcf6.udcdfe': found bytes that are no UTF-8"),
        ("i.tsv", b"item_id\t\xff\n1\t2\n", r"column '.udcff': found bytes that are no UTF-8"),
        ("i.jsonl", b'{"item_id": 1, "\\ud800": 1}\n', r"column '.ud800': found an unpaired surrogate in its name"),
    ],
)
def test_text_of_other_tables_is_text(tmp_path, name, content, found):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=found) as refused:
        read_table(tmp_path / name)
    assert refused.value.hint


def test_text_of_a_parquet_table_that_is_no_utf8_is_refused_by_column(tmp_path):
    def invalid(kind, stored):
        return pa.Array.from_buffers(kind, 1, pa.array([b"a\xff"], stored).buffers())

    texts = [
        invalid(pa.string(), pa.binary()),
        invalid(pa.large_string(), pa.large_binary()),
        invalid(pa.string_view(), pa.binary_view()),
    ]
    for column in [*texts, pa.ListArray.from_arrays([0, 1], texts[0]), pa.StructArray.from_arrays(texts[:1], ["a"])]:
        pq.write_table(pa.table({"item_id": ["1"], "title": column}), tmp_path / "i.parquet")
        with pytest.raises(UsageError, match="column title: found bytes that are no UTF-8"):
            read_table(tmp_path / "i.parquet")
    pq.write_table(pa.table({"item_id": texts[0], "title": ["a"]}), tmp_path / "i.parquet")
    with pytest.raises(UsageError, match="row 1, column item_id: found bytes that are no UTF-8"):
        read_table(tmp_path / "i.parquet")


def test_text_of_a_frame_that_is_no_unicode_is_refused_with_its_row():
    for texts in (pd.Categorical(["\ud800"]), pd.array(["\ud800"], dtype=pd.StringDtype("python"))):
        frame = pd.DataFrame({"user_id": texts, "item_id": "i", "action": "v", "surface": "h", "timestamp": [10**12]})
        assert "row 1, column user_id: found an unpaired surrogate" in refusal(frame)


def test_links_in_a_folder_are_followed(tmp_path):
    row = "u,{},v,s,170000000000{}\n"
    for number, name in enumerate(("elsewhere/deep/b.csv", "one/c.csv", "days/a.csv")):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(f"{HEADER}\n{row.format(Path(name).stem, number)}")
    (tmp_path / "days" / "day2").symlink_to("../elsewhere")
    (tmp_path / "days" / "day3.csv").symlink_to(tmp_path / "one" / "c.csv")
    assert items(tmp_path / "days") == ["b", "c", "a"]
    (tmp_path / "linked").symlink_to("days")
    assert items(tmp_path / "linked") == ["b", "c", "a"]
    for hidden in (".trash", "_old", "_SUCCESS"):
        (tmp_path / "days" / hidden).symlink_to("../nowhere")
    assert items(tmp_path / "days") == ["b", "c", "a"]


@pytest.mark.parametrize("name", ["day2", "day2.csv"])
def test_a_link_that_leads_nowhere_is_refused_by_name(tmp_path, name):
    (tmp_path / "days" / "more").mkdir(parents=True)
    (tmp_path / "days" / "a.csv").write_text(HEADER)
    (tmp_path / "days" / "more" / name).symlink_to("../gone")
    with pytest.raises(UsageError, match=rf"more/{name}` is a link to `../gone`, which is not there") as refused:
        items(tmp_path / "days")
    assert "remove the link" in refused.value.hint


@pytest.mark.parametrize("target", ["../../days", "../..", ".", "../more"])
def test_a_link_back_to_a_folder_above_is_refused_by_name(tmp_path, target):
    (tmp_path / "days" / "more").mkdir(parents=True)
    (tmp_path / "days" / "a.csv").write_text(HEADER)
    (tmp_path / "days" / "more" / "loop").symlink_to(target)
    with pytest.raises(UsageError) as refused:
        items(tmp_path / "days")
    assert f"days/more/loop` is a link to `{target}`, a folder that holds the link" in refused.value.message


def test_links_in_a_circle_are_refused(tmp_path):
    for name, target in (("a", "../b"), ("b", "../a")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "link").symlink_to(target)
    with pytest.raises(UsageError, match=r"a/link/link` is a link to `../a`"):
        items(tmp_path / "a")
    (tmp_path / "itself").mkdir()
    (tmp_path / "itself" / "link").symlink_to("link")
    with pytest.raises(UsageError, match=r"itself/link` is a link to `link`, which is not there"):
        items(tmp_path / "itself")


def test_a_folder_that_is_linked_twice_is_read_twice(tmp_path):
    """As a file that is there twice is."""
    (tmp_path / "days").mkdir()
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "a.csv").write_text(f"{HEADER}\nu,a,v,s,1700000000000\n")
    for name in ("day1", "day2"):
        (tmp_path / "days" / name).symlink_to("../one")
    assert items(tmp_path / "days") == ["a", "a"]


def test_a_folder_below_that_cannot_be_listed_is_refused(tmp_path, monkeypatch):
    (tmp_path / "days" / "closed").mkdir(parents=True)
    (tmp_path / "days" / "a.csv").write_text(HEADER)
    listed = Path.iterdir

    def iterdir(path):
        if path.name == "closed":
            raise PermissionError(13, "Permission denied")
        return listed(path)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    with pytest.raises(UsageError, match=r"cannot read `.*closed`: Permission denied"):
        items(tmp_path / "days")
