"""The user encoder, after PinFM (arXiv 2507.12704).

- An item embedding concatenates one row from each of n hashed tables, or is one row; unknown items share row 0.
- An event is the sum of its item, action and surface embeddings and, optionally, of the time since the previous event.
- phi_in (MLP, L2 norm), a pre-LN causal transformer with rotary positions, phi_out (MLP, L2 norm).
- Targets have a separate head, psi (MLP, L2 norm), over the same tables: a user vector times an item vector is the
  score of the next item.
- `residual` projections start as the identity, so a user vector starts as a mixture of item vectors; phi_in then has no
  norm, because the item embeddings it reads have norm 1.
- The `dot` score leaves out the norms of user and item vectors, and the temperature.
- Positions are rotary, not learned: a score depends on the distance of two events, not on the start of the history.
  A position is the event's index within its segment or window.
- The learned temperature has a floor, which bounds how sharp the loss can get.
- `rotated`: a stored, untrained matrix rotates user and item vectors; their products stay the same.
- Left out: content vectors in the history, an output bias per item.

Legend: N events of all users together (jagged), U users, T tables, R rows, W floats in a row, H heads, D floats per
head, F = D / 2, P = 3 (queries, keys, values), M items, C = config.width, E = config.dimension.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from spoor.encoder.model.block import Block
from spoor.encoder.model.config import ModelConfig
from spoor.encoder.model.elementwise import Dropout, affine, feed_forward, unit_rows
from spoor.encoder.model.events import Candidates, Events, rows_and_owners
from spoor.kernels.dcat_attention import dcat_attention
from spoor.kernels.jagged_attention import jagged_attention

_ROTARY_BASE = 10_000.0
_GAP_WIDTH = 32  # hidden floats of a time gap's MLP
Gather = Callable[[Tensor], Tensor]


class ItemTables(nn.Module):
    """Item embeddings. `rows` int64 [vocabulary + 1, T]: the rows of each known item, index 0 the unknown item.
    `gather`: reads packed tables in place of parameters, int64 [M, T] rows to float32 [M, T * W]."""

    def __init__(self, config: ModelConfig, rows: Tensor, gather: Gather | None = None) -> None:
        super().__init__()
        table_rows = config.rows_for(len(rows) - 1)
        self.direct = config.items == "direct"
        self.unit = config.projections == "residual" and config.score == "cosine"
        self.sparse = False  # whether gradients are sparse: only of the rows read
        self._gather = gather
        if gather is None:
            self.weight = nn.Parameter(torch.empty(config.hash_functions * table_rows, config.table_width))
        first_rows = torch.arange(config.hash_functions, device=rows.device) * table_rows
        self.register_buffer("flat_rows", rows + first_rows, persistent=False)
        self.flat_rows: Tensor

    def forward(self, items: Tensor) -> Tensor:
        """int64 [M] vocabulary indexes to [M, T * W]."""
        rows = self.flat_rows[items]
        if self._gather is None:
            embedded = F.embedding(rows, self.weight, sparse=self.sparse).flatten(1)
        else:
            embedded = self._gather(rows)
        return unit_rows(embedded) if self.unit else embedded

    def every_known(self) -> Tensor:
        """As `forward` for all known items in order, [vocabulary, T * W]."""
        if not self.direct or self._gather is not None:
            return self(torch.arange(1, len(self.flat_rows), device=self.flat_rows.device))
        embedded = self.weight[1:]  # a slice avoids a copy and a scattered gradient
        return unit_rows(embedded) if self.unit else embedded


class Projection(nn.Module):
    """A pointwise two-layer MLP; `residual`: added to its input; `unit`: each row of its output has L2 norm 1."""

    def __init__(self, inputs: int, hidden: int, outputs: int, *, residual: bool, unit: bool) -> None:
        super().__init__()
        self.residual = residual
        self.unit = unit
        self.hidden = nn.Linear(inputs, hidden) if hidden else None
        self.out = nn.Linear(hidden, outputs) if hidden else None

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs] to [N, outputs]."""
        if self.hidden is not None and self.out is not None:
            projected = feed_forward(x, affine(self.hidden), affine(self.out))
            x = x + projected if self.residual else projected
        return unit_rows(x) if self.unit else x


