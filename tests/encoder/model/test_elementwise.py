"""Dropout, unit rows, feed-forwards, rotary positions: as PyTorch's own in distribution, values and gradients."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from spoor.encoder.model.elementwise import Dropout, affine, feed_forward, turned, unit_rows


@pytest.mark.parametrize("shape", [(0, 7), (1, 1), (3, 5), (63, 111)])
def test_dropout_keeps_a_shape_and_gives_zeros_or_grown_elements(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    found = Dropout(0.2)(torch.ones(shape))
    assert found.shape == shape
    assert all(value == 0 or value == pytest.approx(1.25, rel=1e-4) for value in found.flatten().tolist())


@pytest.mark.parametrize("share", [0.05, 0.2, 0.5, 0.9])
def test_dropout_drops_its_share_everywhere_alike(share: float) -> None:
    torch.manual_seed(0)
    dropped = (Dropout(share)(torch.ones(1_000, 400)) == 0).double()
    deviation = (share * (1 - share)) ** 0.5
    assert dropped.mean().item() == pytest.approx(share, abs=5 * deviation / 400_000**0.5)
    for dim in (0, 1):  # elements that share one random number are independent of one another, too
        means = dropped.mean(dim)
        assert (means - share).abs().max() < 5.5 * deviation / dropped.shape[dim] ** 0.5
    together = (dropped[:, :-1] * dropped[:, 1:]).mean().item()
    assert together == pytest.approx(share**2, abs=5 * share / 400_000**0.5 + 1e-4)


def test_the_gradient_passes_where_the_element_did() -> None:
    torch.manual_seed(0)
    x = torch.full((50, 30), 2.0, requires_grad=True)
    found = Dropout(0.4)(x)
    found.sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad * 2.0, found.detach())


def test_the_process_seed_decides_what_is_dropped() -> None:
    x, drawn = torch.ones(40, 40), []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(Dropout(0.5)(x))
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


def test_without_training_or_share_nothing_is_dropped() -> None:
    x = torch.ones(4, 4)
    assert Dropout(0.5).eval()(x) is x and Dropout(0.0)(x) is x


@pytest.mark.parametrize("rows", [0, 1, 1023, 1025, 2500])
def test_unit_rows_are_those_of_pytorch_with_its_gradients(rows: int) -> None:
    generator = torch.Generator().manual_seed(rows)
    x, weight = (torch.randn(rows, 7, generator=generator, dtype=torch.float64) for _ in range(2))
    gradients = []
    for normalise in (unit_rows, lambda x: F.normalize(x, dim=-1)):
        own = x.clone().requires_grad_()
        unit = normalise(own)
        torch.testing.assert_close(unit, F.normalize(x, dim=-1))
        (unit * weight).sum().backward()
        gradients.append(own.grad)
    torch.testing.assert_close(*gradients)


def test_a_row_of_zeros_stays() -> None:
    assert torch.equal(unit_rows(torch.zeros(2, 3)), torch.zeros(2, 3))


@pytest.mark.parametrize("events", [0, 1, 63])
def test_queries_and_keys_are_turned_by_pairs_of_neighbours_and_values_are_not(events: int) -> None:
    generator = torch.Generator().manual_seed(events)
    qkv = torch.randn(events, 3, 2, 6, generator=generator, dtype=torch.float64)
    angles = torch.randn(events, 3, generator=generator, dtype=torch.float64)
    weight = torch.randn(3, events, 2, 6, generator=generator, dtype=torch.float64)

    def plainly(qkv: torch.Tensor) -> torch.Tensor:
        cos, sin = angles.cos()[:, None], angles.sin()[:, None]
        q, k = (torch.empty_like(x) for x in qkv[:, :2].unbind(1))
        for x, out in zip(qkv.unbind(1), (q, k), strict=False):
            out[..., 0::2] = x[..., 0::2] * cos - x[..., 1::2] * sin
            out[..., 1::2] = x[..., 1::2] * cos + x[..., 0::2] * sin
        return torch.stack([q, k, qkv[:, 2]])

    turn = turns(angles)
    gradients = []
    for way in (plainly, lambda qkv: torch.stack(turned(qkv, turn).unbind(1))):
        own = qkv.clone().requires_grad_()
        found = way(own)
        torch.testing.assert_close(found, plainly(qkv))
        (found * weight).sum().backward()
        gradients.append(own.grad)
    torch.testing.assert_close(*gradients)


def turns(angles: torch.Tensor) -> torch.Tensor:
    """Angles [N, F] to [N, 3, 1, F]: of queries, of keys, and of values, which stay."""
    turn = torch.polar(torch.ones_like(angles), angles)
    return torch.stack([turn, turn, torch.ones_like(turn)], dim=1)[:, :, None]


@pytest.mark.parametrize("events", [0, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_turns_without_gradients_are_those_with_them_and_values_stay_as_they_are(
    dtype: torch.dtype, events: int
) -> None:
    """Turns are complex64; attention refuses queries of another type than values (mixed precision)."""
    generator = torch.Generator().manual_seed(0)
    qkv, turn = torch.randn(events, 3, 2, 6, generator=generator), turns(torch.randn(events, 3, generator=generator))
    qkv = qkv.to(dtype)
    expected, before = turned(qkv, turn), qkv.clone()
    assert torch.equal(qkv, before)
    assert expected.dtype == dtype and torch.equal(expected[:, 2], qkv[:, 2])
    with torch.inference_mode():
        torch.testing.assert_close(turned(qkv.clone(), turn), expected)
        torch.testing.assert_close(turned(qkv[:, 1:].clone(), turn[:, 1:]), expected[:, 1:])


@pytest.mark.parametrize("rows", [0, 1, 1024, 1025, 3000])
def test_a_feed_forward_without_gradients_is_that_with_them(rows: int) -> None:
    torch.manual_seed(rows)
    hidden, out, x = nn.Linear(3, 5), nn.Linear(5, 3), torch.randn(rows, 3)
    layers = affine(hidden), affine(out)
    expected = feed_forward(x, *layers)
    torch.testing.assert_close(expected, out(F.gelu(hidden(x))))
    with torch.inference_mode():
        torch.testing.assert_close(feed_forward(x, *layers), expected)
