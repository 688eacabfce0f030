import numpy as np
import pyarrow as pa

from ranking.attributes import attribute_matrix

DAY = 86_400_000


def table(**columns: object) -> pa.Table:
    return pa.table({"item_id": ["a", "b", "c"], **columns})


def test_texts_and_lists_of_texts_become_one_column_per_value():
    found = attribute_matrix(
        table(genre=[["x", "y"], ["y"], None], kind=["p", "q", None]), ["c", "a", "b", "?"], known=["a", "b", "c"]
    )
    assert found.tolist() == [[0, 0, 0, 0], [1, 1, 1, 0], [0, 1, 0, 1], [0, 0, 0, 0]]


def test_numbers_are_standard_scores_and_times_lie_on_circles():
    found = attribute_matrix(
        table(price=[1.0, 3.0, None], created_at=[0, 7 * DAY, 7 * DAY + DAY // 2]), [*"abc"], known=[*"ab"]
    )
    assert found[:, 0].tolist() == [-1, 1, 0]
    assert found.shape == (3, 1 + 5)
    np.testing.assert_allclose(found[0, 2:], found[1, 2:], atol=1e-6)  # a week apart: the same place
    np.testing.assert_allclose(found[2, 4:], -found[1, 4:], atol=1e-6)  # half a day apart: the other side


def test_only_known_items_decide_the_columns():
    items = table(kind=["p", "q", "new"], price=[0.0, 2.0, 1e9])
    with_new, without = (attribute_matrix(items, [*"ab"], known=[*known]) for known in ("abc", "ab"))
    assert with_new.shape[1] == 4 and without.shape[1] == 3
    changed = table(kind=["p", "q", "other"], price=[0.0, 2.0, -5.0])
    np.testing.assert_array_equal(without, attribute_matrix(changed, [*"ab"], known=[*"ab"]))


def test_ids_free_text_and_constants_are_left_out():
    many = pa.table({"item_id": [f"i{k}" for k in range(70)], "title": [f"t{k}" for k in range(70)], "one": [1] * 70})
    assert attribute_matrix(many, ["i3"], known=[f"i{k}" for k in range(70)]).shape == (1, 0)
    assert attribute_matrix(table(kind=["p", "q", "p"]), ["a"], known=[]).shape == (1, 0)
