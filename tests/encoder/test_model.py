"""The user encoder: shapes, norms, causality, positions, gradients, the temperature's floor."""

import math

import pytest
import torch
from torch import Tensor

from encoder.config import MODEL_CONFIGS
from encoder.inference import new_model
from encoder.model import UserEncoder


@pytest.fixture
def model(parts) -> UserEncoder:
    model = new_model(MODEL_CONFIGS["tiny"], parts.vocabulary)
    model.initialise(0)
    return model.eval()


def batch(lengths: list[int], *, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    events = sum(lengths)
    items, actions, surfaces = (torch.randint(0, known + 1, (events,), generator=generator) for known in (50, 3, 2))
    return items, actions, surfaces, torch.tensor([0, *lengths]).cumsum(0)


def test_every_event_gets_a_vector_of_norm_1(model: UserEncoder) -> None:
    vectors = model(*batch([5, 0, 1, 32]))
    assert vectors.shape == (38, 16)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(38))


def test_no_events_give_no_vectors(model: UserEncoder) -> None:
    assert model(*batch([])).shape == (0, 16)
    assert model(*batch([0, 0])).shape == (0, 16)


def test_last_is_the_last_row_of_each_user(model: UserEncoder) -> None:
    inputs = batch([5, 1, 32])
    torch.testing.assert_close(model.last(*inputs), model(*inputs)[[4, 5, 37]])


def test_a_vector_does_not_feel_later_events(model: UserEncoder) -> None:
    items, actions, surfaces, _ = batch([20])
    whole = model(items, actions, surfaces, torch.tensor([0, 20]))
    start = model(items[:12], actions[:12], surfaces[:12], torch.tensor([0, 12]))
    torch.testing.assert_close(whole[:12], start, atol=1e-5, rtol=0)


def test_order_matters(model: UserEncoder) -> None:
    items, actions, surfaces, offsets = batch([20])
    swapped = torch.arange(20)
    swapped[[3, 4]] = swapped[[4, 3]]
    moved = model.last(items[swapped], actions[swapped], surfaces[swapped], offsets)
    assert not torch.allclose(model.last(items, actions, surfaces, offsets), moved, atol=1e-4)


@pytest.mark.parametrize("column", [0, 1, 2], ids=["item", "action", "surface"])
def test_each_field_of_an_event_matters(model: UserEncoder, column: int) -> None:
    inputs = batch([9])
    changed = list(inputs)
    changed[column] = inputs[column].clone()
    changed[column][4] = (changed[column][4] + 1) % 3
    assert not torch.allclose(model.last(*inputs), model.last(*changed), atol=1e-4)


def test_unknown_items_share_one_vector_of_norm_1(model: UserEncoder) -> None:
    vectors = model.targets(torch.tensor([0, 0, 7]))
    assert torch.equal(vectors[0], vectors[1])
    assert not torch.allclose(vectors[0], vectors[2])
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(3))


def test_every_parameter_learns(model: UserEncoder) -> None:
    inputs = batch([9, 1, 17])
    scores = model(*inputs) @ model.targets(torch.arange(51)).T / model.temperature
    scores.logsumexp(1).sum().backward()
    silent = [name for name, value in model.named_parameters() if value.grad is None or not value.grad.any()]
    assert silent == []


def test_temperature_stays_above_its_floor(model: UserEncoder) -> None:
    assert model.temperature.item() == pytest.approx(0.05)
    with torch.no_grad():
        model.log_temperature.fill_(math.log(1e-6))
    assert model.temperature.item() == pytest.approx(0.01)


def test_the_seed_alone_decides_the_parameters(model: UserEncoder, parts) -> None:
    torch.manual_seed(99)
    again = new_model(MODEL_CONFIGS["tiny"], parts.vocabulary)
    again.initialise(0)
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
