from pathlib import Path

from activity.hashing import buckets_of
from batch.listing import list_users, listed_users


def test_users_are_sorted_into_buckets_chunk_by_chunk(tmp_path: Path):
    users = [f"user-{n}" for n in range(20)]
    found = list_users(iter([*users, *users[:3]]), tmp_path, buckets=3, chunk_users=7)
    assert list(found) == [0, 1, 2] and sum(found.values()) == 23
    assert len({path.name for path in tmp_path.glob("*/*.json")}) == 4  # 23 ids in chunks of 7
    for bucket in range(3):
        assert listed_users(tmp_path, bucket) == sorted(u for u in users if buckets_of([u], 3)[0] == bucket)


def test_nobody_gives_no_bucket_and_no_file(tmp_path: Path):
    assert list_users(iter([]), tmp_path / "none", buckets=3) == {}
    assert listed_users(tmp_path / "none", 0) == []
