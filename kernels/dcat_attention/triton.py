"""Crossing attention for GPUs, in Triton: a program handles a tile of one user's candidates and the user's context.

    forward     s = q K^T / sqrt(D) over the context, own = q . k / sqrt(D)
                out = (exp(s - m) V + exp(own - m) v) / total;  log_sum = m + log(total)
    backward    p = exp(s - log_sum);  ds = p (dout V^T - inner) / sqrt(D);  inner = sum_D dout * out
                dq = ds K + d_own k;  dk = d_own q;  dv = p_own dout;  dK = ds^T q;  dV = p^T dout

The paper's inverse index is fused: a program reads its user's rows in place, so keys and values are never copied per
candidate. The online softmax starts with the candidate's own term. The program of a key tile sums its gradients over
the user's candidates: no atomics, the same result in every run.

Layouts: candidates' q, k, v, out [C, H, D]; K, V [N, H, D]; last strides 1; log_sum and inner float32 [C, H].
`order` int64 [C]: candidates sorted by user; user u's are order[candidate_offsets[u]] to order[candidate_offsets[u+1]].
Precision: as in kernels/jagged_attention/triton.py.

Legend: C candidates, N context rows, U users, H heads, D floats per head, M = BLOCK_M candidates of a tile, L = BLOCK_N
context rows of a tile.
"""

# pyright: reportArgumentType=false, reportCallIssue=false
# (Triton's compiler checks constexpr and packed arguments)

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from spoor.kernels.blocks import dot, load_rows, store_rows
from spoor.kernels.launch import Launch, dot_in_storage_type, launch_for
from spoor.kernels.tiles import cut_into_tiles


@triton.jit(do_not_specialize=["heads"])
def dcat_attention_fwd_kernel(
    q, k, v, k_context, v_context, out, log_sum,  # tensors
    # rows of each user and tile
    order, candidate_offsets, first_seen, context_offsets, tile_user, tile_first,
    heads,  # number of heads
    # strides, in elements
    row_stride_q, row_stride_k, row_stride_v, row_stride_kc, row_stride_vc, head_stride_q, head_stride_k,
    head_stride_v, head_stride_kc, head_stride_vc, row_stride_out, head_stride_out,
    scale,  # 1 / sqrt(D)
    # fixed when compiled
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    IN_STORAGE_TYPE: tl.constexpr,
):  # fmt: skip
    tile, head = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    user = tl.load(tile_user + tile)
    if user < 0:
        return
    places = tl.load(candidate_offsets + user) + tl.load(tile_first + tile) + tl.arange(0, BLOCK_M)
    real = places < tl.load(candidate_offsets + user + 1)
    rows = tl.load(order + places, mask=real, other=0)
    dims = tl.arange(0, BLOCK_D)
    b_q = load_rows(q + head * head_stride_q, rows, real, row_stride_q, dims, HEAD_DIM)
    b_k = load_rows(k + head * head_stride_k, rows, real, row_stride_k, dims, HEAD_DIM).to(tl.float32)
    highest = tl.sum(b_q.to(tl.float32) * b_k, 1) * scale
    total = tl.full([BLOCK_M], 1.0, tl.float32)
    gathered = load_rows(v + head * head_stride_v, rows, real, row_stride_v, dims, HEAD_DIM).to(tl.float32)
    end = tl.load(context_offsets + user + 1)
    for key in range(tl.load(first_seen + user), end, BLOCK_N):
        keys = key + tl.arange(0, BLOCK_N).to(tl.int64)
        b_kc = load_rows(k_context + head * head_stride_kc, keys, keys < end, row_stride_kc, dims, HEAD_DIM)
        b_vc = load_rows(v_context + head * head_stride_vc, keys, keys < end, row_stride_vc, dims, HEAD_DIM)
        scores = dot(b_q, tl.trans(b_kc), IN_STORAGE_TYPE) * scale  # [M, L]
        scores = tl.where((keys < end)[None, :], scores, float("-inf"))
        higher = tl.maximum(highest, tl.max(scores, 1))
        weights = tl.exp(scores - higher[:, None])
        shrink = tl.exp(highest - higher)
        total = total * shrink + tl.sum(weights, 1)
        gathered = gathered * shrink[:, None] + dot(weights, b_vc, IN_STORAGE_TYPE)
        highest = higher
    store_rows(out + head * head_stride_out, gathered / total[:, None], rows, real, row_stride_out, dims, HEAD_DIM)
    tl.store(log_sum + rows * heads + head, highest + tl.log(total), mask=real)


