"""Crossing attention against its plain reference: outputs, gradients, awkward sizes, refusals, what is not felt."""

import pytest
import torch
from torch import Tensor

from spoor.kernels.dcat_attention import cpu, dcat_attention
from spoor.kernels.dcat_attention.dense import attend_densely
from spoor.kernels.dcat_attention.reference import reference_dcat_attention
from spoor.kernels.jagged_attention import jagged_attention

Inputs = tuple[list[Tensor], Tensor, Tensor]

# Context lengths by user, and the user of each candidate.
CASES = {
    "no candidates": ([3, 2], []),
    "nothing at all": ([], []),
    "one candidate, empty context": ([0], [0]),
    "only empty contexts": ([0, 0], [1, 0, 1]),
    "one event, one candidate": ([1], [0]),
    "users without candidates": ([4, 9, 0, 2], [1, 1]),
    "candidates in no order": ([7, 1, 0, 13], [3, 0, 3, 2, 1, 0, 3, 1, 0, 3]),
    "one long, many short": ([111, *[3] * 9], [0] * 17 + [4, 9, 9, 2]),
    "many candidates for one": ([5, 63, 5], [1] * 37 + [0, 2]),
}


def inputs(lengths: list[int], users: list[int], *, heads: int = 3, dimensions: int = 5, seed: int = 0) -> Inputs:
    generator = torch.Generator().manual_seed(seed)
    offsets = torch.tensor([0, *lengths], dtype=torch.int64).cumsum(0)
    rows = [len(users)] * 3 + [int(offsets[-1])] * 2
    tensors = [torch.randn((n, heads, dimensions), generator=generator).requires_grad_() for n in rows]
    return tensors, offsets, torch.tensor(users, dtype=torch.int64)


