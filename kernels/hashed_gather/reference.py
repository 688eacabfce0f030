"""Reference for hashed_gather: decodes packed rows byte by byte; tests compare the other implementations with it."""

import torch
from torch import Tensor

from spoor.kernels.hashed_gather.layouts import Layout, group_bytes, group_width


def reference_hashed_gather(packed: Tensor, rows: Tensor, *, width: int, layout: Layout) -> Tensor:
    """Same signature and shapes as `hashed_gather`."""
    group = group_width(width)
    groups = packed[rows.flatten()].reshape(-1, group_bytes(width, layout))
    if layout == "fp16":
        values = groups.view(torch.float16).float()
    elif layout == "int8":
        scale, bias = groups[:, group:].clone(memory_format=torch.contiguous_format).view(torch.float32).unbind(1)
        values = groups[:, :group].float() * scale[:, None] + bias[:, None]
    else:
        scale, bias = (
            groups[:, group // 2 :].clone(memory_format=torch.contiguous_format).view(torch.float16).float().unbind(1)
        )
        halves = groups[:, : group // 2]
        numbers = torch.stack([halves & 15, halves >> 4], dim=2).flatten(1)
        values = numbers.float() * scale[:, None] + bias[:, None]
    return values.reshape(len(rows), rows.shape[1] * width)
