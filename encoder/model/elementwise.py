"""Pointwise operations that compute the same as PyTorch's, and take less of a training step on CPUs.

PyTorch's dropout draws one random number per element. Its normalisation, and rotary positions written with it, read
their operands from memory a dozen times (forward and backward).

Legend: M rows, E floats in a row; N events, P kinds of projections, H heads, D floats per head, F = D / 2 pairs.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_LEAST_NORM = 1e-12  # as F.normalize
_ROWS_AT_ONCE = 1024  # with a few hundred floats a row, the output of one pass is still in the cache for the next
_DRAWS = 4  # elements that share one 64-bit random number
_LEVELS = 2**16  # values of an element's 16 bits of it
Affine = tuple[Tensor, Tensor]  # a weight and a bias
Pointwise = Callable[[Tensor], Tensor]


class Dropout(nn.Module):
    """Sets a `share`, in [0, 1), of the elements to 0 and scales the others up to keep the mean. On a CPU the share is
    rounded to 1 / 65,536."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        if not self.training or self.share == 0:
            return x
        if x.device.type != "cpu":
            return F.dropout(x, self.share)
        dropped = round(self.share * _LEVELS)
        drawn = torch.empty(math.ceil(x.numel() / _DRAWS), dtype=torch.int64).random_(-(2**63), None)
        kept = drawn.view(torch.int16)[: x.numel()].view(x.shape) >= dropped - _LEVELS // 2
        return x * kept.to(x.dtype).mul_(_LEVELS / (_LEVELS - dropped))


def unit_rows(x_ME: Tensor) -> Tensor:
    """[M, E] to [M, E], each row divided by its L2 norm; a row of zeros stays zeros."""
    return _UnitRows.apply(x_ME) if torch.is_grad_enabled() else _unit_rows(x_ME)[0]  # type: ignore[no-any-return]


def _unit_rows(x_ME: Tensor) -> tuple[Tensor, Tensor]:
    """The unit rows and their former norms [M, 1]."""
    norm_M1 = torch.linalg.vector_norm(x_ME, dim=1, keepdim=True).clamp_min_(_LEAST_NORM)
    return x_ME / norm_M1, norm_M1


class _UnitRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_ME: Tensor) -> Tensor:
        unit_ME, norm_M1 = _unit_rows(x_ME)
        ctx.save_for_backward(unit_ME, norm_M1)
        return unit_ME

    @staticmethod
    def backward(ctx, *grads: Tensor) -> Tensor:
        unit_ME, norm_M1 = ctx.saved_tensors
        grad_ME = torch.empty_like(unit_ME)
        for start in range(0, len(unit_ME), _ROWS_AT_ONCE):
            part = slice(start, start + _ROWS_AT_ONCE)
            unit, grad = unit_ME[part], grads[0][part]
            along = (unit * grad).sum(1, keepdim=True)
            torch.addcmul(grad, unit, along, value=-1, out=grad_ME[part]).div_(norm_M1[part])
        return grad_ME


def affine(module: nn.Linear | nn.LayerNorm) -> Affine:
    """The weight and the bias of a module."""
    return module.weight, module.bias


def same(x: Tensor) -> Tensor:
    """x itself."""
    return x


def feed_forward(x: Tensor, hidden: Affine, out: Affine, dropout: Pointwise = same) -> Tensor:
    """out(dropout(gelu(hidden(x)))), [N, inputs] to [N, outputs]. Without gradients it processes some rows at a time,
    so that the hidden activations stay in the cache."""

    def of(rows: Tensor) -> Tensor:
        return F.linear(dropout(F.gelu(F.linear(rows, *hidden))), *out)

    whole = torch.compiler.is_exporting() or torch.is_grad_enabled() or x.device.type != "cpu"
    if whole or len(x) <= _ROWS_AT_ONCE:
        return of(x)
    return torch.cat([of(rows) for rows in x.split(_ROWS_AT_ONCE)])


def turned(x_NPHD: Tensor, turn_NP1F: Tensor) -> Tensor:
    """Rotary positions: neighbours (x[2f], x[2f + 1]) form a complex number, multiplied by the event's `turn_NP1F`,
    complex [N, P, 1, F]. Without gradients x may be changed in place and returned."""
    pairs = torch.view_as_complex(_at_least_float32(x_NPHD).unflatten(-1, (-1, 2)))
    if torch.is_grad_enabled() or torch.compiler.is_exporting() or x_NPHD.dtype != torch.float32:
        return torch.view_as_real(pairs * turn_NP1F).flatten(-2).to(x_NPHD.dtype)
    pairs.mul_(turn_NP1F)
    return x_NPHD


def _at_least_float32(x: Tensor) -> Tensor:
    """PyTorch has no complex numbers of two bfloat16."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()