@triton.jit(do_not_specialize=["heads"])
def dcat_attention_bwd_candidates_kernel(
    q, k, v, k_context, v_context, d_out, d_q, d_k, d_v, log_sum, inner,  # tensors
    # rows of each user and tile
    order, candidate_offsets, first_seen, context_offsets, tile_user, tile_first,
    heads,  # number of heads
    # strides, in elements
    row_stride_q, row_stride_k, row_stride_v, row_stride_kc, row_stride_vc, row_stride_do, head_stride_q,
    head_stride_k, head_stride_v, head_stride_kc, head_stride_vc, head_stride_do, row_stride_out, head_stride_out,
    scale,  # 1 / sqrt(D)
    # fixed when compiled
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    IN_STORAGE_TYPE: tl.constexpr,
):  # fmt: skip
    """The gradients of a tile of candidates; d_q, d_k and d_v share their strides."""
    tile, head = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    user = tl.load(tile_user + tile)
    if user < 0:
        return
    places = tl.load(candidate_offsets + user) + tl.load(tile_first + tile) + tl.arange(0, BLOCK_M)
    real = places < tl.load(candidate_offsets + user + 1)
    rows = tl.load(order + places, mask=real, other=0)
    dims = tl.arange(0, BLOCK_D)
    b_q = load_rows(q + head * head_stride_q, rows, real, row_stride_q, dims, HEAD_DIM)
    b_k = load_rows(k + head * head_stride_k, rows, real, row_stride_k, dims, HEAD_DIM).to(tl.float32)
    b_v = load_rows(v + head * head_stride_v, rows, real, row_stride_v, dims, HEAD_DIM).to(tl.float32)
    b_d_out = load_rows(d_out + head * head_stride_do, rows, real, row_stride_do, dims, HEAD_DIM)
    b_log_sum = tl.load(log_sum + rows * heads + head, mask=real, other=0.0)
    b_inner = tl.load(inner + rows * heads + head, mask=real, other=0.0)
    own = tl.exp(tl.sum(b_q.to(tl.float32) * b_k, 1) * scale - b_log_sum)
    d_own = own * (tl.sum(b_d_out.to(tl.float32) * b_v, 1) - b_inner) * scale
    target = head * head_stride_out
    store_rows(d_k + target, d_own[:, None] * b_q.to(tl.float32), rows, real, row_stride_out, dims, HEAD_DIM)
    store_rows(d_v + target, own[:, None] * b_d_out.to(tl.float32), rows, real, row_stride_out, dims, HEAD_DIM)
    b_d_q = d_own[:, None] * b_k
    end = tl.load(context_offsets + user + 1)
    for key in range(tl.load(first_seen + user), end, BLOCK_N):
        keys = key + tl.arange(0, BLOCK_N).to(tl.int64)
        b_kc = load_rows(k_context + head * head_stride_kc, keys, keys < end, row_stride_kc, dims, HEAD_DIM)
        b_vc = load_rows(v_context + head * head_stride_vc, keys, keys < end, row_stride_vc, dims, HEAD_DIM)
        scores = dot(b_q, tl.trans(b_kc), IN_STORAGE_TYPE) * scale
        weights = tl.where((keys < end)[None, :], tl.exp(scores - b_log_sum[:, None]), 0.0)
        d_scores = weights * (dot(b_d_out, tl.trans(b_vc), IN_STORAGE_TYPE) - b_inner[:, None]) * scale
        b_d_q += dot(d_scores, b_kc, IN_STORAGE_TYPE)
    store_rows(d_q + target, b_d_q, rows, real, row_stride_out, dims, HEAD_DIM)


