"""Launch parameters of Triton kernels: tile sizes, warps and stages, from a small table and not by autotuning.

`python -m spoor.kernels.compiled` compiles every entry for every target; none spills registers or exceeds shared memory
(docs/kernels.md shows the result). Autotuning would repeat its search in every process and for every length.

Legend: D floats per head, M rows of a query tile, L rows of a key tile.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from triton import knobs

WIDEST_HEAD = 128
NARROWEST_DOT = 16  # minimum side of tl.dot on NVIDIA for 16-bit types; the interpreter takes less
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Launch:
    """`block_m`, `block_n`: rows of query and key tiles; `warps`, `stages`: Triton's options; `backward`: the launch of
    the backward kernels, which hold more tiles at once."""

    head_dim: int
    block_m: int
    block_n: int
    warps: int
    stages: int
    backward: Launch | None = None  # None: as forward

    @property
    def block_d(self) -> int:
        return max(1 << (self.head_dim - 1).bit_length(), NARROWEST_DOT)

    @property
    def constants(self) -> dict[str, int]:
        """Compile-time constants of every attention kernel."""
        return {
            "HEAD_DIM": self.head_dim,
            "BLOCK_D": self.block_d,
            "BLOCK_M": self.block_m,
            "BLOCK_N": self.block_n,
        }

    @property
    def options(self) -> dict[str, Any]:
        return {"num_warps": self.warps, "num_stages": self.stages}


def choose_launch(dtype: torch.dtype, head_dim: int, *, amd: bool) -> Launch:
    """The launch for a type, head width and GPU maker. Raises ValueError for types and widths the kernels reject."""
    if dtype not in DTYPES:
        raise ValueError(f"the Triton kernels take {', '.join(map(str, DTYPES))}; found {dtype}")
    if not 1 <= head_dim <= WIDEST_HEAD:
        raise ValueError(f"the Triton kernels take heads of 1 to {WIDEST_HEAD} floats; found {head_dim}")
    wide = head_dim > 64
    if dtype == torch.float32:  # products without tensor cores: registers are the bottleneck
        return Launch(head_dim, 16 if wide else 32, 16, 8, 1)
    tile = 32 if wide else 64
    backward_tile = 32 if wide or (amd and head_dim > 32) else 64
    backward = Launch(head_dim, 16 if wide else backward_tile, backward_tile, 4, 1 if wide else 2)
    return Launch(head_dim, 64, tile, 4, 2, backward)


def launch_for(x: Tensor) -> Launch:
    """The launch for a tensor [rows, H, D]."""
    return choose_launch(x.dtype, x.shape[2], amd=torch.version.hip is not None)


def dot_in_storage_type(x: Tensor) -> bool:
    """Whether products take tiles in their storage type. The interpreter cannot multiply bfloat16."""
    return x.dtype != torch.float32 and not knobs.runtime.interpret
