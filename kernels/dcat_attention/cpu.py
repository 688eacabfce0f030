"""Crossing attention for the CPU: candidates of one user form tiles, tiles of similar size share one padded product.

A tile is at most `_TILE_CANDIDATES` candidates of one user. Its keys and values are gathered once, whatever the number
of its candidates. Forward keeps the logarithm of each softmax's sum, so that backward makes the weights again tile by
tile instead of storing them.

Legend: C candidates, N context rows, H heads, D floats per head; in a bucket of B tiles: M candidates, L context rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from kernels.buckets import buckets

_TILE_CANDIDATES = 512
_BUCKET_SCORES = 1 << 20  # of one head in one product: bounds memory, does not change the result

Indexes = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class _Bucket:
    """`candidates` int64 [B * M] and `context` int64 [B * L]: rows to gather, padding repeats a tile's last row;
    `real_BM`, `real_BL` bool: which of them are no padding."""

    candidates: Tensor
    context: Tensor
    real_BM: Tensor
    real_BL: Tensor


def attend_in_tiles(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_context: Tensor,
    v_context: Tensor,
    context_offsets: Tensor,
    candidate_user: Tensor,
    *,
    hidden: Tensor | None = None,
) -> Tensor:
    """Same signature and shapes as `dcat_attention` (inputs checked by the caller)."""
    ends = context_offsets[1:]
    starts = context_offsets[:-1] if hidden is None else torch.minimum(context_offsets[:-1] + hidden, ends)
    found = list(_buckets(starts.cpu().numpy(), ends.cpu().numpy(), candidate_user.cpu().numpy(), q.device))
    result: Tensor = _Crossing.apply(q, k, v, k_context, v_context, found)  # pyright: ignore[reportAssignmentType]
    return result


class _Crossing(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, k_context: Tensor, v_context: Tensor, found: list[_Bucket]
    ) -> Tensor:
        wide = torch.promote_types(q.dtype, torch.float32)
        scale = 1 / math.sqrt(q.shape[2])
        own_CH = (q.to(wide) * k.to(wide)).sum(-1) * scale
        # A candidate without context attends to itself alone: the sum of its softmax is its own term.
        log_sum_CH, out = own_CH.clone(), v.to(wide, copy=True)
        for bucket in found:
            q_BHMD = _gather(q, bucket.candidates, bucket.real_BM).to(wide)
            k_BHLD, v_BHLD = (_gather(x, bucket.context, bucket.real_BL).to(wide) for x in (k_context, v_context))
            scores_BHML = (q_BHMD @ k_BHLD.transpose(2, 3)).mul_(scale)
            scores_BHML.masked_fill_(~bucket.real_BL[:, None, None, :], -math.inf)
            rows = bucket.candidates[bucket.real_BM.flatten()]
            own_BHM1 = _gather(own_CH.unsqueeze(2), bucket.candidates, bucket.real_BM)
            log_sum = torch.logaddexp(scores_BHML.logsumexp(-1, keepdim=True), own_BHM1)
            crossed = scores_BHML.sub_(log_sum).exp_() @ v_BHLD
            crossed += (own_BHM1 - log_sum).exp() * _gather(v, bucket.candidates, bucket.real_BM).to(wide)
            out[rows] = _real_rows(crossed, bucket.real_BM)
            log_sum_CH[rows] = _real_rows(log_sum, bucket.real_BM).squeeze(2)
        ctx.save_for_backward(q, k, v, k_context, v_context, out, log_sum_CH)
        ctx.found = found
        return out.to(q.dtype)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, k_context, v_context, out, log_sum_CH = ctx.saved_tensors
        wide, scale = out.dtype, 1 / math.sqrt(q.shape[2])
        d_out = grad_outputs[0].to(wide)
        inner_CH = (d_out * out).sum(-1)
        own_CH = ((q.to(wide) * k.to(wide)).sum(-1) * scale - log_sum_CH).exp()
        d_own = (own_CH * ((d_out * v.to(wide)).sum(-1) - inner_CH) * scale).unsqueeze(2)
        d_q, d_k, d_v = d_own * k, d_own * q, own_CH.unsqueeze(2) * d_out
        d_keys, d_values = (torch.zeros(x.shape, dtype=wide, device=x.device) for x in (k_context, v_context))
        for bucket in ctx.found:
            q_BHMD = _gather(q, bucket.candidates, bucket.real_BM).to(wide)
            k_BHLD, v_BHLD = (_gather(x, bucket.context, bucket.real_BL).to(wide) for x in (k_context, v_context))
            d_out_BHMD = _gather(d_out, bucket.candidates, bucket.real_BM)
            d_out_BHMD *= bucket.real_BM[:, None, :, None]  # padding repeats a row whose gradient counts once
            inner, log_sum = (
                _gather(x.unsqueeze(2), bucket.candidates, bucket.real_BM) for x in (inner_CH, log_sum_CH)
            )
            inner = inner * bucket.real_BM[:, None, :, None]
            weights_BHML = (q_BHMD @ k_BHLD.transpose(2, 3)).mul_(scale)
            weights_BHML.masked_fill_(~bucket.real_BL[:, None, None, :], -math.inf).sub_(log_sum).exp_()
            d_scores = weights_BHML * ((d_out_BHMD @ v_BHLD.transpose(2, 3)) - inner) * scale
            rows = bucket.candidates[bucket.real_BM.flatten()]
            d_q[rows] += _real_rows(d_scores @ k_BHLD, bucket.real_BM)
            context = bucket.context[bucket.real_BL.flatten()]
            # A user's candidates may fill several tiles, of one bucket too: their gradients add up.
            d_keys.index_add_(0, context, _real_rows(d_scores.transpose(2, 3) @ q_BHMD, bucket.real_BL))
            d_values.index_add_(0, context, _real_rows(weights_BHML.transpose(2, 3) @ d_out_BHMD, bucket.real_BL))
        return (*(x.to(q.dtype) for x in (d_q, d_k, d_v, d_keys, d_values)), None)


def _buckets(starts: Indexes, ends: Indexes, candidate_user: Indexes, device: torch.device) -> Iterator[_Bucket]:
    """Tiles of similar numbers of context rows, and among those of candidates, bounded in scores per product."""
    order = np.argsort(candidate_user, kind="stable")
    users, first, counts = np.unique(candidate_user[order], return_index=True, return_counts=True)
    parts = -(-counts // _TILE_CANDIDATES)
    tile_users = np.repeat(users, parts)
    part = np.arange(len(tile_users)) - np.repeat(np.cumsum(parts) - parts, parts)
    tile_first = np.repeat(first, parts) + part * _TILE_CANDIDATES
    tile_counts = np.minimum(np.repeat(counts, parts) - part * _TILE_CANDIDATES, _TILE_CANDIDATES)
    lengths = (ends - starts)[tile_users]
    for by_length in buckets(lengths):
        for inner in buckets(tile_counts[by_length]):
            tiles = by_length[inner]
            scores = int(lengths[tiles].max()) * int(tile_counts[tiles].max())
            for some in np.array_split(tiles, -(-len(tiles) * scores // max(_BUCKET_SCORES, scores))):
                context, real_BL = _padded(starts[tile_users[some]], lengths[some])
                places, real_BM = _padded(tile_first[some], tile_counts[some])
                arrays = (order[places], context, real_BM, real_BL)
                yield _Bucket(*(torch.from_numpy(array).to(device) for array in arrays))


def _padded(starts: Indexes, lengths: Indexes) -> tuple[Indexes, npt.NDArray[np.bool_]]:
    """Rows from `starts` on, flattened [B * longest], and which of them are real, [B, longest]."""
    steps = np.arange(lengths.max())
    return (starts[:, None] + np.minimum(steps, lengths[:, None] - 1)).ravel(), steps < lengths[:, None]


def _gather(x: Tensor, rows: Tensor, real: Tensor) -> Tensor:
    """[*, H, D] to [B, H, rows of a tile, D]."""
    return x.index_select(0, rows).view(*real.shape, *x.shape[1:]).transpose(1, 2)


def _real_rows(x_BHRD: Tensor, real_BR: Tensor) -> Tensor:
    """The rows that are no padding, [real rows, H, D]."""
    return x_BHRD.transpose(1, 2)[real_BR]
