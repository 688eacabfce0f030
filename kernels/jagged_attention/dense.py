"""Jagged attention as one masked product of all events with all events, for torch.export.

No shape or branch depends on data, so the pass can be traced with dynamic sizes. It computes N x N scores, no more than
other versions for a batch of one user, which is what an exported module serves.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def attend_densely(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, *, causal: bool = True) -> Tensor:
    """Same signature and shapes as `jagged_attention`; inputs are not checked."""
    rows = torch.arange(q.shape[0], device=q.device)
    sequence = torch.searchsorted(offsets, rows, right=True)
    seen_NN = sequence.unsqueeze(1) == sequence.unsqueeze(0)
    if causal:
        seen_NN = seen_NN & (rows.unsqueeze(1) >= rows.unsqueeze(0))
    q_1HND, k_1HND, v_1HND = (x.transpose(0, 1).unsqueeze(0) for x in (q, k, v))
    attended = F.scaled_dot_product_attention(q_1HND, k_1HND, v_1HND, attn_mask=seen_NN)
    return attended.squeeze(0).transpose(0, 1)
