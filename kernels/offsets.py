"""Checks of the tensors and offsets of a jagged batch, which each attention operator runs once.

Offsets are checked on the host and returned as NumPy, so a GPU tensor is copied.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Indexes = npt.NDArray[np.int64]
_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def check_tensors(q: Tensor, same: Mapping[str, Tensor], contexts: Mapping[str, Tensor], *, rows: str) -> None:
    """Checks `q` [rows, H, D] of a floating type, `same` of its shape, `contexts` with one number of rows; all have q's
    type and device. Raises ValueError, which names the tensor."""
    if q.dim() != 3:
        raise ValueError(f"q must have the shape [{rows}, heads, dimensions]; found {list(q.shape)}")
    if q.dtype not in _DTYPES:
        raise ValueError(f"q must be of a floating type ({', '.join(map(str, _DTYPES))}); found {q.dtype}")
    of_contexts = [next(iter(contexts.values())).shape[0], *q.shape[1:]] if contexts else []
    for name, other in {**same, **contexts}.items():
        expected, what = (list(q.shape), "of q, ") if name in same else (of_contexts, "")
        if list(other.shape) != expected:
            raise ValueError(f"{name} must have the shape {what}{expected}; found {list(other.shape)}")
        if other.dtype != q.dtype or other.device != q.device:
            raise ValueError(f"{name} must be {q.dtype} on {q.device} as q is; found {other.dtype} on {other.device}")


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
