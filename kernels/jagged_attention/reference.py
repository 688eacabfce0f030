"""Reference for jagged attention: a loop over sequences, one softmax each.

Slow. Tests compare the outputs and gradients of every other implementation with it.
"""

import itertools
import math

import torch
from torch import Tensor


def reference_jagged_attention(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, *, causal: bool = True) -> Tensor:
    """Same signature and shapes as `jagged_attention`; inputs are not checked."""
    bounds = offsets.tolist()
    outputs = [v[:0]]
    for start, end in itertools.pairwise(bounds):
        length = end - start
        scores_HLL = torch.einsum("lhd,mhd->hlm", q[start:end], k[start:end]) / math.sqrt(q.shape[2])
        if causal:
            later = torch.ones(length, length, dtype=torch.bool, device=q.device).triu(diagonal=1)
            scores_HLL = scores_HLL.masked_fill(later, -math.inf)
        outputs.append(torch.einsum("hlm,mhd->lhd", scores_HLL.softmax(dim=-1), v[start:end]))
    return torch.cat(outputs)
