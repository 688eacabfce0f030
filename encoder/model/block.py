"""One pre-LN transformer block of the user encoder, with rotary positions.

Legend: N events of all users together (jagged), H heads, D floats per head, F = D / 2, P = 3 (queries, keys, values)
or fewer, C = config.width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spoor.encoder.model.config import ModelConfig
from spoor.encoder.model.elementwise import Affine, Dropout, affine, feed_forward, same, turned

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]  # queries, keys and values [N, H, D] to [N, H, D]


class _Before(NamedTuple):
    """Weights used before attention. `projection`: to queries, keys and values, [3 * C, C] and [3 * C], in the order
    of `Block.pairs`."""

    norm: Affine
    projection: Affine


class _After(NamedTuple):
    """Weights used after attention."""

    attention_out: Affine
    norm: Affine
    hidden: Affine
    out: Affine


class Block(nn.Module):
    """Two halves; the caller supplies the attention between them."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.attention_norm = nn.LayerNorm(config.width)
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.register_buffer("pairs", _pairs_side_by_side(config), persistent=False)
        self.pairs: Tensor
        self.attention_out = nn.Linear(config.width, config.width)
        self.feed_forward_norm = nn.LayerNorm(config.width)
        self.feed_forward_in = nn.Linear(config.width, config.feed_forward_width)
        self.feed_forward_out = nn.Linear(config.feed_forward_width, config.width)
        self.dropout = Dropout(config.dropout)
        self.frozen: tuple[_Before, _After] | None = None

    def forward(self, x_NC: Tensor, turn_NP1F: Tensor, attend: Attention) -> Tensor:
        """[N, C] to [N, C]; `turn_NP1F`: rotations of the rows' positions, from `UserEncoder.rotary`."""
        return self.after_attention(x_NC, attend(*self.queries_keys_values(x_NC, turn_NP1F)))

    def queries_keys_values(self, x_NC: Tensor, turn_NP1F: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[N, C] to three times [N, H, D]; queries and keys are rotated by their positions."""
        q, k, v = self._projected(x_NC, turn_NP1F).unbind(1)
        return q, k, v

    def keys_values(self, x_NC: Tensor, turn_NP1F: Tensor) -> tuple[Tensor, Tensor]:
        """As `queries_keys_values`, without the queries."""
        k, v = self._projected(x_NC, turn_NP1F, slice(1, 3)).unbind(1)
        return k, v

    def queries(self, x_NC: Tensor, turn_NP1F: Tensor) -> Tensor:
        """As `queries_keys_values`, only the queries."""
        return self._projected(x_NC, turn_NP1F, slice(0, 1)).squeeze(1)

    def after_attention(self, x_NC: Tensor, attended_NHD: Tensor) -> Tensor:
        """The block's input [N, C] and its attention's output [N, H, D] to the block's output [N, C]."""
        weights = self.frozen[1] if self.frozen else self._after()
        dropout = self.dropout if self.training else same
        x_NC = x_NC + dropout(F.linear(attended_NHD.flatten(1), *weights.attention_out))
        normed_NC = F.layer_norm(x_NC, x_NC.shape[1:], *weights.norm)
        return x_NC + dropout(feed_forward(normed_NC, weights.hidden, weights.out, dropout))

    def freeze(self) -> None:
        """See `UserEncoder.freeze`. Looking up a module's parameter takes microseconds, which small requests notice."""
        with torch.no_grad():
            self.frozen = self._before(), self._after()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Block:
        """Moves to another device or type, the frozen weights too."""
        super()._apply(fn, recurse)
        if self.frozen:
            self.freeze()
        return self

    def _projected(self, x_NC: Tensor, turn_NP1F: Tensor, kinds: slice | None = None) -> Tensor:
        """[N, C] to [N, P, H, D]; `kinds` selects among queries, keys and values; None: all."""
        weights, width = self.frozen[0] if self.frozen else self._before(), x_NC.shape[1]
        weight, bias = weights.projection
        if kinds is not None:
            rows = slice(kinds.start * width, kinds.stop * width)
            weight, bias, turn_NP1F = weight[rows], bias[rows], turn_NP1F[:, kinds]
        projected = F.linear(F.layer_norm(x_NC, (width,), *weights.norm), weight, bias)
        return turned(projected.view(-1, len(bias) // width, self.heads, width // self.heads), turn_NP1F)

    def _before(self) -> _Before:
        weight, bias = affine(self.qkv)
        side_by_side = weight.index_select(0, self.pairs), bias.index_select(0, self.pairs)
        return _Before(affine(self.attention_norm), side_by_side)

    def _after(self) -> _After:
        modules = self.attention_out, self.feed_forward_norm, self.feed_forward_in, self.feed_forward_out
        return _After(*(affine(module) for module in modules))


def _pairs_side_by_side(config: ModelConfig) -> Tensor:
    """int64 [3 * C]: the order in which the rows of `qkv` are used. Rotary positions rotate the pairs (d, d + D / 2)
    of each head's queries and keys; this order puts each pair side by side, as one complex number."""
    rows = torch.arange(3 * config.width).view(3, config.heads, 2, -1)
    rows[:2] = rows[:2].transpose(-1, -2).reshape(rows[:2].shape)
    return rows.flatten()
