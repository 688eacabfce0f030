from pathlib import Path

import pytest

from spoor.activity.hashing import buckets_of
from spoor.base.errors import InfrastructureError
from spoor.batch.users.listing import list_users, listed_users, listing_folder, remove_listings
from tests.permissions import bound_by_permissions


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


def test_a_job_s_folder_is_empty_at_the_start_and_gone_at_the_end_also_of_one_that_fails(tmp_path: Path):
    left = listing_folder(tmp_path, "verify")  # killed: it never comes to its end
    earlier = left.__enter__()
    list_users(["ann"], earlier, buckets=1)
    with pytest.raises(ZeroDivisionError), listing_folder(tmp_path, "verify") as folder:
        assert not earlier.exists() and listed_users(folder, 0) == []
        list_users(["bob"], folder, buckets=1)
        raise ZeroDivisionError
    assert not folder.exists()


def test_lists_that_cannot_be_removed_are_told(tmp_path: Path):
    list_users(["ann"], tmp_path / "jobs" / "export", buckets=1)
    (tmp_path / "jobs" / "export" / "00").chmod(0o555)
    try:
        with bound_by_permissions(), pytest.raises(InfrastructureError, match="cannot write"):
            remove_listings(tmp_path)
    finally:
        (tmp_path / "jobs" / "export" / "00").chmod(0o755)
    remove_listings(tmp_path)
    assert not list((tmp_path / "jobs").iterdir())
    remove_listings(tmp_path)
