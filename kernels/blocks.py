"""Shared by the attention kernels: loads and stores of row tiles, and products of tiles.

Row numbers are int64, because an offset may exceed 2^31 elements.

Legend: `pointer` of one head, `rows` [R], `dims` [BLOCK_D], of which the first HEAD_DIM are real.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_rows(pointer, rows, mask_rows, stride, dims, HEAD_DIM: tl.constexpr):
    """[rows, dims] of one head, zeros outside the mask."""
    mask = mask_rows[:, None] & (dims < HEAD_DIM)[None, :]
    return tl.load(pointer + rows[:, None] * stride + dims[None, :], mask=mask, other=0.0)


@triton.jit
def store_rows(pointer, values, rows, mask_rows, stride, dims, HEAD_DIM: tl.constexpr):
    mask = mask_rows[:, None] & (dims < HEAD_DIM)[None, :]
    tl.store(pointer + rows[:, None] * stride + dims[None, :], values.to(pointer.dtype.element_ty), mask=mask)


@triton.jit
def dot(a, b, IN_STORAGE_TYPE: tl.constexpr):
    """a @ b in float32; `IN_STORAGE_TYPE`: the device multiplies b's type, and `a` is rounded to it."""
    if IN_STORAGE_TYPE:
        return tl.dot(a.to(b.dtype), b)
    return tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision="ieee")
