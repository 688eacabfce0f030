"""The settings of the kernels: section [kernels]."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Choice = Literal["auto", "cpu", "triton"]


@dataclass(frozen=True)
class KernelSettings:
    backend: Choice = "auto"  # of attention: Triton, or PyTorch's operations; auto = Triton for tensors on a GPU
