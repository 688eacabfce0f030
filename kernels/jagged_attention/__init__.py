"""Jagged attention: softmax attention inside each sequence of a jagged batch.

    out[i] = sum_j softmax_j(q[i] . k[j] / sqrt(D)) v[j]     over j in the sequence of i (and j <= i when causal)

Legend: N events of all sequences together, H heads, D dimensions per head, U sequences. Sequence u holds the rows
offsets[u] to offsets[u + 1]. `reference.py` says what is computed, `cpu.py` computes it fast without a GPU, `triton.py`
on one, `dense.py` in a form that torch.export can trace.
"""

import torch
from torch import Tensor

from spoor.kernels.backend import backend_of
from spoor.kernels.jagged_attention.cpu import attend_in_buckets
from spoor.kernels.jagged_attention.dense import attend_densely
from spoor.kernels.offsets import checked_offsets

__all__ = ["jagged_attention"]

_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def jagged_attention(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, *, causal: bool = True) -> Tensor:
    """Attention inside each sequence; sequences of length 0 and 1 are allowed, and differentiable in q, k and v.

    Shapes: q, k, v float [N, H, D], offsets int64 [U + 1] from 0 to N without a decrease. Returns [N, H, D].
    Raises ValueError when shapes, types or offsets do not fit; Triton's kernels take neither float64 nor heads wider
    than 128 floats.
    """
    if torch.compiler.is_exporting():
        return attend_densely(q, k, v, offsets, causal=causal)
    _check_tensors(q, k, v)
    bounds = checked_offsets(offsets, events=q.shape[0])
    if backend_of(q) == "triton":
        from spoor.kernels.jagged_attention.triton import attend_on_gpu

        return attend_on_gpu(q, k, v, offsets, causal=causal)
    return attend_in_buckets(q, k, v, bounds, causal=causal)


def _check_tensors(q: Tensor, k: Tensor, v: Tensor) -> None:
    if q.dim() != 3:
        raise ValueError(f"q must have the shape [events, heads, dimensions]; found {list(q.shape)}")
    for name, other in (("k", k), ("v", v)):
        if other.shape != q.shape:
            raise ValueError(f"{name} must have the shape of q, {list(q.shape)}; found {list(other.shape)}")
        if other.dtype != q.dtype or other.device != q.device:
            raise ValueError(f"{name} must be {q.dtype} on {q.device} as q is; found {other.dtype} on {other.device}")
    if q.dtype not in _DTYPES:
        raise ValueError(f"q, k and v must be of a floating type ({', '.join(map(str, _DTYPES))}); found {q.dtype}")
