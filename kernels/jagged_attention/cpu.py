"""Jagged attention for the CPU: sequences of similar length share one padded call of PyTorch's fused attention.

Lengths inside a bucket differ by at most a quarter or 4 events, so padding costs little, and a batch of any shape needs
only about twenty calls. Padding comes after the real events, so under the causal mask no real query sees it. One gather
fills all buckets and one gather reads all results. Their gradients are gathers too; PyTorch's would scatter rows into
a new array of zeros for each bucket.

Legend: N events, P rows of all buckets, padding included, H heads, D floats per head, B sequences of one bucket, L the
length of the longest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from spoor.kernels.buckets import buckets
from spoor.kernels.offsets import Indexes


@dataclass(frozen=True, eq=False)
class _Layout:
    """`event` int64 [P]: the event of each row; padding repeats the sequence's last event (any finite row works). `row`
    int64 [N]: the row of each event. `padding` bool [P]; `shapes`: B and L of each bucket, in the order of the rows."""

    event: Tensor
    row: Tensor
    padding: Tensor
    shapes: list[tuple[int, int]]


def attend_in_buckets(q: Tensor, k: Tensor, v: Tensor, bounds: Indexes, *, causal: bool) -> Tensor:
    """q, k, v [N, H, D], bounds int64 [U + 1] (offsets, checked by the caller) to [N, H, D]."""
    lengths = np.diff(bounds)
    if len(q) and (lengths == lengths[0]).all():
        return _attend(q, k, v, (len(lengths), int(lengths[0])), mask=None, causal=causal)
    layout = _layout(bounds, q.device)
    if not layout.shapes:
        return q + k + v  # no events: an empty result in the autograd graph of the inputs
    sizes = [sequences * longest for sequences, longest in layout.shapes]
    columns = [
        _Rows.apply(x, layout.event, layout.row, None).split(sizes) for x in (q, k, v)
    ]  # padding gets no gradient
    outputs = []
    for q_PHD, k_PHD, v_PHD, padding, shape in zip(*columns, layout.padding.split(sizes), layout.shapes, strict=True):
        mask = None if causal or not padding.any() else ~padding.view(shape)[:, None, None, :]
        outputs.append(_attend(q_PHD, k_PHD, v_PHD, shape, mask=mask, causal=causal))
    return _Rows.apply(torch.cat(outputs), layout.row, layout.event, layout.padding)  # type: ignore[no-any-return]


def _attend(q: Tensor, k: Tensor, v: Tensor, shape: tuple[int, int], *, mask: Tensor | None, causal: bool) -> Tensor:
    """[B * L, H, D] three times to [B * L, H, D]."""
    q_BHLD, k_BHLD, v_BHLD = (x.unflatten(0, shape).transpose(1, 2) for x in (q, k, v))
    out_BHLD = F.scaled_dot_product_attention(q_BHLD, k_BHLD, v_BHLD, attn_mask=mask, is_causal=causal)
    return out_BHLD.transpose(1, 2).flatten(0, 1)


def _layout(bounds: Indexes, device: torch.device) -> _Layout:
    events: list[Indexes] = []
    padding: list[npt.NDArray[np.bool_]] = []
    shapes: list[tuple[int, int]] = []
    for members in buckets(np.diff(bounds)):
        starts, lengths = bounds[members, None], np.diff(bounds)[members, None]
        steps = np.arange(lengths[0, 0])  # the first is the longest
        events.append((starts + np.minimum(steps, lengths - 1)).ravel())
        padding.append((steps >= lengths).ravel())
        shapes.append((len(members), len(steps)))
    event = np.concatenate(events) if events else np.empty(0, np.int64)
    is_padding = np.concatenate(padding) if padding else np.empty(0, bool)
    row = np.empty(bounds[-1], np.int64)
    row[event[~is_padding]] = np.flatnonzero(~is_padding)
    event, row, is_padding = (torch.from_numpy(array).to(device) for array in (event, row, is_padding))
    return _Layout(event, row, is_padding, shapes)


class _Rows(torch.autograd.Function):
    """The rows `there` of x. The gradient is gathered by `back`, and zero in the `unused` (bool) rows of x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, there: Tensor, back: Tensor, unused: Tensor | None) -> Tensor:
        ctx.back, ctx.unused = back, unused
        return x.index_select(0, there)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        grad = grads[0].index_select(0, ctx.back)
        return grad if ctx.unused is None else grad.masked_fill_(ctx.unused[:, None, None], 0.0), None, None, None
