import pyarrow as pa
import pytest

from spoor.activity.hashing import buckets_of
from spoor.activity.lake import LAKE_SCHEMA, Lake
from spoor.base.errors import DataError, UsageError

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
    assert [bucket for bucket in range(3) if lake.files(bucket)] == sorted(
        set(buckets_of([f"u{i}" for i in range(7)], 3).tolist())
    )
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


def test_somebody_else_s_folder_of_the_same_layout_is_refused_and_stays_as_it_was(tmp_path):
    theirs = tmp_path / "day=2026-01-31" / "bucket=03" / "part-0.parquet"
    theirs.parent.mkdir(parents=True)
    theirs.write_bytes(b"theirs")
    with pytest.raises(UsageError, match=r"day=2026-01-31/bucket=03, which Spoor has not written") as error:
        Lake(tmp_path, buckets=3)
    assert "lake.folder" in error.value.hint
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [theirs] and theirs.read_bytes() == b"theirs"


def test_only_files_of_the_lake_s_own_kind_are_removed(tmp_path):
    lake = Lake(tmp_path, buckets=3)
    lake.write("p0-0-10", rows(0, 10), record(0, 10))
    folder = lake.files()[0].parent
    (folder / ".ipynb_checkpoints").mkdir()
    (folder / "README.txt").write_text("theirs")
    (folder / "p0-10-20.parquet").write_bytes(b"left over")
    (folder / ".p0-10-20.parquet.1f").write_bytes(b"left over")
    assert lake.remove_orphans() == 2
    assert (folder / ".ipynb_checkpoints").is_dir() and (folder / "README.txt").exists()
    assert offsets(lake.read()) == list(range(10))


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


def test_a_marker_of_buckets_that_holds_no_number_is_damaged_and_its_hint_names_no_setting(tmp_path):
    Lake(tmp_path, buckets=2).write("p0-0-3", rows(0, 3), record(0, 3))
    (tmp_path / "_buckets").write_text("two\n")
    with pytest.raises(DataError, match="'two', expected the number of user buckets") as damaged:
        Lake(tmp_path, buckets=2)
    assert "lake.buckets =" not in damaged.value.hint


def test_a_forgotten_user_s_past_is_out_of_sight_at_once_and_out_of_the_files_after_a_purge(tmp_path):
    lake = Lake(tmp_path, buckets=3)
    lake.write("p0-0-10", rows(0, 10), record(0, 10))
    lake.write("p0-10-25", rows(10, 25), record(10, 25))
    lake.forgotten.add(["u1", "u2"], through_ms=1009, at_ms=0)  # offsets 1, 8 of u1; 2, 9 of u2; later ones stay
    left = [o for o in range(25) if o not in (1, 8, 2, 9)]
    assert offsets(lake.read()) == offsets(lake.read(columns=["offset"])) == left
    buckets = sorted(set(buckets_of(["u1", "u2"], 3).tolist()))
    assert [lake.purge(item, buckets, lake.forgotten) for item in ("p0-0-10", "p0-10-25", "none")] == [4, 0, 0]
    (tmp_path / "_forgotten.json").unlink()
    assert offsets(lake.read()) == left
    assert [lake.manifest.get(item)["rows"] for item in ("p0-0-10", "p0-10-25")] == [6, 15]
    assert lake.covered(0) == [(0, 25)]  # what was read from Kafka stays read
    assert lake.remove_orphans() == 0


def test_a_purge_that_was_killed_is_finished_by_the_next_and_other_buckets_are_left_alone(tmp_path, monkeypatch):
    lake = Lake(tmp_path, buckets=3)
    lake.write("p0-0-10", rows(0, 10), record(0, 10))
    users = [f"u{n}" for n in range(7)]
    lake.forgotten.add(users, through_ms=2000, at_ms=0)
    [first, *others] = sorted(set(buckets_of(users, 3).tolist()))
    with monkeypatch.context() as patch:
        patch.setattr(lake.manifest, "add", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            lake.purge("p0-0-10", [first], lake.forgotten)
    assert lake.manifest.get("p0-0-10")["rows"] == 10
    assert lake.purge("p0-0-10", [first], lake.forgotten) == 0  # the files were done
    record_now = lake.manifest.get("p0-0-10")
    assert {file["rows"] > 0 for file in record_now["files"] if file["bucket"] == first} == {False}
    assert {file["rows"] > 0 for file in record_now["files"] if file["bucket"] != first} == {True}
    assert record_now["rows"] == sum(file["rows"] for file in record_now["files"]) < 10
    assert lake.purge("p0-0-10", others, lake.forgotten) > 0
    assert lake.read(columns=["user_id"]).num_rows == 0 and lake.manifest.get("p0-0-10")["rows"] == 0
