"""InfoNCE over the next item (PinFM, L_ntl), with negatives from the batch, from all items, or both.

    loss = -log( e^{s(t)} / ( e^{s(t)} + sum_{j != t} w_j e^{s(j)} ) ),     s = user vector . item vector / temperature

Candidates are the distinct items of the batch's targets and of the uniform draw. w_j = (times drawn) / (times expected)
is the logQ correction: without it popular items, which are drawn often, are pushed away for being popular. The weight
makes the sum an unbiased estimate of the sum over all items, which is what `full` computes.

Legend: P positions that have a target, M candidates, S segments, E = config.dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from encoder.vocabulary import Indexes


@dataclass(frozen=True, eq=False)
class Candidates:
    """`items` int64 [M] sorted vocabulary indexes, `log_weights` float32 [M]."""

    items: Tensor
    log_weights: Tensor


def all_items(vocabulary_size: int) -> Candidates:
    """Every known item with weight 1: the full softmax."""
    return Candidates(torch.arange(1, vocabulary_size + 1), torch.zeros(vocabulary_size))


def draw_candidates(
    targets: Tensor, *, target_shares: npt.NDArray[np.float64], uniform: int, rng: np.random.Generator
) -> Candidates:
    """In-batch negatives and `uniform` more from all items.

    `targets` int64 [P] (vocabulary indexes, at least 1); `target_shares` float64 [V + 1]: the share of each item among
    all targets of the training data, by which its number in a batch is expected.
    """
    vocabulary_size = len(target_shares) - 1
    drawn = rng.integers(1, vocabulary_size + 1, uniform)
    items, times = np.unique(np.concatenate([targets.numpy(), drawn]), return_counts=True)
    expected = len(targets) * target_shares[items] + uniform / vocabulary_size
    return Candidates(torch.from_numpy(items), torch.from_numpy(np.log(times / expected)).float())


def own_positives(candidates: Candidates, positives: Sequence[Indexes], users: Indexes) -> Tensor:
    """bool [S, M]: which candidates are positive items of the segment's user, and so no negatives of theirs."""
    items = candidates.items.numpy()
    mask = np.zeros((len(users), len(items)), bool)
    for row, user in enumerate(users):
        place = np.searchsorted(items, positives[user])
        inside = place < len(items)
        place = place[inside]
        mask[row, place[items[place] == positives[user][inside]]] = True
    return torch.from_numpy(mask)


def next_item_loss(
    user_vectors: Tensor,
    candidate_vectors: Tensor,
    candidates: Candidates,
    targets: Tensor,
    *,
    temperature: Tensor,
    left_out: Tensor | None = None,
) -> Tensor:
    """The mean loss over positions, a scalar.

    Shapes: user_vectors [P, E], candidate_vectors [M, E], targets int64 [P] (each among the candidates), left_out
    bool [P, M] (candidates that are no negatives of a position; its target always counts).
    """
    scores_PM = user_vectors @ candidate_vectors.T / temperature
    place_P1 = torch.searchsorted(candidates.items, targets).unsqueeze(1)
    # The target is certain to be among the candidates, whatever was drawn: its weight is 1.
    weighted_PM = (scores_PM + candidates.log_weights).scatter(1, place_P1, scores_PM.gather(1, place_P1))
    if left_out is not None:
        weighted_PM = weighted_PM.masked_fill(left_out.scatter(1, place_P1, False), float("-inf"))
    return F.cross_entropy(weighted_PM, place_P1.squeeze(1))
