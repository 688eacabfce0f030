"""Crossing attention as one masked product of all candidates with all context rows, for torch.export.

No shape or branch depends on data, so the pass can be traced with dynamic sizes. It computes C x N scores, no more than
other versions for a batch of one user, which is what an exported module serves.
"""

import math

import torch
from torch import Tensor


def attend_densely(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_context: Tensor,
    v_context: Tensor,
    context_offsets: Tensor,
    candidate_user: Tensor,
    *,
    skipped: Tensor | None = None,
) -> Tensor:
    """Same signature and shapes as `dcat_attention`; inputs are not checked."""
    rows = torch.arange(k_context.shape[0], device=q.device)
    first = context_offsets[:-1] if skipped is None else context_offsets[:-1] + skipped
    seen_CN = (rows >= first[candidate_user].unsqueeze(1)) & (rows < context_offsets[1:][candidate_user].unsqueeze(1))
    scale = 1 / math.sqrt(q.shape[2])
    scores_HCN = torch.einsum("chd,nhd->hcn", q, k_context).float() * scale
    scores_HCN = scores_HCN.masked_fill(~seen_CN, -math.inf)
    own_HC1 = ((q * k).sum(-1).float() * scale).transpose(0, 1).unsqueeze(2)
    weights = torch.cat([scores_HCN, own_HC1], dim=2).softmax(dim=2).to(v.dtype)
    crossed = torch.einsum("hcn,nhd->chd", weights[:, :, :-1], v_context)
    return crossed + weights[:, :, -1].transpose(0, 1).unsqueeze(2) * v
