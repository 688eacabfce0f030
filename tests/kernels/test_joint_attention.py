"""A request's two attentions in one block of rows: whichever way they run, they are those of the two operators."""

import pytest
import torch
from torch import Tensor

import spoor.kernels.joint_attention
from spoor.kernels.dcat_attention import dcat_attention
from spoor.kernels.jagged_attention import jagged_attention
from spoor.kernels.joint_attention import joint_attention

HEADS, DIMENSIONS = 3, 5
FEW = spoor.kernels.joint_attention._FEW_CANDIDATES


def rows_of(count: int, *, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(count)
    return [torch.randn(count, HEADS, DIMENSIONS, generator=generator).to(dtype) for _ in range(3)]


@pytest.mark.parametrize("hide", [None, 0, 2, 100], ids=["all seen", "none skipped", "two skipped", "all skipped"])
@pytest.mark.parametrize("candidates", [0, 1, 10, FEW, FEW + 1])
@pytest.mark.parametrize("lengths", [[0], [1], [256], [3, 0, 9]], ids=str)
@pytest.mark.parametrize("gradients", [False, True], ids=["inference", "training"])
def test_it_equals_the_two_operators(gradients: bool, lengths: list[int], candidates: int, hide: int | None) -> None:
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    n = int(offsets[-1])
    users = torch.arange(candidates) % len(lengths)
    skipped = None if hide is None else torch.full((len(lengths),), hide).minimum(offsets.diff())
    q, k, v = rows_of(n + candidates)
    with torch.set_grad_enabled(gradients):
        attention = joint_attention(offsets, users, rows=n, skipped=skipped, like=q)
        both, crossing = attention.both(q, k, v), attention.crossing(q[n:], k, v)
    expected = dcat_attention(q[n:], k[n:], v[n:], k[:n], v[:n], offsets, users, skipped=skipped)
    torch.testing.assert_close(crossing, expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(both[n:], expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(both[:n], jagged_attention(q[:n], k[:n], v[:n], offsets), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@torch.inference_mode()
def test_a_small_request_keeps_its_type(dtype: torch.dtype) -> None:
    q, k, v = rows_of(12, dtype=dtype)
    offsets, users = torch.tensor([0, 9]), torch.zeros(3, dtype=torch.int64)
    attention = joint_attention(offsets, users, rows=9, skipped=None, like=q)
    both = attention.both(q, k, v)
    assert both.dtype == dtype
    expected = dcat_attention(*(x[9:].double() for x in (q, k, v)), k[:9].double(), v[:9].double(), offsets, users)
    near = 1e-12 if dtype == torch.float64 else 2e-2
    torch.testing.assert_close(both[9:].double(), expected, atol=near, rtol=near)


def test_a_small_request_spares_the_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the tests above would hold one path against itself."""
    monkeypatch.delattr(spoor.kernels.joint_attention, "dcat_attention")
    q, k, v = rows_of(8)
    of = {"rows": 6, "skipped": None, "like": q}
    with torch.inference_mode():
        joint_attention(torch.tensor([0, 6]), torch.tensor([0, 0]), **of).both(q, k, v)
    with pytest.raises(NameError):
        joint_attention(torch.tensor([0, 6]), torch.tensor([0, 0]), **of).both(q, k, v)


@torch.inference_mode()
def test_what_does_not_fit_is_refused() -> None:
    of = {"rows": 6, "skipped": None, "like": torch.ones(1)}
    with pytest.raises(ValueError, match=r"run from 0 to 6 events; found 0 to 5"):
        joint_attention(torch.tensor([0, 5]), torch.tensor([0]), **of)
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\); found 0 to 1"):
        joint_attention(torch.tensor([0, 6]), torch.tensor([0, 1]), **of)
    with pytest.raises(ValueError, match="must be int64"):
        joint_attention(torch.tensor([0, 6]), torch.tensor([0], dtype=torch.int32), **of)
