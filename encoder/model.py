"""The user encoder, after PinFM (arXiv 2507.12704, sections 1.2 to 1.5 of our notes).

- An item is n rows of n hashed tables, concatenated; unknown items share row 0 of every table.
- An event is the sum of its item, action and surface embeddings. No content, no time: order alone.
- phi_in (MLP, L2 norm), a pre-LN causal transformer with rotary positions, phi_out (MLP, L2 norm).
- Targets have a head of their own, psi (MLP, L2 norm): a user vector times an item vector is the next-item score.
- Rotary positions, not learned ones: a score depends on how far apart two events are, not on where a history starts.
- The learned temperature has a floor, so that the loss cannot sharpen without end.
- Left out: other losses than next token, content vectors, an output bias per item.

Legend: N events of all users together (jagged), U users, T tables, R rows, W floats in a row, H heads, D floats per
head, M items, C = config.width, E = config.dimension.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from encoder.config import ModelConfig
from kernels.jagged_attention import jagged_attention

_ROTARY_BASE = 10_000.0


class ItemTables(nn.Module):
    """Hashed item embeddings. `rows` int64 [vocabulary + 1, T]: the rows of each known item, index 0 the unknown."""

    def __init__(self, config: ModelConfig, rows: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.hash_functions * config.table_rows, config.table_width))
        first_rows = torch.arange(config.hash_functions) * config.table_rows
        self.register_buffer("flat_rows", rows + first_rows, persistent=False)
        self.flat_rows: Tensor

    def forward(self, items: Tensor) -> Tensor:
        """int64 [M] vocabulary indexes to [M, T * W]."""
        return F.embedding(self.flat_rows[items], self.weight).flatten(1)


class Head(nn.Module):
    """A pointwise two-layer MLP whose output has L2 norm 1."""

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(inputs, hidden)
        self.out = nn.Linear(hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs] to [N, outputs], each row of norm 1."""
        return F.normalize(self.out(F.gelu(self.hidden(x))), dim=-1)


class Block(nn.Module):
    """One pre-LN transformer block."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.attention_norm = nn.LayerNorm(config.width)
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.attention_out = nn.Linear(config.width, config.width)
        self.feed_forward_norm = nn.LayerNorm(config.width)
        self.feed_forward_in = nn.Linear(config.width, config.feed_forward_width)
        self.feed_forward_out = nn.Linear(config.feed_forward_width, config.width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_NC: Tensor, offsets: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
        """[N, C] to [N, C]; `turn`: cosines and sines of the positions, [N, 1, D / 2] each."""
        qkv_N3HD = self.qkv(self.attention_norm(x_NC)).unflatten(-1, (3, self.heads, -1))
        q, k, v = qkv_N3HD.unbind(1)
        attended = jagged_attention(_rotate(q, turn), _rotate(k, turn), v, offsets)
        x_NC = x_NC + self.dropout(self.attention_out(attended.flatten(1)))
        hidden = F.gelu(self.feed_forward_in(self.feed_forward_norm(x_NC)))
        return x_NC + self.dropout(self.feed_forward_out(hidden))


class UserEncoder(nn.Module):
    """`item_rows` int64 [vocabulary + 1, T]; `actions` and `surfaces` count the known names, without the unknown."""

    def __init__(self, config: ModelConfig, *, item_rows: Tensor, actions: int, surfaces: int) -> None:
        super().__init__()
        self.config = config
        self.items = ItemTables(config, item_rows)
        self.actions = nn.Embedding(1 + actions, config.item_width)
        self.surfaces = nn.Embedding(1 + surfaces, config.item_width)
        self.phi_in = Head(config.item_width, config.width, config.width)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList([Block(config) for _ in range(config.layers)])
        self.final_norm = nn.LayerNorm(config.width)
        self.phi_out = Head(config.width, config.feed_forward_width, config.dimension)
        self.psi = Head(config.item_width, config.feed_forward_width, config.dimension)
        self.log_temperature = nn.Parameter(torch.tensor(math.log(config.temperature)))

    def forward(self, items: Tensor, actions: Tensor, surfaces: Tensor, offsets: Tensor) -> Tensor:
        """int64 [N] vocabulary indexes and offsets [U + 1] to [N, E]: a vector of norm 1 after each event."""
        return self.phi_out(self.final_norm(self._transform(items, actions, surfaces, offsets)))

    def last(self, items: Tensor, actions: Tensor, surfaces: Tensor, offsets: Tensor) -> Tensor:
        """As `forward`, but [U, E]: only the vector after each user's last event. No user may be empty."""
        x_NC = self._transform(items, actions, surfaces, offsets)
        return self.phi_out(self.final_norm(x_NC[offsets[1:] - 1]))

    def targets(self, items: Tensor) -> Tensor:
        """int64 [M] vocabulary indexes to item vectors [M, E] of norm 1, in the space of the user vectors."""
        return self.psi(self.items(items))

    @property
    def temperature(self) -> Tensor:
        """By which scores are divided in the loss: a positive scalar, never below the floor."""
        return self.log_temperature.exp().clamp_min(self.config.temperature_floor)

    def initialise(self, seed: int) -> None:
        """Draws every parameter anew, independent of the process's own random state.

        | layer                               | distribution                              |
        |-------------------------------------|-------------------------------------------|
        | item tables, actions, surfaces      | normal, deviation 0.02                    |
        | linear weights                      | normal, deviation 1 / sqrt(inputs)        |
        | last linear of a residual branch    | the same, divided by sqrt(2 x layers)     |
        | biases; gains of norms              | 0; 1                                      |
        """
        generator = torch.Generator().manual_seed(seed)
        for table in (self.items.weight, self.actions.weight, self.surfaces.weight):
            nn.init.normal_(table, std=0.02, generator=generator)
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                deviation = 1 / math.sqrt(module.in_features)
                if name.endswith(("attention_out", "feed_forward_out")):
                    deviation /= math.sqrt(2 * self.config.layers)
                nn.init.normal_(module.weight, std=deviation, generator=generator)
                nn.init.zeros_(module.bias)

    def _transform(self, items: Tensor, actions: Tensor, surfaces: Tensor, offsets: Tensor) -> Tensor:
        summed = self.items(items) + self.actions(actions) + self.surfaces(surfaces)
        # Times sqrt(C): a unit vector has elements far below 1, where the residual stream wants about 1.
        x_NC = self.dropout(self.phi_in(summed) * math.sqrt(self.config.width))
        turn = self._turn(offsets)
        for block in self.blocks:
            x_NC = block(x_NC, offsets, turn)
        return x_NC

    def _turn(self, offsets: Tensor) -> tuple[Tensor, Tensor]:
        half = self.config.width // self.config.heads // 2
        positions = torch.arange(int(offsets[-1]), device=offsets.device)
        positions = positions - offsets[:-1].repeat_interleave(offsets.diff())
        speeds = _ROTARY_BASE ** (-torch.arange(half, device=offsets.device) / half)
        angles = (positions[:, None] * speeds)[:, None, :]
        return angles.cos(), angles.sin()


def _rotate(x_NHD: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary positions: turns the pair (x[d], x[d + D / 2]) by its position times the pair's speed."""
    cos, sin = turn
    first, second = x_NHD.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
