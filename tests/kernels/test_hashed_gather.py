"""Gathering packed rows: equal to its reference and, within the layout's error, to the rows that were packed."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from spoor.kernels.hashed_gather import Layout, hashed_gather, row_bytes
from spoor.kernels.hashed_gather.layouts import pack_rows
from spoor.kernels.hashed_gather.reference import reference_hashed_gather

LAYOUTS: tuple[Layout, ...] = ("int4", "int8", "fp16")
WIDTHS = (2, 10, 32, 64, 96, 128)
ERRORS = {"int4": 0.079, "int8": 0.005, "fp16": 0.0003}  # relative, L2, of normal rows


def normal(rows: int, width: int, *, seed: int = 0) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(0, 3), (1, 1), (63, 2), (111, 8)])
def test_it_equals_the_reference(layout: Layout, width: int, shape: tuple[int, int]) -> None:
    packed = pack_rows(normal(17, width), layout)
    rows = torch.randint(0, 17, shape, generator=torch.Generator().manual_seed(1))
    found = hashed_gather(packed, rows, width=width, layout=layout)
    assert found.shape == (shape[0], shape[1] * width) and found.dtype == torch.float32
    torch.testing.assert_close(found, reference_hashed_gather(packed, rows, width=width, layout=layout))


@pytest.mark.parametrize("width", [32, 128])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_normal_rows_lose_little(layout: Layout, width: int) -> None:
    x = normal(20_000, width)
    found = hashed_gather(pack_rows(x, layout), torch.arange(len(x))[:, None], width=width, layout=layout)
    assert float((found - x).norm() / x.norm()) <= ERRORS[layout]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_tables_are_concatenated_as_a_dictionary_of_vectors_would(layout: Layout) -> None:
    x = torch.arange(12.0)[:, None].expand(12, 4).contiguous()  # constant rows are exact in every layout
    found = hashed_gather(pack_rows(x, layout), torch.tensor([[3, 11, 0], [7, 7, 1]]), width=4, layout=layout)
    assert found.tolist() == [[3.0] * 4 + [11.0] * 4 + [0.0] * 4, [7.0] * 8 + [1.0] * 4]


@pytest.mark.parametrize(
    ("layout", "width", "size"), [("int4", 32, 20), ("int8", 32, 40), ("fp16", 32, 64), ("int4", 128, 80)]
)
def test_a_row_takes_the_bytes_that_the_layout_says(layout: Layout, width: int, size: int) -> None:
    assert row_bytes(width, layout) == size == pack_rows(normal(3, width), layout).shape[1]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_mapped_file_is_read_where_it_lies(layout: Layout, tmp_path: Path) -> None:
    packed = pack_rows(normal(1000, 32), layout)
    packed.numpy().tofile(tmp_path / "rows.bin")
    mapped = torch.from_numpy(np.memmap(tmp_path / "rows.bin", np.uint8, mode="c").reshape(packed.shape))
    rows = torch.tensor([[0, 999], [500, 1]])
    expected = hashed_gather(packed, rows, width=32, layout=layout)
    assert torch.equal(hashed_gather(mapped, rows, width=32, layout=layout), expected)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("row", [-1, 17])
def test_a_row_that_is_not_there_is_refused(layout: Layout, row: int) -> None:
    with pytest.raises(IndexError, match="of a table of 17"):
        hashed_gather(pack_rows(normal(17, 32), layout), torch.tensor([[0, row]]), width=32, layout=layout)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p, r: (p[:, :-1], r), r"uint8 \[rows, 20\]"),
        (lambda p, r: (p.int(), r), "uint8"),
        (lambda p, r: (p[0], r), "uint8"),
        (lambda p, r: (p[::2], r), "contiguous"),
        (lambda p, r: (p, r[0]), "int64"),
        (lambda p, r: (p, r.int()), "int64"),
        (lambda p, r: (p, r.to("meta")), "rows must be on cpu"),
    ],
)
def test_what_does_not_fit_is_refused(change, message: str) -> None:
    packed, rows = change(pack_rows(normal(4, 32), "int4"), torch.tensor([[0, 1]]))
    with pytest.raises(ValueError, match=message):
        hashed_gather(packed, rows, width=32, layout="int4")


def test_an_odd_width_is_refused_where_two_numbers_share_a_byte() -> None:
    with pytest.raises(ValueError, match="even number"):
        pack_rows(normal(2, 7), "int4")
    assert pack_rows(normal(2, 7), "int8").shape == (2, 15)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_a_number_that_cannot_be_packed_is_refused(layout: Layout, number: float) -> None:
    x = normal(3, 32)
    x[1, 5] = number
    with pytest.raises(ValueError, match="cannot: not finite, or beyond"):
        pack_rows(x, layout)


def test_a_spread_beyond_float32_is_refused() -> None:
    with pytest.raises(ValueError, match="beyond"):
        pack_rows(torch.tensor([[3e38, -3e38]]), "int8")
