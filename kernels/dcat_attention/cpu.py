"""Crossing attention for the CPU: candidates of one user form tiles, tiles of similar size share one padded product.

A tile is at most `_TILE_CANDIDATES` candidates of one user. Its keys and values are gathered once for all its
candidates, or not at all if the tiles of a product are contiguous. Forward is PyTorch's fused attention over the
context, which stores no scores; backward recomputes the softmax, product by product.

Legend: C candidates, N context rows, H heads, D floats per head; in a bucket of B tiles: M candidates, L context rows,
T = L + 1 scores of a candidate.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from spoor.kernels.buckets import buckets
from spoor.kernels.offsets import Indexes

_TILE_CANDIDATES = 512
_BUCKET_SCORES = 1 << 20  # scores per head and product: bounds memory, does not change the result


@dataclass(frozen=True, eq=False)
class _Rows:
    """R rows of each of B tiles. `where` int64 [B * R], padded with each tile's last row; a slice if the rows are
    contiguous and unpadded. `real` bool [B, R]: False for padding; None: no padding."""

    where: slice | Tensor
    shape: tuple[int, int]
    real: Tensor | None

    def of(self, x: Tensor) -> Tensor:
        """[*, H, D] to [B, H, R, D]."""
        found = x[self.where] if isinstance(self.where, slice) else x.index_select(0, self.where)
        return found.view(*self.shape, *x.shape[1:]).transpose(1, 2)

    def real_only(self, x_BHRD: Tensor) -> Tensor:
        """[B, H, R, D] to [real rows, H, D]."""
        x_BRHD = x_BHRD.transpose(1, 2)
        return x_BRHD.flatten(0, 1) if self.real is None else x_BRHD[self.real]

    @property
    def real_where(self) -> slice | Tensor:
        if self.real is None or isinstance(self.where, slice):
            return self.where
        return self.where[self.real.flatten()]


@dataclass(frozen=True, eq=False)
class _Bucket:
    candidates: _Rows
    context: _Rows


def attend_in_tiles(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_context: Tensor,
    v_context: Tensor,
    *,
    starts: Indexes,
    ends: Indexes,
    user: Indexes,
) -> Tensor:
    """Shapes as in `dcat_attention`, which has checked them. `starts`, `ends` [U]: the context rows that a user's
    candidates see; `user` [C]: the user of each candidate."""
    if len(user) > 0 and (user == user[0]).all():
        found = _of_one_user(int(starts[user[0]]), int(ends[user[0]]), len(user))
    else:
        found = _buckets(starts, ends, user, q.device)
    if not torch.is_grad_enabled():
        return _crossed(q, k, v, k_context, v_context, found)
    result: Tensor = _Crossing.apply(q, k, v, k_context, v_context, list(found))  # pyright: ignore[reportAssignmentType]
    return result


def _crossed(q: Tensor, k: Tensor, v: Tensor, k_context: Tensor, v_context: Tensor, found: Iterable[_Bucket]) -> Tensor:
    """Attention over the context alone, interpolated towards the candidate's own value by its softmax weight
    s = exp(own) / (exp(own) + sum_j exp(score_j)) = sigmoid(own - log sum_j exp(score_j))."""
    narrow = q.dtype
    q, k, v, k_context, v_context = _wide(q, k, v, k_context, v_context)
    out, own_CH1 = v.clone(), (torch.linalg.vecdot(q, k) / math.sqrt(q.shape[2])).unsqueeze(2)
    for bucket in found:
        candidates, context = bucket.candidates, bucket.context
        crossed, sums = _over_context(candidates.of(q), context.of(k_context), context.of(v_context), real=context.real)
        crossed.lerp_(candidates.of(v), (candidates.of(own_CH1) - sums).sigmoid_())
        out[candidates.real_where] = candidates.real_only(crossed)
    return out.to(narrow)


def _over_context(q_BHMD: Tensor, k_BHLD: Tensor, v_BHLD: Tensor, *, real: Tensor | None) -> tuple[Tensor, Tensor]:
    """Attention [B, H, M, D] over the `real` [B, L] rows, and log sum_j exp(score_j) [B, H, M, 1]."""
    mask = None
    if real is not None:
        mask = q_BHMD.new_zeros(real.shape).masked_fill_(~real, -math.inf)[:, None, None, :]
    if q_BHMD.device.type != "cpu":
        return _over_context_elsewhere(q_BHMD, k_BHLD, v_BHLD, mask)
    # scaled_dot_product_attention calls this on a CPU, but does not return the sums.
    attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    out, sums = attend(q_BHMD, k_BHLD, v_BHLD, attn_mask=mask)
    return out, sums.unsqueeze(-1)


def _over_context_elsewhere(
    q_BHMD: Tensor, k_BHLD: Tensor, v_BHLD: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    scores = (q_BHMD * (1 / math.sqrt(q_BHMD.shape[3]))) @ k_BHLD.transpose(2, 3)
    scores = scores if mask is None else scores + mask
    sums = scores.logsumexp(-1, keepdim=True)
    return (scores - sums).exp_() @ v_BHLD, sums


class _Crossing(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, k_context: Tensor, v_context: Tensor, found: list[_Bucket]
    ) -> Tensor:
        ctx.save_for_backward(q, k, v, k_context, v_context)
        ctx.found = found
        return _crossed(q, k, v, k_context, v_context, found)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        narrow = ctx.saved_tensors[0].dtype
        q, k, v, k_context, v_context, d_out = _wide(*ctx.saved_tensors, grad_outputs[0])
        scale = 1 / math.sqrt(q.shape[2])
        scaled = q * scale
        # Without context the output is the candidate's own value.
        d_q, d_k, d_v = torch.zeros_like(q), torch.zeros_like(k), d_out.clone()
        d_keys, d_values = torch.zeros_like(k_context), torch.zeros_like(v_context)
        for bucket in ctx.found:
            candidates, context = bucket.candidates, bucket.context
            weights_BHMT, d_out_BHMD = _weights(bucket, scaled, k, k_context), candidates.of(d_out)
            if candidates.real is not None:  # the gradient of a repeated row counts once
                d_out_BHMD = d_out_BHMD * candidates.real[:, None, :, None]
            d_own = (d_out_BHMD * candidates.of(v)).sum(-1, keepdim=True)
            d_weights = torch.cat([d_out_BHMD @ context.of(v_context).transpose(2, 3), d_own], dim=-1)
            inner = torch.linalg.vecdot(weights_BHMT, d_weights).unsqueeze(-1)
            d_scores = d_weights.sub_(inner).mul_(weights_BHMT)
            d_own = d_scores[..., -1:]
            rows = candidates.real_where
            d_q_BHMD = (d_scores[..., :-1] @ context.of(k_context)).addcmul_(d_own, candidates.of(k)).mul_(scale)
            d_q[rows] = candidates.real_only(d_q_BHMD)
            d_k[rows] = candidates.real_only(d_own * candidates.of(scaled))
            d_v[rows] = candidates.real_only(weights_BHMT[..., -1:] * d_out_BHMD)
            # A user's candidates may fill several tiles, even in one bucket: their gradients add up.
            d_k_context = context.real_only(d_scores[..., :-1].transpose(2, 3) @ candidates.of(scaled))
            d_v_context = context.real_only(weights_BHMT[..., :-1].transpose(2, 3) @ d_out_BHMD)
            for target, grad in ((d_keys, d_k_context), (d_values, d_v_context)):
                where = context.real_where
                target[where].add_(grad) if isinstance(where, slice) else target.index_add_(0, where, grad)
        return (*(x.to(narrow) for x in (d_q, d_k, d_v, d_keys, d_values)), None)


def _wide(*several: Tensor) -> list[Tensor]:
    """The tensors in float32 or wider."""
    return [x.to(torch.promote_types(x.dtype, torch.float32)) for x in several]


def _weights(bucket: _Bucket, scaled: Tensor, k: Tensor, k_context: Tensor) -> Tensor:
    """The softmax [B, H, M, L + 1]: weights of the context rows, 0 for padding, and last of the candidate itself.
    `scaled`: q / sqrt(D)."""
    q_BHMD, context = bucket.candidates.of(scaled), bucket.context
    scores_BHML = q_BHMD @ context.of(k_context).transpose(2, 3)
    if context.real is not None:
        scores_BHML.masked_fill_(~context.real[:, None, None, :], -math.inf)
    own = (q_BHMD * bucket.candidates.of(k)).sum(-1, keepdim=True)
    return torch.cat([scores_BHML, own], dim=-1).softmax(dim=-1)


def _of_one_user(start: int, end: int, candidates: int) -> Iterator[_Bucket]:
    """Tiles of one user, as in a ranking request: without sorting or gathering."""
    for first in range(0, candidates if end > start else 0, _TILE_CANDIDATES):
        last = min(first + _TILE_CANDIDATES, candidates)
        tile = _Rows(slice(first, last), (1, last - first), None)
        yield _Bucket(tile, _Rows(slice(start, end), (1, end - start), None))


def _buckets(starts: Indexes, ends: Indexes, candidate_user: Indexes, device: torch.device) -> Iterator[_Bucket]:
    """Buckets of tiles with similar numbers of context rows and of candidates, with bounded scores per product."""
    order = np.argsort(candidate_user, kind="stable")
    users, first, counts = np.unique(candidate_user[order], return_index=True, return_counts=True)
    parts = -(-counts // _TILE_CANDIDATES)
    tile_users = np.repeat(users, parts)
    part = np.arange(len(tile_users)) - np.repeat(np.cumsum(parts) - parts, parts)
    count, in_parts = np.repeat(counts, parts), np.repeat(parts, parts)
    cuts = part * count // in_parts, (part + 1) * count // in_parts  # sizes of one user's tiles differ by at most 1
    tile_first, tile_counts = np.repeat(first, parts) + cuts[0], cuts[1] - cuts[0]
    lengths = (ends - starts)[tile_users]
    for by_length in buckets(lengths):
        for inner in buckets(tile_counts[by_length]):
            tiles = by_length[inner]
            scores = int(lengths[tiles].max()) * int(tile_counts[tiles].max())
            for some in np.array_split(tiles, -(-len(tiles) * scores // max(_BUCKET_SCORES, scores))):
                places, is_candidate = _padded(tile_first[some], tile_counts[some])
                context, is_context = _padded(starts[tile_users[some]], lengths[some])
                yield _Bucket(_rows(order[places], is_candidate, device), _rows(context, is_context, device))


def _padded(starts: Indexes, lengths: Indexes) -> tuple[Indexes, npt.NDArray[np.bool_]]:
    """Rows from `starts` on, flattened [B * longest], and whether they are real (not padding), [B, longest]."""
    steps = np.arange(lengths.max())
    return (starts[:, None] + np.minimum(steps, lengths[:, None] - 1)).ravel(), steps < lengths[:, None]


def _rows(where: Indexes, real: npt.NDArray[np.bool_], device: torch.device) -> _Rows:
    shape = (real.shape[0], real.shape[1])
    as_slice = _slice_of(where)
    if as_slice is not None:
        return _Rows(as_slice, shape, None)
    padding = None if real.all() else torch.from_numpy(real).to(device)
    return _Rows(torch.from_numpy(where).to(device), shape, padding)


def _slice_of(rows: Indexes) -> slice | None:
    """The slice of the same rows if they are contiguous, for a view instead of a copy; else None."""
    if not len(rows) or rows[-1] - rows[0] != len(rows) - 1 or (np.diff(rows) != 1).any():
        return None
    return slice(int(rows[0]), int(rows[-1]) + 1)
