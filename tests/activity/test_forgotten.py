from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from spoor.activity.forgotten import ForgottenUsers
from spoor.activity.history import NEVER
from spoor.base.errors import DataError


def events(*rows: tuple[str, int]) -> pa.Table:
    users, times = zip(*rows, strict=True) if rows else ((), ())
    return pa.table({"user_id": pa.array(users, pa.string()), "timestamp": pa.array(times, pa.int64())})


def test_the_past_is_what_lies_at_or_before_the_time(tmp_path: Path):
    forgotten = ForgottenUsers(tmp_path / "f.json")
    table = events(("ann", 4), ("ann", 5), ("ann", 6), ("bob", 4))
    assert forgotten.without_past(table).equals(table) and len(forgotten) == 0
    forgotten.add(["ann"], through_ms=5, at_ms=99)
    for read in (forgotten, ForgottenUsers(tmp_path / "f.json")):
        assert read.past(table).tolist() == [True, True, False, False]
        assert read.without_past(table).to_pylist() == events(("ann", 6), ("bob", 4)).to_pylist()
        assert read.past(events()).tolist() == []
        assert read.through(["bob", "ann"]).tolist() == [NEVER, 5]
        assert read.at(["ann", "bob"]).tolist() == [99, NEVER]


def test_of_a_user_who_is_forgotten_twice_the_later_times_count(tmp_path: Path):
    for through, at in ((5, 20), (9, 10), (7, 15)):
        ForgottenUsers(tmp_path / "f.json").add(["ann"], through_ms=through, at_ms=at)
    found = ForgottenUsers(tmp_path / "f.json")
    assert (found.through(["ann"]).tolist(), found.at(["ann"]).tolist(), len(found)) == ([9], [20], 1)


def test_who_was_forgotten_long_ago_can_be_dropped_and_others_stay(tmp_path: Path):
    path = tmp_path / "f.json"
    for user, at in (("ann", 10), ("bob", 20), ("cy", 10)):
        ForgottenUsers(path).add([user], through_ms=5, at_ms=at)
    forgotten, content = ForgottenUsers(path), path.read_bytes()
    assert [forgotten.before(10), forgotten.before(11), forgotten.before(11, but=["cy", "never-seen"])] == [0, 2, 1]
    assert forgotten.drop_before(10) == 0 and path.read_bytes() == content
    assert forgotten.drop_before(11, but=["cy"]) == 1
    for read in (forgotten, ForgottenUsers(path)):
        assert read.at(["ann", "bob", "cy"]).tolist() == [NEVER, 20, 10] and len(read) == 2
    assert forgotten.drop_before(21) == 2 and len(ForgottenUsers(path)) == 0
    forgotten.add(["ann"], through_ms=7, at_ms=30)
    assert ForgottenUsers(path).through(["ann", "bob"]).tolist() == [7, NEVER]


def test_the_file_holds_no_ids_and_another_lake_has_other_hashes(tmp_path: Path):
    for name in ("one.json", "two.json"):
        ForgottenUsers(tmp_path / name).add(["ann-of-the-hill"], through_ms=5, at_ms=9)
    one, two = (tmp_path / "one.json").read_text(), (tmp_path / "two.json").read_text()
    assert "ann-of-the-hill" not in one
    assert one != two


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"key": "zz", "users": {}}', '{"key": "", "users": {"a": 3}}'])
def test_a_damaged_file_is_an_error_and_nobody_remembered(tmp_path: Path, content: str):
    (tmp_path / "f.json").write_text(content)
    with pytest.raises(DataError, match="is damaged") as caught:
        ForgottenUsers(tmp_path / "f.json")
    assert "spoor forget" in caught.value.hint


def test_what_another_process_adds_is_seen_by_the_next_reading(tmp_path: Path):
    path = tmp_path / "f.json"
    for number, user in enumerate(("ann", "bob", "cyd")):
        before = ForgottenUsers(path)
        ForgottenUsers(path).add([user], through_ms=number, at_ms=9)
        assert (len(before), len(ForgottenUsers(path))) == (number, number + 1)
    path.unlink()
    assert len(ForgottenUsers(path)) == 0


def test_many_users_in_a_table_are_told_apart(tmp_path: Path):
    forgotten = ForgottenUsers(tmp_path / "f.json")
    forgotten.add((f"u{n}" for n in range(0, 300, 3)), through_ms=500, at_ms=0)
    table = events(*((f"u{n % 300}", n) for n in range(1000)))
    expected = [n % 300 % 3 == 0 and n <= 500 for n in range(1000)]
    np.testing.assert_array_equal(forgotten.past(table), expected)
