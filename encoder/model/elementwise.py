"""Pointwise operations that a training step on processors would otherwise spend much of its time on.

PyTorch's dropout draws one random number an element; its normalisation, and rotary positions written with it, pass over
their operands a dozen times (forward and backward), each time through memory. These here compute the same things.

Legend: M rows, E floats in a row; N events, P kinds of projections, H heads, D floats per head, F = D / 2 pairs.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_LEAST_NORM = 1e-12  # as F.normalize
_ROWS_AT_ONCE = 1024  # of some hundred floats: what one pass writes is still in the cache when the next reads it
_DRAWS = 4  # elements that share one random number of 64 bits
_LEVELS = 2**16  # of an element's share of it
Affine = tuple[Tensor, Tensor]  # a weight and a bias
Pointwise = Callable[[Tensor], Tensor]


class Dropout(nn.Module):
    """`share`, in [0, 1), of the elements becomes 0 and the others grow, so that the mean stays. Shares are kept to
    1 / 65,536."""

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
    """[M, E] to [M, E], each row divided by its L2 norm; a row of zeros stays."""
    return _UnitRows.apply(x_ME) if torch.is_grad_enabled() else _unit_rows(x_ME)[0]  # type: ignore[no-any-return]


def _unit_rows(x_ME: Tensor) -> tuple[Tensor, Tensor]:
    """The unit rows, and the norms [M, 1] by which they were divided."""
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
    """What a module with a weight and a bias holds."""
    return module.weight, module.bias


def same(x: Tensor) -> Tensor:
    """x itself."""
    return x


def feed_forward(x: Tensor, hidden: Affine, out: Affine, dropout: Pointwise = same) -> Tensor:
    """A linear layer of dropout(gelu(one before)), [N, inputs] to [N, outputs]. Without gradients some rows at a time:
    what is hidden then stays in the cache."""

    def of(rows: Tensor) -> Tensor:
        return F.linear(dropout(F.gelu(F.linear(rows, *hidden))), *out)

    whole = torch.compiler.is_exporting() or torch.is_grad_enabled() or x.device.type != "cpu"
    if whole or len(x) <= _ROWS_AT_ONCE:
        return of(x)
    return torch.cat([of(rows) for rows in x.split(_ROWS_AT_ONCE)])


def turned(x_NPHD: Tensor, turn_NP1F: Tensor) -> Tensor:
    """Rotary positions: neighbours (x[2f], x[2f + 1]) are a complex number, multiplied by the event's `turn_NP1F`,
    complex [N, P, 1, F]. Without gradients it may be x itself that is turned and given back."""
    pairs = torch.view_as_complex(_at_least_float32(x_NPHD).unflatten(-1, (-1, 2)))
    if torch.is_grad_enabled() or torch.compiler.is_exporting() or x_NPHD.dtype != torch.float32:
        return torch.view_as_real(pairs * turn_NP1F).flatten(-2).to(x_NPHD.dtype)
    pairs.mul_(turn_NP1F)
    return x_NPHD


def _at_least_float32(x: Tensor) -> Tensor:
    """There are no complex numbers of two bfloat16."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()
