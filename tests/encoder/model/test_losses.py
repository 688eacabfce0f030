"""InfoNCE: equal to plain loops in values and gradients, own positives left out, logQ weights unbiased."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from spoor.encoder.model.losses import (
    Drawn,
    Targets,
    draw_items,
    full_softmax_loss,
    own_positives,
    sampled_softmax_loss,
)


def unit(rows: int, *, seed: int) -> torch.Tensor:
    vectors = torch.randn(rows, 6, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(vectors, dim=1)


def test_the_sampled_loss_equals_a_plain_loop() -> None:
    users, items, weights = unit(4, seed=0), unit(5, seed=1), torch.tensor([0.5, 1.0, 0.0, 2.0])
    candidates = Drawn(torch.tensor([2, 3, 5, 8, 9]), torch.tensor([0.1, -0.4, 0.0, 1.0, 0.3]))
    targets = torch.tensor([3, 9, 3, 2])
    left_out = torch.tensor([[1, 1, 0, 0, 0], [0, 0, 0, 0, 1], [0, 1, 1, 1, 1], [0, 0, 0, 0, 0]], dtype=torch.bool)
    found = sampled_softmax_loss(
        users,
        items,
        candidates,
        Targets(torch.arange(4), targets, weights),
        temperature=torch.tensor(0.2),
        left_out=left_out,
    )

    places = {2: 0, 3: 1, 5: 2, 8: 3, 9: 4}
    loss = 0.0
    for row, target in enumerate(targets.tolist()):
        own = math.exp(float(users[row] @ items[places[target]]) / 0.2)
        others = sum(
            math.exp(float(users[row] @ items[place]) / 0.2 + float(candidates.log_weights[place]))
            for item, place in places.items()
            if item != target and not left_out[row, place]
        )
        loss -= float(weights[row]) * math.log(own / (own + others))
    assert found.item() == pytest.approx(loss, rel=1e-5)


def plain_full_softmax(users, items, targets: Targets, temperature) -> torch.Tensor:
    losses = F.cross_entropy(users[targets.rows] @ items.T / temperature, targets.items - 1, reduction="none")
    return (losses * targets.weights).sum()


@pytest.mark.parametrize("temperature", [0.2, 0.0125], ids=["small scores", "scores beyond the safe exponent"])
@pytest.mark.parametrize("asked", [0, 1, 511, 512, 1030])
def test_the_full_softmax_equals_cross_entropy_in_value_and_gradients(asked: int, temperature: float) -> None:
    generator = torch.Generator().manual_seed(0)
    pairs = asked * 2
    rows = torch.randint(0, max(asked, 1), (pairs,), generator=generator).sort().values  # some rows have no pair
    answers, weights = torch.randint(1, 8, (pairs,), generator=generator), torch.rand(pairs, generator=generator)
    targets = Targets(rows, answers, weights)
    found, expected = [], []
    for loss_of, results in ((full_softmax_loss, found), (plain_full_softmax, expected)):
        users, items = unit(asked, seed=0).requires_grad_(), unit(7, seed=1).requires_grad_()
        divisor = torch.tensor(temperature, requires_grad=True)
        loss = loss_of(users, items, targets, temperature=divisor)
        loss.backward()
        results.extend([loss, users.grad, items.grad, divisor.grad])
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-4, atol=2e-5 / temperature)


def test_the_full_softmax_survives_scores_beyond_the_exponential() -> None:
    users, items = unit(3, seed=0) * 1e4, unit(5, seed=1)
    rows, targets = torch.arange(3), torch.tensor([0, 4, 2])
    loss = full_softmax_loss(users, items, Targets(rows, targets + 1, torch.ones(3)), temperature=torch.tensor(1.0))
    torch.testing.assert_close(loss, F.cross_entropy(users @ items.T, targets, reduction="sum"))


def test_own_positives_are_those_of_each_segments_user() -> None:
    candidates = Drawn(torch.tensor([2, 3, 5, 8]), torch.zeros(4))
    mask = own_positives(candidates, np.array([2, 8, 1, 3, 9]), np.array([0, 2, 5, 5]))
    assert mask.int().tolist() == [[1, 0, 0, 1], [0, 1, 0, 0], [0, 0, 0, 0]]


def test_a_target_counts_although_it_is_an_own_positive() -> None:
    candidates = Drawn(torch.tensor([1, 2]), torch.zeros(2))
    loss = sampled_softmax_loss(
        unit(1, seed=0),
        unit(2, seed=1),
        candidates,
        Targets(torch.tensor([0]), torch.tensor([2]), torch.ones(1)),
        temperature=torch.tensor(0.1),
        left_out=torch.ones(1, 2, dtype=torch.bool),
    )
    assert loss.item() == 0.0


@pytest.mark.parametrize("uniform", [0, 64], ids=["in-batch", "mixed"])
def test_weights_make_the_sum_over_negatives_unbiased(uniform: int) -> None:
    """The mean over many draws of sum_j w_j f(j) is sum_j f(j), although popular items are drawn far more often."""
    shares = np.array([0, 0.7, 0.2, 0.06, 0.04])
    values = np.array([0, 1.0, 2.0, 5.0, 9.0])
    rng = np.random.default_rng(0)
    sums = []
    for _ in range(4000):
        drawn = draw_items(rng.choice(5, 50, p=shares), answer_shares=shares, uniform=uniform, rng=rng)
        sums.append(float((drawn.log_weights.double().exp() * values[drawn.items.numpy()]).sum()))
    assert np.mean(sums) == pytest.approx(values.sum(), rel=0.02)


def test_targets_are_always_among_the_candidates() -> None:
    shares = np.full(101, 0.01)
    drawn = draw_items(np.array([100, 1, 50, 50]), answer_shares=shares, uniform=3, rng=np.random.default_rng(0))
    assert {1, 50, 100} <= set(drawn.items.tolist())
    assert torch.equal(drawn.items, drawn.items.unique())
