"""DCAT's two passes over a user encoder (PinFM, arXiv 2507.12704): each history is encoded once for all candidates.

`context` runs the causal transformer over the histories and keeps every layer's keys and values; `cross` appends each
candidate as a last token without action and reads them; `context_and_cross` does both at once. Attention is causal, so
no history sees a candidate and the result equals the plain transformer over history + candidate (dcat_reference.py).

- A candidate takes index n, the index of the next event in pretraining. The optional learnable token comes between
  history and candidate as part of the context. It has index n too, so no other index changes.
- Rotate replace: `window` limits the slots. If they are full, a candidate replaces the oldest context row and does not
  see it. Its index stays n, and the outputs of the events stay those of the full window.

Legend: N events of all users together (jagged), U users, C candidates, H heads, D floats per head, A = config.width,
I = config.item_width, E = config.dimension.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from spoor.encoder.model.events import Candidates, Events, rows_and_owners
from spoor.encoder.model.user_encoder import UserEncoder
from spoor.kernels.dcat_attention import dcat_attention
from spoor.kernels.jagged_attention import jagged_attention
from spoor.kernels.joint_attention import joint_attention


@dataclass(frozen=True, eq=False)
class Context:
    """`keys` and `values`: per layer [N', H, D], N' = N, or N + U with a learnable token; `offsets` int64 [U + 1] into
    them; `lengths` int64 [U]: events of each history; `outputs` [N, E]: user vectors after each event, if requested."""

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    offsets: Tensor
    lengths: Tensor
    outputs: Tensor | None


def context(model: UserEncoder, events: Events, *, token: Tensor | None = None, outputs: bool = True) -> Context:
    """The context pass. Users without events are allowed.

    `token` float [A]: the learnable token. Without `outputs` the last layer only computes its keys and values, which
    suffice for candidates.
    """
    entered = _enter(model, events, token)
    x, turn = entered.x, model.rotary(entered.positions)
    keys, values = [], []
    for layer, block in enumerate(model.every_block, 1):
        if outputs or layer < model.config.layers:
            q, *own = block.queries_keys_values(x, turn)
            k, v = (y.contiguous() for y in own)  # a view would keep the whole projection in memory
            x = block.after_attention(x, jagged_attention(q, k, v, entered.offsets))
        else:
            k, v = (y.contiguous() for y in block.keys_values(x, turn))
        keys.append(k)
        values.append(v)
    vectors = entered.vectors(model, x) if outputs else None
    return Context(tuple(keys), tuple(values), entered.offsets, entered.lengths, vectors)


def cross(model: UserEncoder, history: Context, candidates: Candidates, *, window: int | None = None) -> Tensor:
    """The crossing pass: the output at each candidate, [C, E]. `window`: slots for rotate replace, None = no limit."""
    positions = history.lengths[candidates.users]
    x, turn = model.embed(candidates, positions), model.rotary(positions)
    skipped = None if window is None else skipped_rows(history.offsets, window=window)
    for block, keys, values in zip(model.every_block, history.keys, history.values, strict=True):

        def attend(q: Tensor, k: Tensor, v: Tensor, keys: Tensor = keys, values: Tensor = values) -> Tensor:
            return dcat_attention(q, k, v, keys, values, history.offsets, candidates.users, skipped=skipped)

        x = block(x, turn, attend)
    return model.user_vectors(x)


def context_and_cross(
    model: UserEncoder,
    events: Events,
    candidates: Candidates,
    *,
    token: Tensor | None = None,
    window: int | None = None,
    outputs: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Both passes in one, for contexts that are read once: events and candidates pass each layer together, so its
    weights are read once. Returns the output at each candidate [C, E] and, if requested, the user vectors after each
    event [N, E]. `token` and `window` as in `context` and `cross`.
    """
    entered = _enter(model, events, token)
    positions = entered.lengths[candidates.users]
    x = torch.cat([entered.x, model.embed(candidates, positions)])
    rows = entered.x.shape[0]  # len() would make it a constant in an export
    turn = model.rotary(torch.cat([entered.positions, positions]))
    skipped = None if window is None else skipped_rows(entered.offsets, window=window)
    attention = joint_attention(entered.offsets, candidates.users, rows=rows, skipped=skipped, like=x)
    *blocks, last = model.every_block
    for block in [*blocks, last] if outputs else blocks:
        x = block(x, turn, attention.both)
    if outputs:
        return model.user_vectors(x[rows:]), entered.vectors(model, x[:rows])
    keys, values = last.keys_values(x, turn)
    q = last.queries(x[rows:], turn[rows:])
    return model.user_vectors(last.after_attention(x[rows:], attention.crossing(q, keys, values))), None


def skipped_rows(offsets: Tensor, *, window: int) -> Tensor:
    """int64 [U]: how many of a context's oldest rows are hidden from its candidates, so that each candidate sees at
    most `window` rows, itself included."""
    return (offsets.diff() + 1 - window).clamp_min(0)


@dataclass(frozen=True, eq=False)
class _Entered:
    """Input of the first block: `x` [N', A], its `positions` int64 [N'], `offsets` int64 [U + 1] into it; `lengths`
    int64 [U]: events of each history; `events` int64 [N]: the rows of events, None = all."""

    x: Tensor
    positions: Tensor
    offsets: Tensor
    lengths: Tensor
    events: Tensor | None

    def vectors(self, model: UserEncoder, x: Tensor) -> Tensor:
        """The last block's output [N', A] to user vectors after each event [N, E]."""
        return model.user_vectors(x if self.events is None else x.index_select(0, self.events))


def _enter(model: UserEncoder, events: Events, token: Tensor | None) -> _Entered:
    rows, users = rows_and_owners(events.offsets, events.count)
    positions, lengths = rows - events.offsets[users], events.offsets.diff()
    x = model.embed(events, positions)
    if token is None:
        return _Entered(x, positions, events.offsets, lengths, None)
    each = torch.arange(lengths.shape[0], device=rows.device)
    order = torch.cat([rows + users, events.offsets[1:] + each]).argsort()
    x = torch.cat([x, token.expand(lengths.shape[0], -1)]).index_select(0, order)
    positions = torch.cat([positions, lengths]).index_select(0, order)
    offsets = events.offsets + torch.arange(events.offsets.shape[0], device=rows.device)
    return _Entered(x, positions, offsets, lengths, rows + users)
