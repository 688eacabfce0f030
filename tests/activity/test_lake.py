import pyarrow as pa
import pytest

from activity.errors import DataError, UsageError
from activity.hashing import buckets_of
from activity.lake import LAKE_SCHEMA, Lake

DAY = 86_400_000


def rows(start, end, *, append_time=DAY):
    offsets = list(range(start, end))
    return pa.table(
        {
            "user_id": [f"u{o % 7}" for o in offsets],
            "item_id": [f"i{o}" for o in offsets],
            "action": ["view"] * len(offsets),
            "surface": ["home"] * len(offsets),
            "timestamp": pa.array([1000 + o for o in offsets], pa.int64()),
            "partition": pa.array([0] * len(offsets), pa.int32()),
            "offset": pa.array(offsets, pa.int64()),
            "append_time": pa.array([append_time + o * DAY // 4 for o in offsets], pa.int64()),
        },
        schema=LAKE_SCHEMA,
    )


def record(start, end):
    return {"partition": 0, "start": start, "end": end}


def offsets(table):
    return sorted(table["offset"].to_pylist())


def test_what_was_written_is_read_by_bucket_time_and_column(tmp_path):
    lake = Lake(tmp_path, buckets=3)
    lake.write("p0-0-10", rows(0, 10), record(0, 10))
    lake.write("p0-10-25", rows(10, 25), record(10, 25))
    assert offsets(lake.read()) == list(range(25))
    assert offsets(lake.read(from_ms=1005, to_ms=1012)) == list(range(5, 12))
    assert lake.read(columns=["item_id"]).column_names == ["item_id"]
    for bucket in range(3):
        users = set(lake.read(bucket=bucket)["user_id"].to_pylist())
        assert all(b == bucket for b in buckets_of(sorted(users), 3))
    assert lake.buckets_with_data() == sorted(set(buckets_of([f"u{i}" for i in range(7)], 3).tolist()))
    assert lake.read().schema == LAKE_SCHEMA


def test_an_item_written_twice_counts_once(tmp_path):
    lake = Lake(tmp_path, buckets=3)
    for _ in range(2):
        lake.write("p0-0-10", rows(0, 10), record(0, 10))
    assert offsets(lake.read()) == list(range(10))
    assert lake.has("p0-0-10") and not lake.has("p0-10-20")


def test_files_without_a_manifest_entry_are_not_read_and_can_be_removed(tmp_path):
    lake = Lake(tmp_path, buckets=3)
    lake.write("p0-0-10", rows(0, 10), record(0, 10))
    lake.write("p0-10-20", rows(10, 20), record(10, 20))
    lake.manifest.remove("p0-10-20")  # as if the process had died before its last step
    assert offsets(lake.read()) == list(range(10))
    assert lake.remove_orphans() > 0
    assert offsets(Lake(tmp_path, buckets=3).read()) == list(range(10))


def test_covered_ranges_join_and_show_gaps(tmp_path):
    lake = Lake(tmp_path, buckets=1)
    for start, end in [(10, 20), (0, 10), (30, 40)]:
        lake.write(f"p0-{start}-{end}", rows(start, end), record(start, end))
    assert lake.covered(0) == [(0, 20), (30, 40)]
    assert lake.covered(1) == []


def test_it_remembers_up_to_where_a_backfill_has_read(tmp_path):
    lake = Lake(tmp_path, buckets=1)
    assert lake.backfilled() == lake.ends() == {}
    lake.write("p0-0-10", rows(0, 10), record(0, 10))
    lake.note_backfilled(lake.ends())
    lake.write("p0-10-20", rows(10, 20), record(10, 20))
    assert Lake(tmp_path, buckets=1).backfilled() == {0: 10}
    assert lake.ends() == {0: 20}


def test_an_empty_range_is_remembered_too(tmp_path):
    lake = Lake(tmp_path, buckets=2)
    lake.write("p0-0-3", rows(0, 0), record(0, 3))
    assert lake.covered(0) == [(0, 3)]
    assert len(lake.read()) == 0


def test_a_missing_file_is_an_error_not_fewer_events(tmp_path):
    lake = Lake(tmp_path, buckets=1)
    lake.write("p0-0-3", rows(0, 3), record(0, 3))
    lake.files()[0].unlink()
    with pytest.raises(DataError, match="cannot read lake file"):
        lake.read()


def test_another_number_of_buckets_is_refused(tmp_path):
    Lake(tmp_path, buckets=2).write("p0-0-3", rows(0, 3), record(0, 3))
    with pytest.raises(UsageError, match="2 user buckets"):
        Lake(tmp_path, buckets=4)