@pytest.mark.parametrize("implementation", [dcat_attention, attend_densely], ids=["tiles", "dense"])
@pytest.mark.parametrize("hide", [None, 0, 2, 100], ids=["all seen", "none skipped", "two skipped", "all skipped"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_outputs_and_gradients_equal_the_reference(case, hide: int | None, implementation) -> None:
    ours, offsets, users = inputs(*case)
    skipped = None if hide is None else torch.full((len(offsets) - 1,), hide).minimum(offsets.diff())
    reference = [x.detach().clone().requires_grad_() for x in ours]
    out = implementation(*ours, offsets, users, skipped=skipped)
    expected = reference_dcat_attention(*reference, offsets, users, skipped=skipped)
    assert out.shape == expected.shape
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)

    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    (out * weights).sum().backward()
    (expected * weights).sum().backward()
    for name, mine, theirs in zip(("q", "k", "v", "k_context", "v_context"), ours, reference, strict=True):
        grad = theirs.grad if theirs.grad is not None else torch.zeros_like(theirs)
        assert mine.grad is not None, f"{name} has no gradient"
        torch.testing.assert_close(mine.grad, grad, atol=1e-5, rtol=1e-4, msg=lambda m, n=name: f"d{n}: {m}")


def test_a_candidate_attends_as_the_last_event_of_its_history_would() -> None:
    (q, k, v, k_context, v_context), offsets, users = inputs([6, 1, 12], [2, 0, 1, 2])
    out = dcat_attention(q, k, v, k_context, v_context, offsets, users)
    for candidate, user in enumerate(users.tolist()):
        rows = slice(int(offsets[user]), int(offsets[user + 1]))
        keys, values = (torch.cat([a[rows], b[candidate, None]]) for a, b in ((k_context, k), (v_context, v)))
        queries = torch.cat([torch.zeros_like(k_context[rows]), q[candidate, None]])
        whole = jagged_attention(queries, keys, values, torch.tensor([0, len(keys)]))
        torch.testing.assert_close(out[candidate], whole[-1], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_without_the_fused_attention_of_a_cpu_it_is_the_same(case, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU where kernels.backend is cpu."""
    (q, k, v, k_context, v_context), offsets, users = inputs(*case)
    fused = dcat_attention(q, k, v, k_context, v_context, offsets, users)
    attended = []

    def elsewhere(q: Tensor, k: Tensor, v: Tensor, *, real: Tensor | None) -> tuple[Tensor, Tensor]:
        attended.append(q)
        mask = None if real is None else torch.where(real, 0.0, -torch.inf)[:, None, None, :]
        return cpu._over_context_elsewhere(q, k, v, mask)

    monkeypatch.setattr(cpu, "_over_context", elsewhere)
    plain = dcat_attention(q, k, v, k_context, v_context, offsets, users)
    assert attended or not len(users) or not len(k_context)
    torch.testing.assert_close(plain, fused, atol=1e-6, rtol=1e-6)


def test_small_tiles_and_small_products_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, offsets, users = inputs([9, 40, 0, 23], [1] * 11 + [0, 3, 3, 2, 1])
    whole = dcat_attention(*ours, offsets, users)
    whole.square().sum().backward()
    gradients = [x.grad for x in ours]
    for x in ours:
        x.grad = None
    monkeypatch.setattr(cpu, "_TILE_CANDIDATES", 3)
    monkeypatch.setattr(cpu, "_BUCKET_SCORES", 1)
    tiled = dcat_attention(*ours, offsets, users)
    tiled.square().sum().backward()
    torch.testing.assert_close(tiled, whole, atol=1e-6, rtol=1e-6)
    for mine, theirs in zip(ours, gradients, strict=True):
        torch.testing.assert_close(mine.grad, theirs, atol=1e-5, rtol=1e-5)


def test_what_a_candidate_may_not_see_may_be_anything() -> None:
    """Other users' rows, skipped rows and other candidates: NaN in them reaches nobody else."""
    (q, k, v, k_context, v_context), offsets, _ = inputs([4, 6], [0, 1])
    for x in (k_context, v_context):
        x.data[4:7] = float("nan")  # the three oldest of the second user
    for x in (q, k, v):
        x.data = torch.cat([x.data, torch.full_like(x.data[:1], float("nan"))])
    skipped = torch.tensor([0, 3])
    out = dcat_attention(q, k, v, k_context, v_context, offsets, torch.tensor([0, 1, 1]), skipped=skipped)
    assert torch.isfinite(out[:2]).all() and torch.isnan(out[2]).all()


def test_large_scores_neither_overflow_nor_vanish() -> None:
    (q, k, v, k_context, v_context), offsets, users = inputs([6], [0, 0])
    out = dcat_attention(q * 1e4, k, v, k_context * 1e3, v_context, offsets, users)
    expected = reference_dcat_attention(q * 1e4, k, v, k_context * 1e3, v_context, offsets, users)
    torch.testing.assert_close(out, expected)
    out.sum().backward()
    assert all(bool(torch.isfinite(x.grad).all()) for x in (q, k, v, k_context, v_context) if x.grad is not None)


def test_half_precision_is_computed_in_float32() -> None:
    ours, offsets, users = inputs([50, 3], [0, 1, 0])
    halves = [x.detach().bfloat16() for x in ours]
    out = dcat_attention(*halves, offsets, users)
    exact = reference_dcat_attention(*[x.float() for x in halves], offsets, users)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), exact, atol=4e-3, rtol=8e-3)  # one rounding to 8 bits


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a, o, u: ([a[0][0], *a[1:]], o, u, None), "candidates, heads, dimensions"),
        (lambda a, o, u: ([x.long() for x in a], o, u, None), "floating type"),
        (lambda a, o, u: ([a[0], a[1][:-1], *a[2:]], o, u, None), "k must have the shape"),
        (lambda a, o, u: ([*a[:4], a[4][:-1]], o, u, None), "v_context must have the shape"),
        (lambda a, o, u: ([*a[:3], a[3].double(), a[4]], o, u, None), "k_context must be torch.float32"),
        (lambda a, o, u: (a, o.int(), u, None), "context_offsets must be int64"),
        (lambda a, o, u: (a, o[:-1], u, None), "from 0 to 6 events"),
        (lambda a, o, u: (a, torch.tensor([0, 7, 6]), u, None), "must not decrease"),
        (lambda a, o, u: (a, o, u[:-1], None), r"candidate_user must be int64 \[3\]"),
        (lambda a, o, u: (a, o, u + 1, None), r"lie in \[0, 2\)"),
        (lambda a, o, u: (a, o, u, torch.tensor([1])), r"skipped must be int64 \[2\]"),
        (lambda a, o, u: (a, o, u, torch.tensor([1, -1])), "not below 0"),
    ],
)
def test_what_does_not_fit_is_refused(change, message: str) -> None:
    ours, offsets, users = inputs([2, 4], [0, 1, 1])
    tensors, offsets, users, skipped = change(ours, offsets, users)
    with pytest.raises(ValueError, match=message):
        dcat_attention(*tensors, offsets, users, skipped=skipped)
