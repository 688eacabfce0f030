"""DCAT's two passes over a user encoder (PinFM, arXiv 2507.12704): each history once, however many candidates it has.

`context` runs the causal transformer over the histories and keeps every layer's keys and values; `cross` appends each
candidate as a last token without action and reads them. Attention is causal, so no history ever sees a candidate and
the result is that of the plain transformer over history + candidate (dcat_reference.py).

- A candidate takes index n, the one that the next event had in pretraining. A learnable token, where there is one, is
  put between history and candidate as a part of the context, at index n too: it shifts nobody.
- Rotate replace: with `window` slots, a candidate that finds them full takes the place of the oldest, which it then
  does not see. Its index stays n, and the events' own outputs stay those of the full window.

Legend: N events of all users together (jagged), U users, C candidates, H heads, D floats per head, A = config.width,
I = config.item_width, E = config.dimension.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from encoder.model import Block, UserEncoder
from kernels.dcat_attention import dcat_attention
from kernels.jagged_attention import jagged_attention


@dataclass(frozen=True, eq=False)
class Context:
    """`keys` and `values`: per layer [N', H, D], N' = N, or N + U with a learnable token; `offsets` int64 [U + 1] into
    them; `lengths` int64 [U]: events of each history; `outputs` [N, E]: user vectors after each event, if asked for."""

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    offsets: Tensor
    lengths: Tensor
    outputs: Tensor | None


def context(
    model: UserEncoder,
    items: Tensor,
    actions: Tensor,
    surfaces: Tensor,
    offsets: Tensor,
    log_gaps: Tensor | None = None,
    *,
    token: Tensor | None = None,
    outputs: bool = True,
) -> Context:
    """The context pass. Events as `UserEncoder.forward` takes them; users without events are allowed.

    `token` float [A]: the learnable token. Without `outputs` the last layer stops at its keys and values, which is all
    that candidates need.
    """
    users = _users(offsets, items.shape[0])
    positions = torch.arange(items.shape[0], device=items.device) - offsets[users]
    x = model.embed(items, actions, surfaces, positions, log_gaps)
    lengths, rows = offsets.diff(), None
    if token is not None:
        rows = torch.arange(items.shape[0], device=items.device) + users
        token_rows = offsets[1:] + torch.arange(lengths.shape[0], device=items.device)
        order = torch.cat([rows, token_rows]).argsort()
        x = torch.cat([x, token.expand(lengths.shape[0], -1)]).index_select(0, order)
        positions = torch.cat([positions, lengths]).index_select(0, order)
        offsets = offsets + torch.arange(offsets.shape[0], device=offsets.device)
    turn = model.rotary(positions)
    keys, values = [], []
    for layer, block in enumerate(_blocks(model), 1):
        q, k, v = block.queries_keys_values(x, turn)
        keys.append(k)
        values.append(v)
        if outputs or layer < model.config.layers:
            x = block.after_attention(x, jagged_attention(q, k, v, offsets))
    events = x if rows is None else x.index_select(0, rows)
    vectors = model.user_vectors(events) if outputs else None
    return Context(tuple(keys), tuple(values), offsets, lengths, vectors)


def cross(
    model: UserEncoder,
    history: Context,
    items: Tensor,
    surfaces: Tensor,
    candidate_user: Tensor,
    log_gaps: Tensor | None = None,
    *,
    content: Tensor | None = None,
    window: int | None = None,
) -> Tensor:
    """The crossing pass: the output at each candidate, [C, E].

    `items`, `surfaces` int64 [C]: vocabulary indexes of the candidates, and where they are shown; `candidate_user`
    int64 [C]: whose history each of them reads; `log_gaps` float32 [C]: time since the newest event, where the
    configuration has time_gaps; `content` float [C, I]: added to the candidates' embeddings; `window`: slots for
    rotate replace, None = as many as it takes.
    """
    positions = history.lengths[candidate_user]
    x = model.embed(items, None, surfaces, positions, log_gaps, content=content)
    turn = model.rotary(positions)
    hidden = None if window is None else hidden_rows(history.offsets, window=window)
    for block, keys, values in zip(_blocks(model), history.keys, history.values, strict=True):
        q, k, v = block.queries_keys_values(x, turn)
        crossed = dcat_attention(q, k, v, keys, values, history.offsets, candidate_user, hidden=hidden)
        x = block.after_attention(x, crossed)
    return model.user_vectors(x)


def hidden_rows(offsets: Tensor, *, window: int) -> Tensor:
    """int64 [U]: how many of a context's oldest rows its candidates do not see, so that with themselves they see at
    most `window`."""
    return (offsets.diff() + 1 - window).clamp_min(0)


def _users(offsets: Tensor, events: int) -> Tensor:
    return torch.searchsorted(offsets, torch.arange(events, device=offsets.device), right=True) - 1


def _blocks(model: UserEncoder) -> list[Block]:
    return [block for block in model.blocks if isinstance(block, Block)]
