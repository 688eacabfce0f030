"""InfoNCE between user vectors and items (PinFM), over all items or a sample of them.

    loss = sum over pairs of weight * -log( e^{s(t)} / ( e^{s(t)} + sum_{j != t} w_j e^{s(j)} ) )
    s = user vector . item vector / temperature

The sampled candidates are the distinct items of the batch's targets and of a uniform draw. w_j = (times drawn) /
(times expected) is the logQ correction: without it, popular items are drawn more often and so pushed away more. The
weight makes the sum an unbiased estimate of the sum over all items, which `full_softmax_loss` computes.

Legend: R user vectors, P pairs, M candidates, V known items, S segments, E = config.dimension.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from spoor.encoder.model.vocabulary import Indexes

_SAFE_EXPONENT = 60.0  # e^60 times the largest catalogue, and e^-60, are normal float32 numbers
_ROWS_AT_ONCE = 512  # of the full softmax: with a few thousand items, V x 512 scores fit the CPU's last-level cache


@dataclass(frozen=True, eq=False)
class Drawn:
    """`items` int64 [M] sorted vocabulary indexes, `log_weights` float32 [M]."""

    items: Tensor
    log_weights: Tensor

    def to(self, device: torch.device) -> Drawn:
        return Drawn(self.items.to(device), self.log_weights.to(device))


@dataclass(frozen=True, eq=False)
class Targets:
    """Targets of R user vectors. `rows` int64 [P], not decreasing: the vector of each pair; `items` int64 [P]:
    vocabulary indexes; `weights` float [P]."""

    rows: Tensor
    items: Tensor
    weights: Tensor


def draw_items(
    answers: Indexes, *, answer_shares: npt.NDArray[np.float64], uniform: int, rng: np.random.Generator
) -> Drawn:
    """In-batch negatives and `uniform` more from all items.

    `answers` int64[n]: the target items of the batch, once per event; `answer_shares` float64[V + 1]: the share of
    each item among all targets of the training data, which gives its expected count in a batch.
    """
    vocabulary_size = len(answer_shares) - 1
    drawn = rng.integers(1, vocabulary_size + 1, uniform)
    items, times = np.unique(np.concatenate([answers, drawn]), return_counts=True)
    expected = len(answers) * answer_shares[items] + uniform / vocabulary_size
    return Drawn(torch.from_numpy(items), torch.from_numpy(np.log(times / expected)).float())


def own_positives(drawn: Drawn, own_items: Indexes, own_offsets: Indexes) -> Tensor:
    """bool [S, M]: whether a drawn item is a positive item of the segment's user, and so not a negative. `own_items`
    int64[K]: the positive items, one segment after the other; `own_offsets` int64[S + 1]."""
    items = drawn.items.numpy()
    mask = np.zeros((len(own_offsets) - 1, len(items)), bool)
    if len(items):
        segments = np.repeat(np.arange(len(mask)), np.diff(own_offsets))
        place = np.minimum(np.searchsorted(items, own_items), len(items) - 1)
        found = items[place] == own_items
        mask[segments[found], place[found]] = True
    return torch.from_numpy(mask)


def sampled_softmax_loss(
    user_vectors: Tensor,
    item_vectors: Tensor,
    drawn: Drawn,
    targets: Targets,
    *,
    temperature: Tensor,
    left_out: Tensor | None = None,
) -> Tensor:
    """The weighted sum over pairs, a scalar.

    Shapes: user_vectors [R, E]; item_vectors [M, E] of the drawn items, which include every target; left_out
    bool [P, M]: drawn items that are not negatives of a pair (its target always counts).
    """
    scores_PM = (user_vectors[targets.rows] / temperature) @ item_vectors.T
    place_P1 = torch.searchsorted(drawn.items, targets.items).unsqueeze(1)
    # A pair's target is always among the candidates, so its weight is 1.
    weighted_PM = (scores_PM + drawn.log_weights).scatter(1, place_P1, scores_PM.gather(1, place_P1))
    if left_out is not None:
        weighted_PM = weighted_PM.masked_fill(left_out.scatter(1, place_P1, False), float("-inf"))
    return (F.cross_entropy(weighted_PM, place_P1.squeeze(1), reduction="none") * targets.weights).sum()


def full_softmax_loss(user_vectors: Tensor, item_vectors: Tensor, targets: Targets, *, temperature: Tensor) -> Tensor:
    """The weighted sum over pairs, with every item as a candidate; it holds _ROWS_AT_ONCE rows of scores in memory.

    Shapes: user_vectors [R, E]; item_vectors [V, E], of the vocabulary indexes 1 to V. The forward pass also computes
    the gradient.
    """
    places = targets.items - 1
    return _FullSoftmax.apply(user_vectors / temperature, item_vectors, targets.rows, places, targets.weights)  # type: ignore[no-any-return]


class _FullSoftmax(torch.autograd.Function):
    """Forward also computes the gradients: storing all scores costs memory, computing them again another product.

    The scores are the largest tensor, so the code passes over them as rarely as possible. It takes their maximum only
    if their exponentials could overflow or underflow float32, and divides the products by the total, not the scores.
    """

    @staticmethod
    def forward(ctx, x_RE: Tensor, w_VE: Tensor, rows: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        asked, known = x_RE.shape[0], w_VE.shape[0]
        row_weights = x_RE.new_zeros(asked).index_add(0, rows, weights)
        grad_x = torch.empty_like(x_RE)
        grad_w = torch.empty_like(w_VE) if asked else torch.zeros_like(w_VE)
        buffer = x_RE.new_empty(min(_ROWS_AT_ONCE, asked), known)
        loss = -(weights * (x_RE[rows] * w_VE[targets]).sum(1)).sum()
        small = _longest(x_RE) * _longest(w_VE) < _SAFE_EXPONENT
        for number, start in enumerate(range(0, asked, _ROWS_AT_ONCE)):
            part = slice(start, start + _ROWS_AT_ONCE)
            x, of_row = x_RE[part], row_weights[part, None]
            scores = torch.mm(x, w_VE.T, out=buffer[: len(x)])
            highest = x.new_zeros(len(x), 1) if small else scores.amax(1, keepdim=True)
            total = (scores if small else scores.sub_(highest)).exp_().sum(1, keepdim=True)
            loss += (of_row * (total.log() + highest)).sum()
            share = of_row / total
            torch.mm(scores, w_VE, out=grad_x[part]).mul_(share)
            grad_w.addmm_(scores.T, x * share, beta=min(number, 1))  # beta 0 at first: grad_w is not initialised
        grad_x.index_add_(0, rows, w_VE[targets] * -weights[:, None])
        grad_w.index_add_(0, targets, x_RE[rows] * -weights[:, None])
        ctx.save_for_backward(grad_x, grad_w)
        return loss

    @staticmethod
    def backward(ctx, *grads: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        grad_x, grad_w = ctx.saved_tensors
        return grad_x * grads[0], grad_w * grads[0], None, None, None


def _longest(x_ME: Tensor) -> float:
    """The greatest L2 norm of a row; 0 without rows."""
    return float(torch.linalg.vector_norm(x_ME, dim=1).max()) if len(x_ME) else 0.0