@triton.jit(do_not_specialize=["heads"])
def dcat_attention_bwd_context_kernel(
    q, k_context, v_context, d_out, d_k_context, d_v_context, log_sum, inner,  # tensors
    # rows of each user and tile
    order, candidate_offsets, first_seen, context_offsets, tile_user, tile_first,
    heads,  # number of heads
    # strides, in elements
    row_stride_q, row_stride_kc, row_stride_vc, row_stride_do, head_stride_q, head_stride_kc, head_stride_vc,
    head_stride_do, row_stride_out, head_stride_out,
    scale,  # 1 / sqrt(D)
    # fixed when compiled
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    IN_STORAGE_TYPE: tl.constexpr,
):  # fmt: skip
    """The gradients of a tile of context rows, summed over the user's candidates; both share their strides."""
    tile, head = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    user = tl.load(tile_user + tile)
    if user < 0:
        return
    keys = tl.load(context_offsets + user) + tl.load(tile_first + tile) + tl.arange(0, BLOCK_N)
    real = keys < tl.load(context_offsets + user + 1)
    seen = real & (keys >= tl.load(first_seen + user))
    dims = tl.arange(0, BLOCK_D)
    # Skipped rows may hold anything, so they are not read.
    b_kc = load_rows(k_context + head * head_stride_kc, keys, seen, row_stride_kc, dims, HEAD_DIM)
    b_vc = load_rows(v_context + head * head_stride_vc, keys, seen, row_stride_vc, dims, HEAD_DIM)
    b_d_k = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    b_d_v = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    last = tl.load(candidate_offsets + user + 1)
    for place in range(tl.load(candidate_offsets + user), last, BLOCK_M):
        places = place + tl.arange(0, BLOCK_M).to(tl.int64)
        asked = places < last
        rows = tl.load(order + places, mask=asked, other=0)
        b_q = load_rows(q + head * head_stride_q, rows, asked, row_stride_q, dims, HEAD_DIM)
        b_d_out = load_rows(d_out + head * head_stride_do, rows, asked, row_stride_do, dims, HEAD_DIM)
        b_log_sum = tl.load(log_sum + rows * heads + head, mask=asked, other=0.0)
        b_inner = tl.load(inner + rows * heads + head, mask=asked, other=0.0)
        scores = dot(b_kc, tl.trans(b_q), IN_STORAGE_TYPE) * scale  # [L, M]
        weights = tl.where(seen[:, None] & asked[None, :], tl.exp(scores - b_log_sum[None, :]), 0.0)
        b_d_v += dot(weights, b_d_out, IN_STORAGE_TYPE)
        d_scores = weights * (dot(b_vc, tl.trans(b_d_out), IN_STORAGE_TYPE) - b_inner[None, :]) * scale
        b_d_k += dot(d_scores, b_q, IN_STORAGE_TYPE)
    target = head * head_stride_out
    store_rows(d_k_context + target, b_d_k, keys, real, row_stride_out, dims, HEAD_DIM)
    store_rows(d_v_context + target, b_d_v, keys, real, row_stride_out, dims, HEAD_DIM)


@dataclass(frozen=True, eq=False)
class _Who:
    """`order` int64 [C]: candidates sorted by user; `candidate_offsets` int64 [U + 1] into it; `first_seen` int64 [U]:
    the oldest context row that a user's candidates see."""

    order: Tensor
    candidate_offsets: Tensor
    context_offsets: Tensor
    first_seen: Tensor


