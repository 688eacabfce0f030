"""Rows in the hashed tables: golden values, ranges, the reserved row, spread."""

import numpy as np

from spoor.activity.hashing import hash_items
from spoor.encoder.model.hashing import ROW_HASH_VERSION, table_rows, vocabulary_index, vocabulary_rows

GOLDEN_HASHES = np.array([0, 1, 2**63, 2**64 - 1, 0x0123456789ABCDEF], np.uint64)
GOLDEN_ROWS = {
    8_192: [
        [1136, 1677, 5344, 1384],
        [7523, 1091, 384, 2439],
        [5043, 6996, 5293, 6357],
        [1602, 2816, 3102, 7562],
        [1740, 4204, 2107, 2387],
    ],
    80_000_000: [
        [16215290, 17938472, 46758499, 10687453],
        [1028839, 71995807, 20884518, 44040939],
        [42530007, 59276793, 28001142, 46013789],
        [57649850, 479814, 53512613, 36451625],
        [57130050, 15906384, 42445592, 63578540],
    ],
}


def test_golden_rows_of_version_1() -> None:
    assert ROW_HASH_VERSION == 1
    assert table_rows(GOLDEN_HASHES, functions=4, rows=8192).tolist() == GOLDEN_ROWS[8192]
    assert table_rows(GOLDEN_HASHES, functions=4, rows=80_000_000).tolist() == GOLDEN_ROWS[80_000_000]


def test_first_function_is_splitmix64_itself() -> None:
    """splitmix64 seeded with 0 begins with 0xE220A8397B1DCDAF: the published value."""
    assert table_rows(np.zeros(1, np.uint64), functions=1, rows=2**40)[0, 0] == 1 + 0xE220A8397B1DCDAF % (2**40 - 1)


def test_rows_of_known_items_leave_row_0_free() -> None:
    rows = table_rows(hash_items([str(n) for n in range(5000)]), functions=3, rows=17)
    assert rows.min() == 1
    assert rows.max() == 16


def test_two_rows_are_the_fewest() -> None:
    assert table_rows(GOLDEN_HASHES, functions=2, rows=2).tolist() == [[1, 1]] * 5


def test_functions_spread_items_evenly_and_independently() -> None:
    rows = table_rows(hash_items([str(n) for n in range(64_000)]), functions=2, rows=65)
    for column in rows.T:
        assert np.abs(np.bincount(column, minlength=65)[1:] - 1000).max() < 200  # 6 standard deviations
    together = (rows[:, 0] == rows[:, 1]).mean()
    assert abs(together - 1 / 64) < 0.004


def test_vocabulary_rows_start_with_the_unknown_item() -> None:
    rows = vocabulary_rows(GOLDEN_HASHES, functions=3, rows=100)
    assert rows.shape == (6, 3)
    assert rows[0].tolist() == [0, 0, 0]
    assert np.array_equal(rows[1:], table_rows(GOLDEN_HASHES, functions=3, rows=100))


def test_vocabulary_index_is_0_for_what_is_not_known() -> None:
    known = np.array([3, 7, 2**64 - 1], np.uint64)
    asked = np.array([7, 0, 3, 2**64 - 1, 8, 2**64 - 2], np.uint64)
    assert vocabulary_index(asked, known).tolist() == [2, 0, 1, 3, 0, 0]
    assert vocabulary_index(asked, known[:0]).tolist() == [0] * 6
    assert vocabulary_index(asked[:0], known).tolist() == []
