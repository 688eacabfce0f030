"""Triton's kernels against the plain references, in values and all gradients: in the interpreter, or on a GPU
where there is one.

Tolerances: float32 kernels add in another order than the references do, 1e-5. Half types round inputs once (they are
the reference's inputs, too), weights to 11 or 8 bits on a GPU, and results once: 4e-3 and 3e-2 of values about 1.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from spoor.kernels.backend import backend_of, force
from spoor.kernels.dcat_attention import dcat_attention
from spoor.kernels.dcat_attention.reference import reference_dcat_attention
from spoor.kernels.dcat_attention.triton import attend_on_gpu as cross_on_gpu
from spoor.kernels.hashed_gather import Layout, hashed_gather
from spoor.kernels.hashed_gather.layouts import pack_rows
from spoor.kernels.hashed_gather.reference import reference_hashed_gather
from spoor.kernels.jagged_attention import jagged_attention
from spoor.kernels.jagged_attention.reference import reference_jagged_attention
from spoor.kernels.jagged_attention.triton import attend_on_gpu
from spoor.kernels.launch import choose_launch
from spoor.kernels.tiles import cut_into_tiles

pytestmark = pytest.mark.usefixtures("poison")

TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
TYPES = [torch.float32, torch.float16]
if torch.cuda.is_available():
    TYPES.append(torch.bfloat16)  # the interpreter stores it as integers

JAGGED = {  # lengths, heads, floats per head
    "nothing": ([], 1, 4),
    "empty histories alone": ([0, 0], 2, 4),
    "one event": ([1], 1, 1),
    "awkward lengths": ([0, 63, 1, 111, 3, 0], 2, 20),
    "a whole tile and one more": ([64, 65], 1, 16),
    "a wide head": ([5, 33], 1, 100),
    "many short ones": ([1, 2, 3, 4, 5] * 8, 1, 8),
}
CROSSED = {  # context lengths, user of each candidate, heads, floats per head
    "no candidates": ([3, 2], [], 2, 4),
    "nothing": ([], [], 1, 4),
    "only empty contexts": ([0, 0], [1, 0, 1], 2, 5),
    "in no order": ([7, 1, 0, 13], [3, 0, 3, 2, 1, 0, 3, 1, 0, 3], 3, 5),
    "users without candidates": ([4, 9, 0, 2], [1, 1], 1, 16),
    "one user with many": ([5, 63], [1] * 130, 1, 8),
    "many users with one": ([2, 0, 5, 1] * 10, list(range(40)), 1, 4),
    "a wide head": ([111], [0] * 3, 1, 100),
}


def drawn(rows: list[int], heads: int, width: int, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    generator = torch.Generator().manual_seed(sum(rows))
    return [torch.randn(n, heads, width, generator=generator).to(device, dtype).requires_grad_() for n in rows]


def compare(ours: list[Tensor], out: Tensor, exact: list[Tensor], expected: Tensor, dtype: torch.dtype) -> None:
    """Values, then gradients of a weighted sum. Half types: of the size of the largest gradient."""
    tolerance = TOLERANCE[dtype]
    assert out.dtype == dtype and out.shape == expected.shape
    torch.testing.assert_close(out.float(), expected, atol=tolerance, rtol=tolerance)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.device, dtype)
    (out * weights).sum().backward()
    (expected * weights.float()).sum().backward()
    for number, (mine, theirs) in enumerate(zip(ours, exact, strict=True)):
        grad = theirs.grad if theirs.grad is not None else torch.zeros_like(theirs)
        assert mine.grad is not None, f"input {number} has no gradient"
        size = max(float(grad.abs().amax()) if grad.numel() else 0.0, 1.0)
        torch.testing.assert_close(
            mine.grad.float(), grad, atol=tolerance * size, rtol=tolerance, msg=lambda m, n=number: f"input {n}: {m}"
        )


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "both ways"])
@pytest.mark.parametrize("case", JAGGED.values(), ids=JAGGED.keys())
def test_jagged_attention_equals_its_reference(case, causal: bool, dtype: torch.dtype, device: torch.device) -> None:
    lengths, heads, width = case
    offsets = torch.tensor([0, *lengths], dtype=torch.int64, device=device).cumsum(0)
    ours = drawn([sum(lengths)] * 3, heads, width, dtype, device)
    exact = [x.detach().float().requires_grad_() for x in ours]
    out = attend_on_gpu(*ours, offsets, causal=causal)
    compare(ours, out, exact, reference_jagged_attention(*exact, offsets, causal=causal), dtype)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("hide", [None, 2], ids=["all seen", "two skipped"])
@pytest.mark.parametrize("case", CROSSED.values(), ids=CROSSED.keys())
def test_dcat_attention_equals_its_reference(case, hide: int | None, dtype: torch.dtype, device: torch.device) -> None:
    lengths, users, heads, width = case
    offsets = torch.tensor([0, *lengths], dtype=torch.int64, device=device).cumsum(0)
    candidate_user = torch.tensor(users, dtype=torch.int64, device=device)
    skipped = None if hide is None else torch.full((len(lengths),), hide, device=device)
    ours = drawn([len(users)] * 3 + [sum(lengths)] * 2, heads, width, dtype, device)
    exact = [x.detach().float().requires_grad_() for x in ours]
    out = cross_on_gpu(*ours, offsets, candidate_user, skipped=skipped)
    expected = reference_dcat_attention(*exact, offsets, candidate_user, skipped=skipped)
    compare(ours, out, exact, expected, dtype)


def test_inputs_may_be_views_in_any_layout(device: torch.device) -> None:
    offsets = torch.tensor([0, 7, 12], device=device)
    (packed,) = drawn([12 * 3], 2, 8, torch.float32, device)
    views = packed.detach().view(12, 3, 2, 8).unbind(1)  # rows 48 floats apart
    turned = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in views]  # the last stride is no 1
    expected = reference_jagged_attention(*views, offsets)
    torch.testing.assert_close(attend_on_gpu(*views, offsets, causal=True), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(attend_on_gpu(*turned, offsets, causal=True), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.skipif(torch.cuda.is_available(), reason="lays rows far apart in a sparse file, which a GPU cannot read")
def test_rows_may_lie_beyond_two_to_the_31_elements(tmp_path: Path) -> None:
    """The rows of a sparse file, 2^30 elements apart: the third begins where int32 ends."""
    apart = 2**30
    memory = np.memmap(tmp_path / "rows", dtype=np.float16, mode="w+", shape=(3 * apart + 64,))
    far = torch.from_numpy(memory).as_strided((4, 1, 16), (apart, 16, 1))
    near = torch.randn(4, 1, 16, generator=torch.Generator().manual_seed(0)).half()
    far.copy_(near)
    offsets = torch.tensor([0, 4])
    out = attend_on_gpu(far, far, far, offsets, causal=True)
    torch.testing.assert_close(out, attend_on_gpu(near, near, near, offsets, causal=True))
    crossed = [cross_on_gpu(*[x] * 5, offsets, torch.tensor([0, 0, 0, 0])) for x in (far, near)]
    torch.testing.assert_close(crossed[0], crossed[1])


def test_hidden_rows_and_other_users_may_hold_nan(device: torch.device) -> None:
    q, k, v, k_context, v_context = (x.detach() for x in drawn([2, 2, 2, 10, 10], 1, 4, torch.float32, device))
    for x in (k_context, v_context):
        x[4:7] = float("nan")  # the three oldest of the second user
    offsets, users, skipped = (torch.tensor(x, device=device) for x in ([0, 4, 10], [0, 1], [0, 3]))
    inputs = [x.requires_grad_() for x in (q, k, v, k_context, v_context)]
    out = cross_on_gpu(*inputs, offsets, users, skipped=skipped)
    out.sum().backward()
    assert torch.isfinite(out).all()
    assert all(x.grad is not None and bool(torch.isfinite(x.grad).all()) for x in inputs)


@pytest.mark.parametrize("lengths", [[], [0], [1], [64, 0, 65, 1], [3] * 50], ids=str)
def test_tiles_cover_every_row_once(lengths: list[int]) -> None:
    sequences, firsts = cut_into_tiles(torch.tensor(lengths, dtype=torch.int64), rows=sum(lengths), size=16)
    covered = [
        (s, row)
        for s, first in zip(sequences.tolist(), firsts.tolist(), strict=True)
        if s >= 0
        for row in range(first, min(first + 16, lengths[s]))
    ]
    assert sorted(covered) == [(s, row) for s, length in enumerate(lengths) for row in range(length)]


@pytest.mark.parametrize(
    ("dtype", "width", "message"),
    [
        (torch.float64, 8, r"take torch.float32, torch.float16, torch.bfloat16; found torch.float64"),
        (torch.float16, 129, r"heads of 1 to 128 floats; found 129"),
    ],
)
def test_what_the_kernels_do_not_take_is_refused(dtype: torch.dtype, width: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        choose_launch(dtype, width, amd=False)


def test_the_backend_can_be_forced_for_every_operator(device: torch.device) -> None:
    x = torch.randn(3, 1, 4, device=device)
    offsets, users = torch.tensor([0, 3], device=device), torch.zeros(3, dtype=torch.int64, device=device)
    found = []
    try:
        for choice in ("cpu", "triton"):
            force(choice)
            assert backend_of(x) == choice
            found.append((jagged_attention(x, x, x, offsets), dcat_attention(*[x] * 5, offsets, users)))
    finally:
        force("auto")
    assert backend_of(x) == ("triton" if x.is_cuda else "cpu")
    torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("width", [2, 10, 32, 96])
@pytest.mark.parametrize("layout", ["int4", "int8", "fp16"])
@pytest.mark.parametrize("shape", [(0, 3), (1, 1), (63, 2), (111, 3)])
def test_gathered_rows_equal_the_reference(layout: Layout, width: int, shape: tuple[int, int], device) -> None:
    x = torch.randn(17, width, generator=torch.Generator().manual_seed(0))
    packed = pack_rows(x, layout).to(device)
    rows = torch.randint(0, 17, shape, generator=torch.Generator().manual_seed(1)).to(device)
    force("triton")
    try:
        found = hashed_gather(packed, rows, width=width, layout=layout)
    finally:
        force("auto")
    torch.testing.assert_close(found, reference_hashed_gather(packed, rows, width=width, layout=layout))
