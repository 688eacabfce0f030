"""What DCAT must equal: the transformer over history + candidate, once for every candidate, under an explicit mask.

Nothing here is fast or shared between candidates; it uses the model's own layers and a softmax written out.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from spoor.encoder.model.user_encoder import UserEncoder


def reference_cross(
    model: UserEncoder,
    events: tuple[Tensor, Tensor, Tensor],
    offsets: Tensor,
    candidates: tuple[Tensor, Tensor],
    candidate_user: Tensor,
    *,
    log_gaps: tuple[Tensor, Tensor] | None = None,
    token: Tensor | None = None,
    content: Tensor | None = None,
    window: int | None = None,
) -> Tensor:
    """`context` and `cross` in one, [C, E]. `events`: items, actions, surfaces int64 [N]; `candidates`: items, surfaces
    int64 [C]; `log_gaps`: of events [N] and of candidates [C]."""
    outputs = []
    for number, user in enumerate(candidate_user.tolist()):
        start, end = int(offsets[user]), int(offsets[user + 1])
        own = slice(number, number + 1)
        gaps = (None, None) if log_gaps is None else (log_gaps[0][start:end], log_gaps[1][own])
        positions = torch.arange(end - start + 1)
        items, actions, surfaces = (column[start:end] for column in events)
        history = model.embed(items, actions, surfaces, positions[:-1], gaps[0])
        candidate = model.embed(
            candidates[0][own],
            None,
            candidates[1][own],
            positions[-1:],
            gaps[1],
            content=None if content is None else content[own],
        )
        if token is not None:
            history = torch.cat([history, token.unsqueeze(0)])
            positions = torch.cat([positions, positions[-1:]])
        x_LA = torch.cat([history, candidate])
        seen_LL = torch.ones(len(x_LA), len(x_LA), dtype=torch.bool).tril()
        if window is not None:
            seen_LL[-1, : max(0, len(x_LA) - window)] = False  # the slots that the candidate has taken over
        turn = model.rotary(positions)
        for block in model.every_block:
            q, k, v = block.queries_keys_values(x_LA, turn)
            scores_HLL = torch.einsum("lhd,mhd->hlm", q, k) / math.sqrt(q.shape[2])
            weights_HLL = scores_HLL.masked_fill(~seen_LL, -math.inf).softmax(dim=-1)
            x_LA = block.after_attention(x_LA, torch.einsum("hlm,mhd->lhd", weights_HLL, v))
        outputs.append(model.user_vectors(x_LA[-1:]))
    return torch.cat(outputs)
