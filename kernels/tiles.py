"""Assigns rows to the programs of a Triton kernel: cuts sequences into tiles, on the device without synchronising.

A sequence of n rows has ceil(n / size) tiles. The number of tiles depends on data that may be on a GPU, so the grid has
the upper bound, and programs beyond the last tile read the sequence -1 and end.

Legend: U sequences, T tiles of the grid.
"""

from __future__ import annotations

import torch
from torch import Tensor


def cut_into_tiles(lengths: Tensor, *, rows: int, size: int) -> tuple[Tensor, Tensor]:
    """`lengths` int64 [U] of sequences with `rows` rows in total, to int64 [T] the sequence of each tile, -1 for none,
    and int64 [T] the first row of the tile within its sequence. T = rows // size + U."""
    ends = ((lengths + size - 1) // size).cumsum(0)
    tiles = torch.arange(rows // size + lengths.shape[0], device=lengths.device)
    sequences = torch.searchsorted(ends, tiles, right=True)
    known = sequences.clamp(max=max(lengths.shape[0] - 1, 0))
    before = torch.nn.functional.pad(ends, (1, 0))[known] if lengths.shape[0] else tiles
    sequences = torch.where(sequences < lengths.shape[0], sequences, -1)
    return sequences, (tiles - before) * size
