"""Offsets of a jagged batch, checked once by each operator that takes them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Indexes = npt.NDArray[np.int64]


def checked_offsets(offsets: Tensor, *, events: int, name: str = "offsets") -> Indexes:
    """`offsets` int64 [U + 1] on the host. Raises ValueError unless they run from 0 to `events` without a decrease."""
    if offsets.dim() != 1 or offsets.shape[0] < 1 or offsets.dtype != torch.int64:
        raise ValueError(
            f"{name} must be int64 of the shape [sequences + 1], at least [1]; "
            f"found {offsets.dtype} {list(offsets.shape)}"
        )
    bounds = offsets.cpu().numpy()
    if bounds[0] != 0 or bounds[-1] != events:
        raise ValueError(f"{name} must run from 0 to {events} events; found {bounds[0]} to {bounds[-1]}")
    if (bounds[1:] < bounds[:-1]).any():
        raise ValueError(f"{name} must not decrease")
    return bounds
