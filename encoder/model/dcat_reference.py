"""Reference for dcat.py: the transformer over history + candidate, run once per candidate under an explicit mask.

Slow, and nothing is shared between candidates; it uses the model's layers and an explicit softmax.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from spoor.encoder.model.events import Candidates, Events
from spoor.encoder.model.user_encoder import UserEncoder


def reference_cross(
    model: UserEncoder,
    events: Events,
    candidates: Candidates,
    *,
    token: Tensor | None = None,
    window: int | None = None,
) -> Tensor:
    """`context` and `cross` in one, [C, E]."""
    outputs = []
    for number, user in enumerate(candidates.users.tolist()):
        rows = np.arange(int(events.offsets[user]), int(events.offsets[user + 1]))
        positions = torch.arange(len(rows) + 1)
        history = model.embed(events.take(rows, torch.tensor([0, len(rows)])), positions[:-1])
        candidate = model.embed(candidates.take(slice(number, number + 1)), positions[-1:])
        if token is not None:
            history = torch.cat([history, token.unsqueeze(0)])
            positions = torch.cat([positions, positions[-1:]])
        x_LA = torch.cat([history, candidate])
        seen_LL = torch.ones(len(x_LA), len(x_LA), dtype=torch.bool).tril()
        if window is not None:
            seen_LL[-1, : max(0, len(x_LA) - window)] = False  # rotate replace: the candidate takes the oldest slots
        turn = model.rotary(positions)
        for block in model.every_block:
            q, k, v = block.queries_keys_values(x_LA, turn)
            scores_HLL = torch.einsum("lhd,mhd->hlm", q, k) / math.sqrt(q.shape[2])
            weights_HLL = scores_HLL.masked_fill(~seen_LL, -math.inf).softmax(dim=-1)
            x_LA = block.after_attention(x_LA, torch.einsum("hlm,mhd->lhd", weights_HLL, v))
        outputs.append(model.user_vectors(x_LA[-1:]))
    return torch.cat(outputs)
