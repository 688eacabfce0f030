"""AdamW by rows equals AdamW, leaves the other rows alone, and follows the weights with an average."""

from dataclasses import replace

import pytest
import torch

from spoor.encoder.model.config import MODEL_CONFIGS
from spoor.encoder.model.events import Events
from spoor.encoder.model.user_encoder import UserEncoder
from spoor.encoder.release.inference import new_model
from spoor.encoder.training.optimiser import BETAS, Optimiser


def make(parts, *, sparse: bool) -> tuple[UserEncoder, Optimiser]:
    model = new_model(replace(MODEL_CONFIGS["tiny"], dropout=0.0, input_dropout=0.0), parts.vocabulary)
    model.initialise(0)
    model.items.sparse = sparse
    return model, Optimiser(model, weight_decay=0.1, average_decay=0.9)


def learn(model: UserEncoder, optimiser: Optimiser, items: list[int]) -> None:
    optimiser.zero_grad()
    wanted = torch.tensor(items)
    zeros = torch.zeros_like(wanted)
    vectors = model(Events(wanted, zeros, zeros, torch.tensor([0, len(items)])))
    (vectors @ model.targets(wanted).T / model.temperature).logsumexp(1).mean().backward()
    optimiser.clip(1.0)
    optimiser.step(1e-2)


def test_rows_that_every_step_reads_move_as_under_dense_adamw(parts) -> None:
    dense, sparse = make(parts, sparse=False), make(parts, sparse=True)
    for _ in range(5):
        learn(*dense, items=[3, 4, 4, 9])
        learn(*sparse, items=[3, 4, 4, 9])
    read = dense[0].items.flat_rows[[3, 4, 9]].flatten()
    for one, other in ((dense[0], sparse[0]), (dense[1].average, sparse[1].average)):
        torch.testing.assert_close(other.items.weight[read], one.items.weight[read])
        torch.testing.assert_close(other.phi_in.hidden.weight, one.phi_in.hidden.weight)  # type: ignore[union-attr]


def test_rows_that_no_step_reads_keep_every_bit(parts) -> None:
    model, optimiser = make(parts, sparse=True)
    before = model.items.weight.detach().clone()
    learn(model, optimiser, items=[3, 4])
    read = torch.zeros(len(before), dtype=torch.bool)
    read[model.items.flat_rows[[3, 4]].flatten()] = True
    assert torch.equal(model.items.weight[~read], before[~read])
    assert torch.equal(optimiser.average.items.weight[~read], before[~read])
    assert not torch.equal(model.items.weight[read], before[read])


def test_the_average_follows_the_young_weights_closely(parts) -> None:
    model, optimiser = make(parts, sparse=False)
    expected = model.final_norm.weight.detach().clone()
    for step in range(1, 15):
        learn(model, optimiser, items=[3, 4, 5])
        kept = min(0.9, step / (step + 9))
        expected = kept * expected + (1 - kept) * model.final_norm.weight.detach()
    torch.testing.assert_close(optimiser.average.final_norm.weight.detach(), expected)


@pytest.mark.parametrize("sparse", [False, True])
def test_the_gradient_is_shortened_as_one_vector(parts, sparse: bool) -> None:
    model, optimiser = make(parts, sparse=sparse)
    (model.targets(torch.tensor([1, 2, 2])).sum() * 100 + model.final_norm.weight.sum()).backward()
    norm = optimiser.clip(0.5)
    assert norm > 0.5
    after = torch.stack([gradient.norm() for gradient in optimiser.gradients()]).norm()
    assert after.item() == pytest.approx(0.5, rel=1e-4)


@pytest.mark.parametrize("sparse", [False, True])
def test_saved_moments_continue_to_the_same_weights(parts, sparse: bool) -> None:
    model, optimiser = make(parts, sparse=sparse)
    other_model, other = make(parts, sparse=sparse)
    learn(model, optimiser, items=[3, 4])
    other_model.load_state_dict(model.state_dict())
    other.load({name: value.clone() for name, value in optimiser.tensors().items()})
    learn(model, optimiser, items=[4, 5])
    learn(other_model, other, items=[4, 5])
    for name, value in model.state_dict().items():
        assert torch.equal(value, other_model.state_dict()[name]), name


def test_a_restart_forgets_moments_and_steps(parts) -> None:
    model, optimiser = make(parts, sparse=True)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    learn(model, optimiser, items=[3, 4])
    optimiser.restart(weights)
    assert optimiser.steps == 0 and not optimiser.tensors()["table.first"].any()
    assert torch.equal(model.items.weight, weights["items.weight"])
    assert BETAS == (0.9, 0.98)
