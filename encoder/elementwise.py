"""Pointwise operations that a training step on processors would otherwise spend much of its time on.

PyTorch's dropout draws one random number an element; its normalisation, and rotary positions written with it, pass over
their operands a dozen times (forward and backward), each time through memory. These here compute the same things.

Legend: M rows, E floats in a row; N events, H heads, D floats per head.
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


def turned(x_NPHD: Tensor, cos_ND: Tensor, sin_ND: Tensor, *, values: bool = True) -> tuple[Tensor, ...]:
    """Queries, keys and values [N, 3, H, D] (or keys and values, [N, 2, H, D]) to as many times [N, H, D], all but the
    values with rotary positions: the pair (x[d], x[d + D / 2]) is turned by an angle of the event, whose cosine and
    sine are [N, D / 2]. `values`: whether the last of x are some, and stay."""
    cos, sin = (x[:, None, :].to(x_NPHD.dtype) for x in (cos_ND, sin_ND))
    if torch.is_grad_enabled():
        return _Turned.apply(x_NPHD, cos, sin, values)  # type: ignore[no-any-return]
    return _turned(x_NPHD, cos, sin, values)


def _turned(x_NPHD: Tensor, cos: Tensor, sin: Tensor, values: bool) -> tuple[Tensor, ...]:
    before = x_NPHD.unbind(1)
    after = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in before]
    turns = len(before) - values
    for x, out in zip(before[:turns], after, strict=False):
        _turn(x, cos, sin, out=out)
    if values:
        after[-1].copy_(before[-1])
    return tuple(after)


class _Turned(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_NPHD: Tensor, cos: Tensor, sin: Tensor, values: bool) -> tuple[Tensor, ...]:
        ctx.save_for_backward(cos, sin)
        ctx.values = values
        return _turned(x_NPHD, cos, sin, values)

    @staticmethod
    def backward(ctx, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        cos, sin = ctx.saved_tensors
        back = -sin  # the gradient of a turn is the turn back
        grad_NPHD = grads[0].new_empty(len(grads[0]), len(grads), *grads[0].shape[1:])
        for part, grad in enumerate(grads):
            if ctx.values and part == len(grads) - 1:
                grad_NPHD[:, part] = grad
            else:
                _turn(grad, cos, back, out=grad_NPHD[:, part])
        return grad_NPHD, None, None, None


@torch.no_grad()
def _turn(x_NHD: Tensor, cos: Tensor, sin: Tensor, *, out: Tensor) -> None:
    first, second = x_NHD.chunk(2, dim=-1)
    turned_first, turned_second = out.chunk(2, dim=-1)
    torch.mul(first, cos, out=turned_first).addcmul_(second, sin, value=-1)
    torch.mul(second, cos, out=turned_second).addcmul_(first, sin)
