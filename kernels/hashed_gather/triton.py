"""Hashed gather for GPUs, in Triton: reads bytes once and dequantises them on the chip.

Layouts: packed uint8 [R, B] contiguous, rows int64 [M, T], out float32 [M, T * W].
Programs: BLOCK_M groups each; a group is the floats of one row that share a scale. Its 4-bit numbers are read as bytes;
the two halves of a byte go to neighbouring floats. Rows are int64: a table may exceed 2^31 bytes.

Legend: M = BLOCK_M groups of a program, g floats of a group, padded to BLOCK_D (int4: g / 2 bytes).
"""

# pyright: reportArgumentType=false, reportCallIssue=false
# (Triton's compiler checks constexpr and packed arguments)

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from spoor.kernels.hashed_gather.layouts import Layout, group_bytes, group_width

BLOCK_GROUPS = 64
WARPS = 4


@triton.jit(do_not_specialize=["groups", "parts"])
def hashed_gather_kernel(
    packed, rows, out, groups, parts,
    GROUP: tl.constexpr, GROUP_BYTES: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, LAYOUT: tl.constexpr,
):  # fmt: skip
    """`groups`: number of groups in all requested rows; `parts`: groups of one row."""
    group = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    real = group < groups
    row = tl.load(rows + group // parts, mask=real, other=0)
    first = (row * parts + group % parts) * GROUP_BYTES  # [M], of the group's bytes
    dims = tl.arange(0, BLOCK_D)
    to = out + (group * GROUP)[:, None]
    if LAYOUT == "fp16":
        seen = real[:, None] & (dims < GROUP)[None, :]
        halves = packed.to(tl.pointer_type(tl.float16)) + (first // 2)[:, None]
        tl.store(to + dims[None, :], tl.load(halves + dims[None, :], mask=seen, other=0.0).to(tl.float32), mask=seen)
    elif LAYOUT == "int8":
        seen = real[:, None] & (dims < GROUP)[None, :]
        numbers = tl.load(packed + first[:, None] + dims[None, :], mask=seen, other=0).to(tl.float32)
        scale = _float32(packed, first + GROUP, real)
        bias = _float32(packed, first + GROUP + 4, real)
        tl.store(to + dims[None, :], numbers * scale[:, None] + bias[:, None], mask=seen)
    else:
        seen = real[:, None] & (dims < GROUP // 2)[None, :]
        both = tl.load(packed + first[:, None] + dims[None, :], mask=seen, other=0)
        scale = _float16(packed, first + GROUP // 2, real)
        bias = _float16(packed, first + GROUP // 2 + 2, real)
        tl.store(to + 2 * dims[None, :], (both & 15).to(tl.float32) * scale[:, None] + bias[:, None], mask=seen)
        tl.store(to + 2 * dims[None, :] + 1, (both >> 4).to(tl.float32) * scale[:, None] + bias[:, None], mask=seen)


@triton.jit
def _float16(packed, first, real):
    """The float16 at byte `first`, which need not be aligned, as float32."""
    low = tl.load(packed + first, mask=real, other=0).to(tl.int16)
    high = tl.load(packed + first + 1, mask=real, other=0).to(tl.int16)
    return (low | (high << 8)).to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def _float32(packed, first, real):
    """The float32 at byte `first`, which need not be aligned."""
    bits = tl.load(packed + first, mask=real, other=0).to(tl.int32)
    for byte in tl.static_range(1, 4):  # pyright: ignore[reportGeneralTypeIssues]
        bits = bits | (tl.load(packed + first + byte, mask=real, other=0).to(tl.int32) << (8 * byte))
    return bits.to(tl.float32, bitcast=True)


def gather_on_gpu(packed: Tensor, rows: Tensor, *, width: int, layout: Layout) -> Tensor:
    """Same signature and shapes as `hashed_gather` (checked by the caller)."""
    items, tables = rows.shape
    out = torch.empty(items, tables * width, dtype=torch.float32, device=packed.device)
    groups = out.numel() // group_width(width)
    if groups:
        hashed_gather_kernel[(triton.cdiv(groups, BLOCK_GROUPS),)](
            packed, rows.contiguous(), out, groups, width // group_width(width),
            **constants(width, layout), num_warps=WARPS,
        )  # fmt: skip
    return out


def constants(width: int, layout: Layout) -> dict[str, object]:
    """Compile-time constants of the kernel for rows of this width."""
    group = group_width(width)
    return {
        "GROUP": group,
        "GROUP_BYTES": group_bytes(width, layout),
        "BLOCK_D": triton.next_power_of_2(group // 2 if layout == "int4" else group),
        "BLOCK_M": BLOCK_GROUPS,
        "LAYOUT": layout,
    }
