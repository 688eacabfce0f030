"""Hashed gather: the rows of an item in its n tables, dequantised and concatenated.

    out[m] = concat over t of dequantise(packed[rows[m, t]])

Legend: R rows of all tables together, B bytes of a packed row (`layouts.py`), M items, T tables (hash functions), W
floats of a row. `reference.py` is the slow reference, `cpu.py` the fast CPU version, `triton.py` the GPU version.
"""

import torch
from torch import Tensor

from spoor.kernels.backend import backend_of
from spoor.kernels.hashed_gather.cpu import gather_on_cpu
from spoor.kernels.hashed_gather.layouts import GROUP, Layout, row_bytes

__all__ = ["GROUP", "Layout", "hashed_gather", "row_bytes"]


def hashed_gather(packed: Tensor, rows: Tensor, *, width: int, layout: Layout) -> Tensor:
    """Rows of packed tables as float32. `packed` may be a view of a mapped file: only the requested rows are read.

    Shapes: packed uint8 [R, B], rows int64 [M, T] in [0, R). Returns float32 [M, T * width]. Not differentiable:
    quantised tables are frozen. Raises ValueError if shapes, types or devices do not fit, IndexError for a row out of
    range (on a GPU this is not checked: the result is undefined).
    """
    expected = row_bytes(width, layout)
    if packed.dim() != 2 or packed.dtype != torch.uint8 or packed.shape[1] != expected:
        raise ValueError(
            f"packed must be uint8 [rows, {expected}] for {width} floats as {layout}; "
            f"found {packed.dtype} {list(packed.shape)}"
        )
    if rows.dim() != 2 or rows.dtype != torch.int64:
        raise ValueError(f"rows must be int64 [items, tables]; found {rows.dtype} {list(rows.shape)}")
    if rows.device != packed.device:
        raise ValueError(f"rows must be on {packed.device} as packed is; found {rows.device}")
    if packed.stride(1) != 1 or packed.stride(0) != expected:
        raise ValueError("packed must be contiguous: a copy of a table would not be a table that is mapped")
    if backend_of(packed) == "triton":
        from spoor.kernels.hashed_gather.triton import gather_on_gpu

        return gather_on_gpu(packed, rows, width=width, layout=layout)
    return gather_on_cpu(packed, rows, width=width, layout=layout)
