"""Attention of contexts and of their candidates in one block of rows, contexts first.

In general it calls `jagged_attention` and `dcat_attention`. For one user's request with few candidates on the CPU,
launch overhead dominates; two fused calls of PyTorch's attention suffice, and the mask is built once for all layers.
The first call attends inside the older half of a short context (all of a long one); in the second, every later row
reads the whole block under the mask. Rows must be finite: a mask does not hide NaN.

Legend: N context rows of all users together, C candidates, R = N + C, U users, H heads, D floats per head.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from spoor.kernels.backend import backend_of
from spoor.kernels.dcat_attention import checked_users, dcat_attention
from spoor.kernels.jagged_attention import jagged_attention
from spoor.kernels.offsets import checked_offsets

_FEW_CANDIDATES = 64  # with 128, the masked keys cost as much as the saved operations
_SHORT_CONTEXT = 512  # key block of PyTorch's causal attention, which also computes hidden scores inside a block


class JointAttention(Protocol):
    """Inputs and results as of `jagged_attention` and `dcat_attention`."""

    def both(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """[R, H, D] three times to [R, H, D]: causal inside a context; a candidate over its context and itself."""
        ...

    def crossing(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Only the candidates: q [C, H, D], k and v [R, H, D], to [C, H, D]."""
        ...


def joint_attention(
    offsets: Tensor, candidate_user: Tensor, *, rows: int, skipped: Tensor | None, like: Tensor
) -> JointAttention:
    """The attention for all layers of one pass. `offsets` int64 [U + 1] into the `rows` = N of the contexts;
    `candidate_user` int64 [C] and `skipped` int64 [U] as in `dcat_attention`; `like`: a tensor with the device and type
    of q, k and v. Raises ValueError, here or at the first call, if offsets, users or types do not fit."""
    if not _is_small_request(offsets, candidate_user, rows=rows, like=like):
        return _TwoOperators(offsets, candidate_user, rows, skipped)
    checked_offsets(offsets, events=rows)
    candidates = len(checked_users(candidate_user, candidates=candidate_user.shape[0], users=1))
    first = (rows + 1) // 2 if rows <= _SHORT_CONTEXT else rows
    mask = like.new_full((rows + candidates - first, rows + candidates), -math.inf)
    mask[: rows - first, :rows].triu_(first + 1)
    mask[rows - first :, 0 if skipped is None else int(skipped) : rows] = 0
    mask[rows - first :, rows:].fill_diagonal_(0)
    return _OneRequest(mask, first, rows)


def _is_small_request(offsets: Tensor, candidate_user: Tensor, *, rows: int, like: Tensor) -> bool:
    """False in an export, which must hold for any number of users, and if gradients may be needed."""
    if torch.compiler.is_exporting() or torch.is_grad_enabled() or like.device.type != "cpu":
        return False
    few = 0 < candidate_user.shape[0] <= _FEW_CANDIDATES
    return few and rows > 0 and offsets.shape == (2,) and backend_of(like) == "cpu"


@dataclass(frozen=True, eq=False)
class _TwoOperators:
    offsets: Tensor
    candidate_user: Tensor
    rows: int
    skipped: Tensor | None

    def both(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        n = self.rows
        return torch.cat([jagged_attention(q[:n], k[:n], v[:n], self.offsets), self.crossing(q[n:], k, v)])

    def crossing(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        n = self.rows
        return dcat_attention(q, k[n:], v[n:], k[:n], v[:n], self.offsets, self.candidate_user, skipped=self.skipped)


@dataclass(frozen=True, eq=False)
class _OneRequest:
    """The `first` rows of the context attend causally to themselves; later rows follow `mask` [R - first, R]: 0 where a
    query sees a row, -inf elsewhere."""

    mask: Tensor
    first: int
    rows: int

    def both(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        n = self.first
        q, k, v = _heads_first(q, k, v)
        older = _attend(q[:, :, :n], k[:, :, :n], v[:, :, :n])
        return torch.cat([older, _attend(q[:, :, n:], k, v, self.mask)])

    def crossing(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = _heads_first(q, k, v)
        return _attend(q, k, v, self.mask[self.rows - self.first :])


def _heads_first(*rows: Tensor) -> Iterator[Tensor]:
    """Each [*, H, D] to [1, H, *, D]."""
    return (x.transpose(0, 1).unsqueeze(0) for x in rows)


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """[1, H, *, D] three times to [*, H, D]; causal without a mask."""
    attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
    return attended.squeeze(0).transpose(0, 1)
