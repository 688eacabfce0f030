import json
from contextlib import suppress

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from spoor.activity.sources.event_files import read_table
from spoor.base.errors import UsageError
from spoor.ranking.features.attributes import AttributeLayout
from tests.arrow_types import ARRAYS

DAY = 86_400_000


def table(**columns: object) -> pa.Table:
    return pa.table({"item_id": ["a", "b", "c"], **columns})


def test_texts_and_lists_of_texts_become_one_column_per_value():
    items = table(genre=[["x", "y"], ["y"], None], kind=["p", "q", None])
    found = AttributeLayout.of(items, known=[*"abc"]).matrix(items, ["c", "a", "b", "?"])
    assert found.tolist() == [[0, 0, 0, 0], [1, 1, 1, 0], [0, 1, 0, 1], [0, 0, 0, 0]]


def test_numbers_are_standard_scores_and_times_lie_on_circles():
    items = table(price=[1.0, 3.0, None], created_at=[0, 7 * DAY, 7 * DAY + DAY // 2])
    layout = AttributeLayout.of(items, known=[*"ab"])
    found = layout.matrix(items, [*"abc"])
    assert found[:, 0].tolist() == [-1, 1, 0]
    assert found.shape == (3, layout.width) == (3, 1 + 5)
    np.testing.assert_allclose(found[0, 2:], found[1, 2:], atol=1e-6)  # a week apart: the same place
    np.testing.assert_allclose(found[2, [3, 5]], -found[1, [3, 5]], atol=1e-6)  # half a day apart: the other side


def test_how_a_writer_stores_texts_truths_and_times_does_not_matter():
    times = [0, 7 * DAY, 7 * DAY + DAY // 2]
    plain = table(kind=["p", "q", None], genre=[["x"], ["y"], None], new=[1, 0, 1], born_at=times)
    others = table(
        kind=pa.array(["p", "q", None]).dictionary_encode(),
        genre=pa.array([["x"], ["y"], None], pa.large_list(pa.large_string())),
        new=[True, False, True],
        born_at=pa.array(times, pa.timestamp("ms", "UTC")).cast(pa.timestamp("us", "UTC")),
    )
    expected = AttributeLayout.of(plain, known=[*"abc"])
    assert AttributeLayout.of(others, known=[*"abc"]) == expected and expected.width == 2 + 2 + 1 + 5
    np.testing.assert_array_equal(expected.matrix(others, [*"abc"]), expected.matrix(plain, [*"abc"]))


def test_ids_may_be_numbers_in_the_table():
    items = pa.table({"item_id": [1, 2], "price": [1.0, 3.0]})
    layout = AttributeLayout.of(items, known=["1", "2"])
    assert layout.matrix(items, ["2", "1"]).tolist() == [[1], [-1]]


def test_ids_that_the_settings_allow_may_be_longer_than_usual():
    """`read_table` has judged them by events.max_id_bytes; here they are texts."""
    long = "x" * 300
    layout = AttributeLayout.of(pa.table({"item_id": [long, "b"], "price": [1.0, 3.0]}), known=[long, "b"])
    assert layout.matrix(pa.table({"item_id": [long], "price": [3.0]}), [long])[0, 0] == 1.0


def test_a_table_without_ids_or_without_the_layouts_columns_is_refused():
    items = table(price=[1.0, 3.0, 2.0])
    with pytest.raises(UsageError, match="no column item_id, found price"):
        AttributeLayout.of(items.drop_columns("item_id"), known=["a"])
    layout = AttributeLayout.of(items, known=[*"abc"])
    with pytest.raises(UsageError, match="no column price, found item_id"):
        layout.matrix(items.drop_columns("price"), ["a"])


def test_only_known_items_decide_the_columns_and_the_scales():
    items = table(kind=["p", "q", "new"], price=[0.0, 2.0, 1e9])
    changed = table(kind=["p", "q", "other"], price=[0.0, 2.0, -5.0])
    layout = AttributeLayout.of(items, known=[*"ab"])
    assert layout == AttributeLayout.of(changed, known=[*"ab"])
    assert layout != AttributeLayout.of(items, known=[*"abc"])
    assert layout.matrix(items, ["c"]).tolist() == [[0, 0, 4]]


def test_ids_free_text_and_constants_are_left_out():
    names = [f"i{k}" for k in range(70)]
    many = pa.table({"item_id": names, "title": [f"t{k}" for k in range(70)], "one": [1] * 70, "none": [None] * 70})
    assert AttributeLayout.of(many, known=names).matrix(many, ["i3"]).shape == (1, 0)
    assert AttributeLayout.of(table(kind=["p", "q", "p"]), known=[]).width == 0


def test_a_table_without_items_and_no_items_asked_are_fine():
    empty = pa.table({"item_id": pa.array([], pa.string()), "kind": pa.array([], pa.string())})
    assert AttributeLayout.of(empty, known=["a"]).matrix(empty, ["a", "b"]).shape == (2, 0)
    items = table(kind=["p", "q", None])
    assert AttributeLayout.of(items, known=[*"ab"]).matrix(items, []).shape == (0, 2)


def test_a_layout_survives_json():
    items = table(genre=[["x"], ["y"], None], price=[1.0, 4.0, 2.0], first_seen=[1, 2, 3])
    layout = AttributeLayout.of(items, known=[*"abc"])
    assert AttributeLayout.from_json(json.loads(json.dumps(layout.to_json()))) == layout


def test_a_null_in_a_list_of_texts_is_none(tmp_path):
    (tmp_path / "i.jsonl").write_text('{"item_id": "1", "genres": ["a", null]}\n{"item_id": "2", "genres": ["b"]}\n')
    items = read_table(tmp_path / "i.jsonl")
    layout = AttributeLayout.of(items, known=["1", "2"])
    assert layout.attributes[0].values == ("a", "b")
    assert layout.matrix(items, ["1", "2"]).tolist() == [[1, 0], [0, 1]]


@pytest.mark.parametrize(
    "column",
    [
        pa.array([2**53 + 1, 1, None]),
        pa.array([2**64 - 1, 0, None], pa.uint64()),
        pa.array([2**63 - 1, 0, None], pa.timestamp("s")),
        pa.array([2**63 - 1, 0, None], pa.timestamp("ms", "Mars/Phobos")),
        pa.array([2**63 - 1, 0, None], pa.timestamp("us", "UTC")),
    ],
)
def test_an_integer_that_no_float_holds_is_the_nearest_one(column):
    items = table(x=column)
    found = AttributeLayout.of(items, known=[*"abc"]).matrix(items, [*"abc"])
    assert found[:, 0].tolist() == [1, -1, 0]


def test_a_column_whose_deviation_is_no_float_is_left_out():
    assert AttributeLayout.of(table(x=[1e308, -1e308, 1e308]), known=[*"abc"]).attributes == ()


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view()])
def test_texts_of_every_kind_are_read_from_parquet(tmp_path, kind):
    texts = pa.array(["p", "q", None], kind)
    pq.write_table(
        table(kind=texts, genre=pa.array([["p"], ["q", None], None], pa.list_(kind))), tmp_path / "i.parquet"
    )
    items = read_table(tmp_path / "i.parquet")
    found = AttributeLayout.of(items, known=[*"abc"]).matrix(items, [*"abc"])
    assert found.tolist() == [[1, 0, 1, 0], [0, 1, 0, 1], [0, 0, 0, 0]]


def test_numbered_and_counted_values_are_values():
    for column in (
        pa.array(["p", "q", None], pa.string_view()).dictionary_encode(),
        pa.RunEndEncodedArray.from_arrays([1, 2, 3], pa.array(["p", "q", None])),
    ):
        items = table(kind=column)
        assert AttributeLayout.of(items, known=[*"abc"]).matrix(items, ["b", "a"]).tolist() == [[0, 1], [1, 0]]


def test_texts_in_place_of_numbers_and_the_reverse_are_refused():
    numbers, texts = table(x=[1.0, 2.0, None]), table(x=["p", "q", None])
    with pytest.raises(UsageError, match="column x: found string, expected numbers"):
        AttributeLayout.of(numbers, known=[*"abc"]).matrix(texts, ["a"])
    with pytest.raises(UsageError, match="column x: found double, expected texts"):
        AttributeLayout.of(texts, known=[*"abc"]).matrix(numbers, ["a"])
    for items in (numbers, texts):
        found = AttributeLayout.of(items, known=[*"abc"]).matrix(table(x=[None] * 3), ["a"])
        assert not found.any()


def test_text_that_is_no_utf8_is_refused_by_column():
    invalid = pa.Array.from_buffers(pa.string(), 3, pa.array([b"\xff", b"a", b"b"]).buffers())
    with pytest.raises(UsageError, match="column kind: found bytes that are no UTF-8"):
        AttributeLayout.of(table(kind=invalid), known=[*"abc"])


def test_every_type_of_arrow_may_be_a_column_of_a_table_of_items():
    for array in ARRAYS:
        items = pa.table({"item_id": ["a"], "x": array})
        with suppress(UsageError):
            assert AttributeLayout.of(items, known=["a"]).matrix(items, ["a"]).shape == (1, 0), array.type
