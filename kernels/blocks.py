"""What the attention kernels share: tiles of rows in and out of memory, and products of tiles.

Rows and strides are int64: an offset may pass 2^31 elements.

Legend: `pointer` of one head, `rows` [R], `dims` [BLOCK_D], of which HEAD_DIM are real.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_rows(pointer, rows, mask_rows, stride, dims, HEAD_DIM: tl.constexpr):
    """[rows, dims] of one head, zeros outside."""
    mask = mask_rows[:, None] & (dims < HEAD_DIM)[None, :]
    return tl.load(pointer + rows[:, None] * stride + dims[None, :], mask=mask, other=0.0)


@triton.jit
def store_rows(pointer, values, rows, mask_rows, stride, dims, HEAD_DIM: tl.constexpr):
    mask = mask_rows[:, None] & (dims < HEAD_DIM)[None, :]
    tl.store(pointer + rows[:, None] * stride + dims[None, :], values.to(pointer.dtype.element_ty), mask=mask)


@triton.jit
def dot(a, b, IN_STORAGE_TYPE: tl.constexpr):
    """a @ b in float32; `IN_STORAGE_TYPE`: b's type is one that the device multiplies, and `a` is rounded to it."""
    if IN_STORAGE_TYPE:
        return tl.dot(a.to(b.dtype), b)
    return tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision="ieee")
