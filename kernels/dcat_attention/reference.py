"""Reference for crossing attention: a loop over candidates, one softmax each.

Slow. Tests compare the outputs and gradients of every other implementation with it.
"""

import math

import torch
from torch import Tensor


def reference_dcat_attention(
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
    bounds = context_offsets.tolist()
    left_out = [0] * (len(bounds) - 1) if skipped is None else skipped.tolist()
    outputs = [v[:0]]
    for candidate, user in enumerate(candidate_user.tolist()):
        start, end = min(bounds[user] + left_out[user], bounds[user + 1]), bounds[user + 1]
        keys_LHD = torch.cat([k_context[start:end], k[candidate : candidate + 1]])
        values_LHD = torch.cat([v_context[start:end], v[candidate : candidate + 1]])
        scores_HL = torch.einsum("hd,lhd->hl", q[candidate], keys_LHD) / math.sqrt(q.shape[2])
        outputs.append(torch.einsum("hl,lhd->hd", scores_HL.softmax(dim=-1), values_LHD).unsqueeze(0))
    return torch.cat(outputs)