class TimeGap(nn.Module):
    """The time since the previous event, as an embedding."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(1, _GAP_WIDTH)
        self.out = nn.Linear(_GAP_WIDTH, width)

    def forward(self, log_gaps: Tensor) -> Tensor:
        """float32 [N], log(1 + seconds), to [N, width]."""
        return self.out(F.gelu(self.hidden(log_gaps[:, None])))


class UserEncoder(nn.Module):
    """`item_rows` int64 [vocabulary + 1, T]; `actions` and `surfaces`: numbers of known names, without the unknown;
    `gather`: of packed item tables (see ItemTables)."""

    def __init__(
        self, config: ModelConfig, *, item_rows: Tensor, actions: int, surfaces: int, gather: Gather | None = None
    ) -> None:
        super().__init__()
        self.config = config
        self.recompute = False  # whether training keeps only the blocks' inputs and recomputes the rest backward
        self.items = ItemTables(config, item_rows, gather)
        self.actions = nn.Embedding(1 + actions, config.item_width)
        self.surfaces = nn.Embedding(1 + surfaces, config.item_width)
        self.time_gap = TimeGap(config.item_width) if config.time_gaps else None
        self.phi_in = _projection(config, config.item_width, config.width, unit=config.projections == "mlp")
        self.dropout = Dropout(config.input_dropout)
        self.blocks = nn.ModuleList([Block(config) for _ in range(config.layers)])
        self.final_norm = nn.LayerNorm(config.width)
        self.phi_out = _projection(config, config.width, config.dimension, unit=config.score == "cosine")
        has_norm_1 = self.items.unit and not config.projection_width  # and psi is the identity
        psi_unit = config.score == "cosine" and not has_norm_1
        self.psi = _projection(config, config.item_width, config.dimension, unit=psi_unit)
        self.register_buffer("rotation", torch.eye(config.dimension) if config.rotated else None)
        self.rotation: Tensor | None
        self.log_temperature = (
            nn.Parameter(torch.tensor(math.log(config.temperature))) if config.score == "cosine" else None
        )

    def forward(self, events: Events) -> Tensor:
        """[N, E]: a user vector after each event, of norm 1 if the score is the cosine."""
        x_NC, _ = self._transform(events, blocks=self.config.layers)
        return self.user_vectors(x_NC)

    def last(self, events: Events, *, lengths: Tensor | None = None) -> Tensor:
        """As `forward`, but [U, E]: only the vector after each user's last event. No user may be empty. `lengths` int64
        [U]: only the first `lengths` events of each user count; None: all.

        In the last block the other events need only keys and values. A last event attends to them like a DCAT
        candidate, which saves most of the block. An exported program would reject batches of only single events."""
        x_NC, turn_NP1F = self._transform(events, blocks=self.config.layers - 1)
        offsets = events.offsets
        lengths = offsets.diff() if lengths is None else lengths
        users = torch.arange(lengths.shape[0], device=offsets.device)
        earlier_offsets = F.pad((lengths - 1).cumsum(0), (1, 0))  # without each user's last event
        rows, owners = rows_and_owners(earlier_offsets, int(lengths.sum()) - lengths.shape[0])
        earlier, last = rows + (offsets[:-1] - earlier_offsets[:-1])[owners], offsets[:-1] + lengths - 1
        block = self.every_block[-1]
        (x_before, turn_before), (x_last, turn_last) = (
            [y.index_select(0, rows) for y in (x_NC, turn_NP1F)] for rows in (earlier, last)
        )
        keys, values = block.keys_values(x_before, turn_before)

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return dcat_attention(q, k, v, keys, values, earlier_offsets, users)

        return self.user_vectors(block(x_last, turn_last, attend))

    def freeze(self) -> UserEncoder:
        """For inference with final weights: computes once what depends only on them. Ignores weights that are loaded
        later. Returns itself."""
        for block in self.every_block:
            block.freeze()
        return self.eval().requires_grad_(False)

    def targets(self, items: Tensor) -> Tensor:
        """int64 [M] vocabulary indexes to item vectors [M, E], in the space of the user vectors."""
        return self._rotated(self.psi(self.items(items)))

    def every_target(self) -> Tensor:
        """As `targets` for all known items in order, [vocabulary, E]."""
        return self._rotated(self.psi(self.items.every_known()))

    def embed(self, rows: Events | Candidates, positions: Tensor) -> Tensor:
        """The input of the first block, [N, C]. A candidate has no action yet."""
        summed = self.items(rows.items) + self.surfaces(rows.surfaces)
        if isinstance(rows, Events):
            summed = summed + self.actions(rows.actions)
        elif rows.content is not None:
            summed = summed + rows.content
        if self.time_gap is not None:
            if rows.log_gaps is None:
                raise ValueError("this model's configuration has time_gaps, so it needs log_gaps")
            # A window may begin anywhere in a history, so the gap before its first event counts as 0.
            summed = summed + self.time_gap(rows.log_gaps.masked_fill(positions == 0, 0.0))
        # Times sqrt(C): the elements of a unit vector are far below 1, the residual stream needs about 1.
        return self.dropout(self.phi_in(summed) * math.sqrt(self.config.width))

    def rotary(self, positions: Tensor) -> Tensor:
        """int64 [N] indexes of events within their windows to complex64 [N, 3, 1, F]: the factors of the pairs of
        floats in queries, keys and values; those of values are 1."""
        half = self.config.width // self.config.heads // 2
        speeds = _ROTARY_BASE ** (-torch.arange(half, device=positions.device) / half)
        angles = positions[:, None, None, None] * speeds
        turn = torch.complex(angles.cos(), angles.sin())
        return torch.cat([turn, turn, torch.ones_like(turn)], dim=1)

    def user_vectors(self, x_NC: Tensor) -> Tensor:
        """The last block's output [N, C] to [N, E]."""
        return self._rotated(self.phi_out(self.final_norm(x_NC)))

    @property
    def every_block(self) -> list[Block]:
        """The blocks, with their type, which nn.ModuleList loses."""
        return [block for block in self.blocks if isinstance(block, Block)]

    @property
    def temperature(self) -> Tensor:
        """The divisor of scores in the loss: a positive scalar, never below the floor; 1 for the dot score."""
        if self.log_temperature is None:
            return self.actions.weight.new_ones(())
        return self.log_temperature.exp().clamp_min(self.config.temperature_floor)

    def initialise(self, seed: int) -> None:
        """Draws every parameter from `seed`, independent of the process's random state.

        | layer                                      | distribution                                          |
        |--------------------------------------------|-------------------------------------------------------|
        | item tables                                | normal, deviation 0.02; read as unit vectors: norm 1  |
        | actions, surfaces                          | normal, deviation 0.02; residual: 0                   |
        | linear weights                             | normal, deviation 1 / sqrt(inputs)                    |
        | last linear of a block's residual branch   | the same, divided by sqrt(2 x layers)                 |
        | last linear of residual projections, gaps  | 0                                                     |
        | biases; gains of norms                     | 0; 1                                                  |
        """
        config, generator = self.config, torch.Generator().manual_seed(seed)
        residual = config.projections == "residual"
        deviation = 1 / math.sqrt(config.item_width) if self.items.unit else 0.02
        nn.init.normal_(self.items.weight, std=deviation, generator=generator)
        for table in (self.actions.weight, self.surfaces.weight):
            nn.init.normal_(table, std=0.0 if residual else 0.02, generator=generator)
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                deviation = 1 / math.sqrt(module.in_features)
                if name.endswith(("attention_out", "feed_forward_out")):
                    deviation /= math.sqrt(2 * config.layers)
                elif residual and name.endswith(".out"):
                    deviation = 0.0
                nn.init.normal_(module.weight, std=deviation, generator=generator)
                nn.init.zeros_(module.bias)

    def _rotated(self, vectors: Tensor) -> Tensor:
        return vectors if self.rotation is None else vectors @ self.rotation

    def _transform(self, events: Events, *, blocks: int) -> tuple[Tensor, Tensor]:
        """The output of the first `blocks` blocks, [N, C], and the rotations of the events' positions."""
        rows, owners = rows_and_owners(events.offsets, events.count)
        positions = rows - events.offsets[owners]
        x_NC, turn_NP1F = self.embed(events, positions), self.rotary(positions)
        attend = partial(jagged_attention, offsets=events.offsets)
        for block in self.every_block[:blocks]:
            if self.recompute and torch.is_grad_enabled():
                x_NC = checkpoint(block, x_NC, turn_NP1F, attend, use_reentrant=False)
            else:
                x_NC = block(x_NC, turn_NP1F, attend)
        return x_NC, turn_NP1F


def _projection(config: ModelConfig, inputs: int, outputs: int, *, unit: bool) -> Projection:
    return Projection(inputs, config.projection_width, outputs, residual=config.projections == "residual", unit=unit)
