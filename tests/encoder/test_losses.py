"""InfoNCE: equal to a plain loop, own positives left out, logQ weights unbiased."""

import math

import numpy as np
import pytest
import torch

from encoder.losses import Candidates, all_items, draw_candidates, next_item_loss, own_positives


def unit(rows: int, *, seed: int) -> torch.Tensor:
    vectors = torch.randn(rows, 6, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(vectors, dim=1)


def test_the_loss_equals_a_plain_loop() -> None:
    users, items = unit(4, seed=0), unit(5, seed=1)
    candidates = Candidates(torch.tensor([2, 3, 5, 8, 9]), torch.tensor([0.1, -0.4, 0.0, 1.0, 0.3]))
    targets = torch.tensor([3, 9, 3, 2])
    left_out = torch.tensor([[1, 1, 0, 0, 0], [0, 0, 0, 0, 1], [0, 1, 1, 1, 1], [0, 0, 0, 0, 0]], dtype=torch.bool)
    found = next_item_loss(users, items, candidates, targets, temperature=torch.tensor(0.2), left_out=left_out)

    places = {2: 0, 3: 1, 5: 2, 8: 3, 9: 4}
    losses = []
    for row, target in enumerate(targets.tolist()):
        own = math.exp(float(users[row] @ items[places[target]]) / 0.2)
        others = sum(
            math.exp(float(users[row] @ items[place]) / 0.2 + float(candidates.log_weights[place]))
            for item, place in places.items()
            if item != target and not left_out[row, place]
        )
        losses.append(-math.log(own / (own + others)))
    assert found.item() == pytest.approx(sum(losses) / 4, rel=1e-5)


def test_own_positives_are_those_of_the_segments_user() -> None:
    candidates = Candidates(torch.tensor([2, 3, 5, 8]), torch.zeros(4))
    positives = [np.array([1, 3, 9]), np.array([], np.int64), np.array([2, 8])]
    mask = own_positives(candidates, positives, np.array([2, 0, 1, 2]))
    assert mask.int().tolist() == [[1, 0, 0, 1], [0, 1, 0, 0], [0, 0, 0, 0], [1, 0, 0, 1]]


def test_a_target_counts_although_it_is_an_own_positive() -> None:
    candidates = Candidates(torch.tensor([1, 2]), torch.zeros(2))
    all_left_out = torch.ones(1, 2, dtype=torch.bool)
    loss = next_item_loss(
        unit(1, seed=0),
        unit(2, seed=1),
        candidates,
        torch.tensor([2]),
        temperature=torch.tensor(0.1),
        left_out=all_left_out,
    )
    assert loss.item() == 0.0


def test_full_softmax_has_every_item_once_with_weight_1() -> None:
    candidates = all_items(3)
    assert candidates.items.tolist() == [1, 2, 3]
    assert candidates.log_weights.tolist() == [0, 0, 0]


@pytest.mark.parametrize("uniform", [0, 64], ids=["in-batch", "mixed"])
def test_weights_make_the_sum_over_negatives_unbiased(uniform: int) -> None:
    """The mean over many draws of sum_j w_j f(j) is sum_j f(j), although popular items are drawn far more often."""
    shares = np.array([0, 0.7, 0.2, 0.06, 0.04])
    values = np.array([0, 1.0, 2.0, 5.0, 9.0])
    rng = np.random.default_rng(0)
    sums = []
    for _ in range(4000):
        targets = torch.from_numpy(rng.choice(5, 50, p=shares))
        drawn = draw_candidates(targets, target_shares=shares, uniform=uniform, rng=rng)
        sums.append(float((drawn.log_weights.double().exp() * values[drawn.items.numpy()]).sum()))
    assert np.mean(sums) == pytest.approx(values.sum(), rel=0.02)


def test_targets_are_always_among_the_candidates() -> None:
    shares = np.full(101, 0.01)
    targets = torch.tensor([100, 1, 50, 50])
    drawn = draw_candidates(targets, target_shares=shares, uniform=3, rng=np.random.default_rng(0))
    assert set(targets.tolist()) <= set(drawn.items.tolist())
    assert torch.equal(drawn.items, drawn.items.unique())
