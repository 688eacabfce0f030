"""Pointwise operations that a training step on processors would otherwise spend much of its time on.

PyTorch's dropout draws one random number an element; its normalisation, and rotary positions written with it, pass over
their operands a dozen times (forward and backward), each time through memory. These here compute the same things.

Legend: M rows, E floats in a row; N events, P kinds of projections, H heads, D floats per head, F = D / 2 pairs.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_LEAST_NORM = 1e-12  # as F.normalize
_ROWS_AT_ONCE = 1024  # of some hundred floats: what one pass writes is still in the cache when the next reads it
_DRAWS = 4  # elements that share one random number of 64 bits
_LEVELS = 2**16  # of an element's share of it
_NO_DROPOUT = nn.Identity()


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


def feed_forward(x: Tensor, hidden: nn.Linear, out: nn.Linear, dropout: nn.Module = _NO_DROPOUT) -> Tensor:
    """out(dropout(gelu(hidden(x)))), [N, inputs] to [N, outputs]. Without gradients some rows at a time: what is
    hidden then stays in the cache."""

    def of(rows: Tensor) -> Tensor:
        return out(dropout(F.gelu(hidden(rows))))

    whole = torch.compiler.is_exporting() or torch.is_grad_enabled() or x.device.type != "cpu"
    if whole or len(x) <= _ROWS_AT_ONCE:
        return of(x)
    return torch.cat([of(rows) for rows in x.split(_ROWS_AT_ONCE)])


def turned(x_NPHD: Tensor, turn_NF: Tensor, *, values: bool = True) -> tuple[Tensor, ...]:
    """Queries, keys and values [N, 3, H, D] (or keys and values, [N, 2, H, D]) to as many times [N, H, D], all but the
    values with rotary positions: neighbours (x[2f], x[2f + 1]) are a complex number, multiplied by the event's
    `turn_NF`, complex [N, D / 2]. `values`: whether the last of x are some, and stay. The results are views, whose rows
    lie apart."""
    turns = x_NPHD.shape[1] - values
    turning, *rest = x_NPHD.split((turns, 1) if values else turns, dim=1)
    pairs = torch.view_as_complex(_at_least_float32(turning).unflatten(-1, (-1, 2)))
    moved = torch.view_as_real(pairs * turn_NF[:, None, None]).flatten(-2).to(x_NPHD.dtype)
    return (*moved.unbind(1), *(x.squeeze(1) for x in rest))


def _at_least_float32(x: Tensor) -> Tensor:
    """There are no complex numbers of two bfloat16."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()
