"""Jagged attention for GPUs, in Triton: no padding, scores stay on the chip (FlashAttention-2, arXiv 2307.08691).

    forward     s = q k^T / sqrt(D);  p = exp(s - max);  out = p v / sum(p);  log_sum = max + log(sum(p))
    backward    p = exp(s - log_sum);  ds = p (dout v^T - inner) / sqrt(D);  inner = sum_D dout * out
                dq = ds k    dk = ds^T q    dv = p^T dout

Layouts: q, k, v, out and their gradients [N, H, D], last stride 1; log_sum and inner float32 [N, H].
Programs: one query tile of one head (forward, dq), or one key tile of one head (dk, dv): no two programs write the same
element, so results do not depend on the order of programs.
Precision: sums and softmax in float32. Products take float16 and bfloat16 tiles as loaded, and float32 tiles without
TF32; the interpreter multiplies in float32 throughout.

Legend: N events, H heads, D floats per head, M = BLOCK_M rows of a query tile, L = BLOCK_N rows of a key tile.
"""

# pyright: reportArgumentType=false, reportCallIssue=false
# (Triton's compiler checks constexpr and packed arguments)

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from spoor.kernels.blocks import dot, load_rows, store_rows
from spoor.kernels.launch import Launch, dot_in_storage_type, launch_for
from spoor.kernels.tiles import cut_into_tiles


@triton.jit(do_not_specialize=["heads"])
def jagged_attention_fwd_kernel(
    q, k, v, out, log_sum,  # tensors
    offsets, tile_sequence, tile_first,  # rows of each sequence and tile
    heads,  # number of heads
    # strides, in elements
    row_stride_q, row_stride_k, row_stride_v, row_stride_out, head_stride_q, head_stride_k, head_stride_v,
    head_stride_out,
    scale,  # 1 / sqrt(D)
    # fixed when compiled
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    CAUSAL: tl.constexpr, IN_STORAGE_TYPE: tl.constexpr,
):  # fmt: skip
    tile, head = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    sequence = tl.load(tile_sequence + tile)
    if sequence < 0:
        return
    first = tl.load(tile_first + tile)
    start, end = tl.load(offsets + sequence), tl.load(offsets + sequence + 1)
    dims = tl.arange(0, BLOCK_D)
    rows = start + first + tl.arange(0, BLOCK_M)
    b_q = load_rows(q + head * head_stride_q, rows, rows < end, row_stride_q, dims, HEAD_DIM)
    highest = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    gathered = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    last = end
    if CAUSAL:
        last = tl.minimum(end, start + first + BLOCK_M)
    for key in range(start, last, BLOCK_N):
        keys = key + tl.arange(0, BLOCK_N).to(tl.int64)
        b_k = load_rows(k + head * head_stride_k, keys, keys < end, row_stride_k, dims, HEAD_DIM)
        b_v = load_rows(v + head * head_stride_v, keys, keys < end, row_stride_v, dims, HEAD_DIM)
        scores = dot(b_q, tl.trans(b_k), IN_STORAGE_TYPE) * scale  # [M, L]
        seen = (keys < end)[None, :]
        if CAUSAL:
            seen = seen & (keys[None, :] <= rows[:, None])
        scores = tl.where(seen, scores, float("-inf"))
        higher = tl.maximum(highest, tl.max(scores, 1))
        weights = tl.exp(scores - higher[:, None])
        shrink = tl.exp(highest - higher)
        total = total * shrink + tl.sum(weights, 1)
        gathered = gathered * shrink[:, None] + dot(weights, b_v, IN_STORAGE_TYPE)
        highest = higher
    store_rows(
        out + head * head_stride_out, gathered / total[:, None], rows, rows < end, row_stride_out, dims, HEAD_DIM
    )
    tl.store(log_sum + rows * heads + head, highest + tl.log(total), mask=rows < end)


