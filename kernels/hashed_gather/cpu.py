"""Hashed gather for the CPU: PyTorch's embedding bags over packed rows, each bag one group of one row."""

import torch
from torch import Tensor

from spoor.kernels.hashed_gather.layouts import Layout, group_bytes, group_width


def gather_on_cpu(packed: Tensor, rows: Tensor, *, width: int, layout: Layout) -> Tensor:
    """Same signature and shapes as `hashed_gather` (checked by the caller)."""
    items, tables = rows.shape
    if rows.numel() == 0:
        return torch.empty(items, tables * width)
    least, greatest = (int(bound) for bound in rows.aminmax())
    if least < 0 or greatest >= len(packed):
        raise IndexError(f"rows {least} to {greatest} are asked of a table of {len(packed)}")
    if layout == "fp16":
        return packed.view(torch.float16)[rows].float().view(items, tables * width)
    parts = width // group_width(width)
    groups = packed.view(-1, group_bytes(width, layout))
    wanted = rows.flatten()
    if parts > 1:
        wanted = (wanted[:, None] * parts + torch.arange(parts)).flatten()
    gather = {
        "int4": torch.ops.quantized.embedding_bag_4bit_rowwise_offsets,
        "int8": torch.ops.quantized.embedding_bag_byte_rowwise_offsets,
    }[layout]
    return gather(groups, wanted, torch.arange(len(wanted))).view(items, tables * width)