def attend_on_gpu(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_context: Tensor,
    v_context: Tensor,
    context_offsets: Tensor,
    candidate_user: Tensor,
    *,
    skipped: Tensor | None = None,
) -> Tensor:
    """Same signature and shapes as `dcat_attention` (checked by the caller). Raises ValueError for float64 and for
    heads wider than 128."""
    starts, ends = context_offsets[:-1], context_offsets[1:]
    counts = torch.zeros_like(starts).index_add(0, candidate_user, torch.ones_like(candidate_user))
    who = _Who(
        order=candidate_user.argsort(stable=True),
        candidate_offsets=torch.nn.functional.pad(counts.cumsum(0), (1, 0)),
        context_offsets=context_offsets,
        first_seen=starts if skipped is None else torch.minimum(starts + skipped, ends),
    )
    result: Tensor = _Crossing.apply(q, k, v, k_context, v_context, who, launch_for(q))  # pyright: ignore[reportAssignmentType]
    return result


class _Crossing(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, k_context: Tensor, v_context: Tensor, who: _Who, launch: Launch
    ) -> Tensor:
        q, k, v, k_context, v_context = (
            x if x.stride(2) == 1 else x.contiguous() for x in (q, k, v, k_context, v_context)
        )
        candidates, heads, _ = q.shape
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        log_sum = torch.empty(candidates, heads, dtype=torch.float32, device=q.device)
        if candidates:
            users, firsts = cut_into_tiles(who.candidate_offsets.diff(), rows=candidates, size=launch.block_m)
            inputs = (q, k, v, k_context, v_context)
            dcat_attention_fwd_kernel[(len(users), heads)](
                *inputs, out, log_sum, who.order, who.candidate_offsets, who.first_seen, who.context_offsets,
                users, firsts, heads, *(x.stride(0) for x in inputs), *(x.stride(1) for x in inputs),
                out.stride(0), out.stride(1), 1 / math.sqrt(q.shape[2]),
                **launch.constants, IN_STORAGE_TYPE=dot_in_storage_type(q), **launch.options,
            )  # fmt: skip
        ctx.save_for_backward(q, k, v, k_context, v_context, out, log_sum)
        ctx.who, ctx.launch = who, launch.backward or launch
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, k_context, v_context, out, log_sum = ctx.saved_tensors
        who, launch = ctx.who, ctx.launch
        d_out = grads[0] if grads[0].stride(2) == 1 else grads[0].contiguous()
        d_q, d_k, d_v, d_k_context, d_v_context = (
            torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v, k_context, v_context)
        )
        heads, scale = q.shape[1], 1 / math.sqrt(q.shape[2])
        inner = (d_out.float() * out.float()).sum(-1)
        shared = {"IN_STORAGE_TYPE": dot_in_storage_type(q), **launch.constants, **launch.options}
        places = (who.order, who.candidate_offsets, who.first_seen, who.context_offsets)
        if len(q):
            users, firsts = cut_into_tiles(who.candidate_offsets.diff(), rows=len(q), size=launch.block_m)
            inputs = (q, k, v, k_context, v_context, d_out)
            dcat_attention_bwd_candidates_kernel[(len(users), heads)](
                *inputs, d_q, d_k, d_v, log_sum, inner, *places, users, firsts, heads,
                *(x.stride(0) for x in inputs), *(x.stride(1) for x in inputs), d_q.stride(0), d_q.stride(1), scale,
                **shared,
            )  # fmt: skip
        if len(k_context):
            users, firsts = cut_into_tiles(who.context_offsets.diff(), rows=len(k_context), size=launch.block_n)
            inputs = (q, k_context, v_context, d_out)
            dcat_attention_bwd_context_kernel[(len(users), heads)](
                *inputs, d_k_context, d_v_context, log_sum, inner, *places, users, firsts, heads,
                *(x.stride(0) for x in inputs), *(x.stride(1) for x in inputs), d_k_context.stride(0),
                d_k_context.stride(1), scale, **shared,
            )  # fmt: skip
        return d_q, d_k, d_v, d_k_context, d_v_context, None, None