@triton.jit(do_not_specialize=["heads"])
def jagged_attention_bwd_dq_kernel(
    q, k, v, d_out, d_q, log_sum, inner,  # tensors
    offsets, tile_sequence, tile_first,  # rows of each sequence and tile
    heads,  # number of heads
    # strides, in elements
    row_stride_q, row_stride_k, row_stride_v, row_stride_d_out, head_stride_q, head_stride_k, head_stride_v,
    head_stride_d_out, row_stride_d_q, head_stride_d_q,
    scale,  # 1 / sqrt(D)
    # fixed when compiled
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    CAUSAL: tl.constexpr, IN_STORAGE_TYPE: tl.constexpr,
):  # fmt: skip
    tile, head = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    sequence = tl.load(tile_sequence + tile)
    if sequence < 0:
        return
    first = tl.load(tile_first + tile)
    start, end = tl.load(offsets + sequence), tl.load(offsets + sequence + 1)
    dims = tl.arange(0, BLOCK_D)
    rows = start + first + tl.arange(0, BLOCK_M)
    b_q = load_rows(q + head * head_stride_q, rows, rows < end, row_stride_q, dims, HEAD_DIM)
    b_d_out = load_rows(d_out + head * head_stride_d_out, rows, rows < end, row_stride_d_out, dims, HEAD_DIM)
    b_log_sum = tl.load(log_sum + rows * heads + head, mask=rows < end, other=0.0)
    b_inner = tl.load(inner + rows * heads + head, mask=rows < end, other=0.0)
    b_d_q = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    last = end
    if CAUSAL:
        last = tl.minimum(end, start + first + BLOCK_M)
    for key in range(start, last, BLOCK_N):
        keys = key + tl.arange(0, BLOCK_N).to(tl.int64)
        b_k = load_rows(k + head * head_stride_k, keys, keys < end, row_stride_k, dims, HEAD_DIM)
        b_v = load_rows(v + head * head_stride_v, keys, keys < end, row_stride_v, dims, HEAD_DIM)
        seen = (keys < end)[None, :]
        if CAUSAL:
            seen = seen & (keys[None, :] <= rows[:, None])
        scores = dot(b_q, tl.trans(b_k), IN_STORAGE_TYPE) * scale
        weights = tl.where(seen, tl.exp(scores - b_log_sum[:, None]), 0.0)
        d_scores = weights * (dot(b_d_out, tl.trans(b_v), IN_STORAGE_TYPE) - b_inner[:, None]) * scale
        b_d_q += dot(d_scores, b_k, IN_STORAGE_TYPE)
    store_rows(d_q + head * head_stride_d_q, b_d_q, rows, rows < end, row_stride_d_q, dims, HEAD_DIM)


@triton.jit(do_not_specialize=["heads"])
def jagged_attention_bwd_dkv_kernel(
    q, k, v, d_out, d_k, d_v, log_sum, inner,  # tensors
    offsets, tile_sequence, tile_first,  # rows of each sequence and tile
    heads,  # number of heads
    # strides, in elements
    row_stride_q, row_stride_k, row_stride_v, row_stride_d_out, head_stride_q, head_stride_k, head_stride_v,
    head_stride_d_out, row_stride_d_k, head_stride_d_k,
    scale,  # 1 / sqrt(D)
    # fixed when compiled
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    CAUSAL: tl.constexpr, IN_STORAGE_TYPE: tl.constexpr,
):  # fmt: skip
    """d_k and d_v share their strides."""
    tile, head = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    sequence = tl.load(tile_sequence + tile)
    if sequence < 0:
        return
    first = tl.load(tile_first + tile)
    start, end = tl.load(offsets + sequence), tl.load(offsets + sequence + 1)
    dims = tl.arange(0, BLOCK_D)
    keys = start + first + tl.arange(0, BLOCK_N)
    b_k = load_rows(k + head * head_stride_k, keys, keys < end, row_stride_k, dims, HEAD_DIM)
    b_v = load_rows(v + head * head_stride_v, keys, keys < end, row_stride_v, dims, HEAD_DIM)
    b_d_k = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    b_d_v = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    asked = start
    if CAUSAL:
        asked = start + first  # earlier events do not see this tile
    for row in range(asked, end, BLOCK_M):
        rows = row + tl.arange(0, BLOCK_M).to(tl.int64)
        b_q = load_rows(q + head * head_stride_q, rows, rows < end, row_stride_q, dims, HEAD_DIM)
        b_d_out = load_rows(d_out + head * head_stride_d_out, rows, rows < end, row_stride_d_out, dims, HEAD_DIM)
        b_log_sum = tl.load(log_sum + rows * heads + head, mask=rows < end, other=0.0)
        b_inner = tl.load(inner + rows * heads + head, mask=rows < end, other=0.0)
        seen = (rows < end)[None, :] & (keys < end)[:, None]
        if CAUSAL:
            seen = seen & (keys[:, None] <= rows[None, :])
        scores = dot(b_k, tl.trans(b_q), IN_STORAGE_TYPE) * scale  # [L, M]
        weights = tl.where(seen, tl.exp(scores - b_log_sum[None, :]), 0.0)
        b_d_v += dot(weights, b_d_out, IN_STORAGE_TYPE)
        d_scores = weights * (dot(b_v, tl.trans(b_d_out), IN_STORAGE_TYPE) - b_inner[None, :]) * scale
        b_d_k += dot(d_scores, b_q, IN_STORAGE_TYPE)
    store_rows(d_k + head * head_stride_d_k, b_d_k, keys, keys < end, row_stride_d_k, dims, HEAD_DIM)
    store_rows(d_v + head * head_stride_d_k, b_d_v, keys, keys < end, row_stride_d_k, dims, HEAD_DIM)


