"""Layouts of a row of floats packed into bytes: PyTorch's row-wise layouts, so that its operators read them.

| layout | bytes of a group of 32 floats                                        | B of 32 | B of 128 |
|--------|----------------------------------------------------------------------|---------|----------|
| int4   | 16 of two numbers each, the earlier in the low half; float16 scale, float16 bias | 20 | 80 |
| int8   | 32; float32 scale, float32 bias                                      | 40      | 160      |
| fp16   | 64                                                                   | 64      | 256      |

A number is scale * q + bias; bias is the minimum of its group, scale is (maximum - minimum) / 15 or / 255. A row wider
than 32 is several groups in sequence, each with its scale and bias, because a number's error grows with the spread of
its group. A row whose width is no multiple of 32 is one group; int4 needs an even width.

Legend: R rows, W floats of a row, B bytes of a packed row, G groups of all rows, g floats of a group.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Layout = Literal["int4", "int8", "fp16"]
GROUP = 32


def group_width(width: int) -> int:
    """Floats that share a scale."""
    return GROUP if width % GROUP == 0 else width


def group_bytes(width: int, layout: Layout) -> int:
    """Bytes of a group. Raises ValueError for a width that the layout cannot hold."""
    group = group_width(width)
    if width < 1 or (layout == "int4" and group % 2):
        raise ValueError(f"rows of {width} floats cannot be packed as {layout}: int4 wants an even number of them")
    return {"int4": group // 2 + 4, "int8": group + 8, "fp16": 2 * group}[layout]


def row_bytes(width: int, layout: Layout) -> int:
    """B of a row of `width` floats. Raises ValueError as `group_bytes`."""
    return group_bytes(width, layout) * (width // group_width(width))


def pack_rows(x_RW: Tensor, layout: Layout) -> Tensor:
    """float32 [R, W] on the CPU to uint8 [R, B]. Raises ValueError for a number that is not finite, or too large for
    the layout."""
    rows, width = x_RW.shape
    size = row_bytes(width, layout)
    most = torch.finfo(torch.float16).max if layout != "int8" else torch.finfo(torch.float32).max / 2  # of the spread
    if rows and not bool((x_RW.abs() <= most).all()):  # a NaN compares false
        raise ValueError(f"a table holds a number that {layout} cannot: not finite, or beyond {most:.0f}")
    if layout == "fp16":
        return x_RW.to(torch.float16).contiguous().view(torch.uint8)
    groups = x_RW.reshape(-1, group_width(width)).contiguous()
    if not len(groups):
        return torch.empty(0, size, dtype=torch.uint8)
    pack = {
        "int4": torch.ops.quantized.embedding_bag_4bit_prepack,
        "int8": torch.ops.quantized.embedding_bag_byte_prepack,
    }
    return pack[layout](groups).view(rows, size)
