"""Jagged attention against its plain reference: outputs, gradients, awkward sizes, refusals."""

import pytest
import torch
from torch import Tensor

from spoor.kernels.jagged_attention import jagged_attention
from spoor.kernels.jagged_attention.dense import attend_densely
from spoor.kernels.jagged_attention.reference import reference_jagged_attention

LENGTHS = {
    "no sequences": [],
    "only empty": [0, 0],
    "one event": [1],
    "empty first and last": [0, 3, 0],
    "odd": [7, 1, 0, 13, 2, 1, 63],
    "one long, many short": [111, *[3] * 17],
    "descending": [65, 33, 17, 9, 5, 3, 2, 1],
    "equal": [5, 5, 5],
}


def inputs(lengths: list[int], *, heads: int = 3, dimensions: int = 5, seed: int = 0) -> tuple[list[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(seed)
    offsets = torch.tensor([0, *lengths], dtype=torch.int64).cumsum(0)
    shape = (int(offsets[-1]), heads, dimensions)
    qkv = [torch.randn(shape, generator=generator).requires_grad_() for _ in range(3)]
    return qkv, offsets


@pytest.mark.parametrize("implementation", [jagged_attention, attend_densely], ids=["buckets", "dense"])
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "full"])
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS.keys())
def test_outputs_and_gradients_equal_the_reference(lengths: list[int], causal: bool, implementation) -> None:
    ours, offsets = inputs(lengths)
    q, k, v = ours
    q_ref, k_ref, v_ref = reference = [x.detach().clone().requires_grad_() for x in ours]
    out = implementation(q, k, v, offsets, causal=causal)
    expected = reference_jagged_attention(q_ref, k_ref, v_ref, offsets, causal=causal)
    assert out.shape == expected.shape
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)

    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    (out * weights).sum().backward()
    (expected * weights).sum().backward()
    for name, mine, theirs in zip("qkv", ours, reference, strict=True):
        grad = theirs.grad if theirs.grad is not None else torch.zeros_like(theirs)
        assert mine.grad is not None, f"{name} has no gradient"
        torch.testing.assert_close(mine.grad, grad, atol=1e-5, rtol=1e-4, msg=lambda m, n=name: f"d{n}: {m}")


def test_a_sequence_does_not_feel_its_neighbours() -> None:
    (q, k, v), offsets = inputs([9, 40, 1, 23])
    together = jagged_attention(q, k, v, offsets)
    for start, end in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        alone = jagged_attention(q[start:end], k[start:end], v[start:end], torch.tensor([0, end - start]))
        torch.testing.assert_close(together[start:end], alone, atol=1e-6, rtol=1e-6)


def test_causal_output_does_not_feel_later_events() -> None:
    (q, k, v), offsets = inputs([17])
    before = jagged_attention(q, k, v, offsets)[:10]
    after = jagged_attention(q[:10], k[:10], v[:10], torch.tensor([0, 10]))
    torch.testing.assert_close(before, after, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda q, k, v, o: (q[0], k, v, o), "events, heads, dimensions"),
        (lambda q, k, v, o: (q, k[:-1], v, o), "k must have the shape of q"),
        (lambda q, k, v, o: (q, k, v.double(), o), "v must be torch.float32"),
        (lambda q, k, v, o: (q.long(), k.long(), v.long(), o), "floating type"),
        (lambda q, k, v, o: (q, k, v, o.int()), "offsets must be int64"),
        (lambda q, k, v, o: (q, k, v, o[:0]), "offsets must be int64"),
        (lambda q, k, v, o: (q, k, v, o + 1), "from 0 to 6 events"),
        (lambda q, k, v, o: (q, k, v, o[:-1]), "from 0 to 6 events"),
        (lambda q, k, v, o: (q, k, v, torch.tensor([0, 5, 2, 6])), "must not decrease"),
    ],
)
def test_what_does_not_fit_is_refused(change, message: str) -> None:
    (q, k, v), offsets = inputs([2, 4])
    with pytest.raises(ValueError, match=message):
        jagged_attention(*change(q, k, v, offsets))
