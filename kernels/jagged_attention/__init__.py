"""Jagged attention: softmax attention inside each sequence of a jagged batch.

    out[i] = sum_j softmax_j(q[i] . k[j] / sqrt(D)) v[j]     over j in the sequence of i (and j <= i when causal)

Legend: N events of all sequences together, H heads, D floats per head, U sequences. Sequence u holds the rows
offsets[u] to offsets[u + 1]. `reference.py` is the slow reference, `cpu.py` the fast CPU version, `triton.py` the GPU
version, `dense.py` a version that torch.export can trace.
"""

import torch
from torch import Tensor

from spoor.kernels.backend import backend_of
from spoor.kernels.jagged_attention.cpu import attend_in_buckets
from spoor.kernels.jagged_attention.dense import attend_densely
from spoor.kernels.offsets import check_tensors, checked_offsets

__all__ = ["jagged_attention"]


def jagged_attention(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, *, causal: bool = True) -> Tensor:
    """Attention inside each sequence, differentiable in q, k and v; sequences of length 0 and 1 are allowed.

    Shapes: q, k, v float [N, H, D], offsets int64 [U + 1] from 0 to N without a decrease. Returns [N, H, D].
    Raises ValueError if shapes, types or offsets do not fit; the Triton kernels reject float64 and heads wider than 128
    floats.
    """
    if torch.compiler.is_exporting():
        return attend_densely(q, k, v, offsets, causal=causal)
    check_tensors(q, {"k": k, "v": v}, {}, rows="events")
    bounds = checked_offsets(offsets, events=q.shape[0])
    if backend_of(q) == "triton":
        from spoor.kernels.jagged_attention.triton import attend_on_gpu

        return attend_on_gpu(q, k, v, offsets, causal=causal)
    return attend_in_buckets(q, k, v, bounds, causal=causal)