def attend_on_gpu(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, *, causal: bool) -> Tensor:
    """q, k, v [N, H, D], offsets int64 [U + 1] (checked by the caller) to [N, H, D]. Raises ValueError for float64 and
    for heads wider than 128."""
    launch = launch_for(q)
    result: Tensor = _JaggedAttention.apply(q, k, v, offsets, causal, launch)  # pyright: ignore[reportAssignmentType]
    return result


class _JaggedAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, causal: bool, launch: Launch) -> Tensor:
        q, k, v = (x if x.stride(2) == 1 else x.contiguous() for x in (q, k, v))
        events, heads, _ = q.shape
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        log_sum = torch.empty(events, heads, dtype=torch.float32, device=q.device)
        if events:
            sequences, firsts = cut_into_tiles(offsets.diff(), rows=events, size=launch.block_m)
            jagged_attention_fwd_kernel[(len(sequences), heads)](
                q, k, v, out, log_sum, offsets, sequences, firsts,
                heads, q.stride(0), k.stride(0), v.stride(0), out.stride(0), q.stride(1), k.stride(1), v.stride(1),
                out.stride(1), 1 / math.sqrt(q.shape[2]),
                **launch.constants, CAUSAL=causal, IN_STORAGE_TYPE=dot_in_storage_type(q),
                **launch.options,
            )  # fmt: skip
        ctx.save_for_backward(q, k, v, out, log_sum, offsets)
        ctx.causal, ctx.launch = causal, launch.backward or launch
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, log_sum, offsets = ctx.saved_tensors
        launch: Launch = ctx.launch
        d_out = grads[0] if grads[0].stride(2) == 1 else grads[0].contiguous()
        d_q, d_k, d_v = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
        if not len(q):
            return d_q, d_k, d_v, None, None, None
        events, heads, _ = q.shape
        inner = (d_out.float() * out.float()).sum(-1)
        lengths, scale = offsets.diff(), 1 / math.sqrt(q.shape[2])
        strides = [*(x.stride(0) for x in (q, k, v, d_out)), *(x.stride(1) for x in (q, k, v, d_out))]
        shared = {"CAUSAL": ctx.causal, "IN_STORAGE_TYPE": dot_in_storage_type(q), **launch.constants, **launch.options}
        sequences, firsts = cut_into_tiles(lengths, rows=events, size=launch.block_m)
        jagged_attention_bwd_dq_kernel[(len(sequences), heads)](
            q, k, v, d_out, d_q, log_sum, inner, offsets, sequences, firsts,
            heads, *strides, d_q.stride(0), d_q.stride(1), scale, **shared,
        )  # fmt: skip
        sequences, firsts = cut_into_tiles(lengths, rows=events, size=launch.block_n)
        jagged_attention_bwd_dkv_kernel[(len(sequences), heads)](
            q, k, v, d_out, d_k, d_v, log_sum, inner, offsets, sequences, firsts,
            heads, *strides, d_k.stride(0), d_k.stride(1), scale, **shared,
        )  # fmt: skip
        return d_q, d_k, d_v, None, None, None
