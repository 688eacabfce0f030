"""Jagged attention for the CPU: sequences of similar length share one padded call of PyTorch's fused attention.

Lengths inside a bucket differ by at most a quarter, so padding costs little, and a batch of any shape needs only
some twenty calls. Padding sits after the real events: under the causal mask no real query ever sees it.

Legend: N events, H heads, D dimensions per head, B sequences of one bucket, L the longest of them.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.buckets import buckets


def attend_in_buckets(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, *, causal: bool) -> Tensor:
    """q, k, v [N, H, D], offsets int64 [U + 1] (checked by the caller) to [N, H, D]."""
    bounds = offsets.cpu().numpy()
    outputs: list[Tensor] = []
    rows: list[np.ndarray] = []
    for members in buckets(np.diff(bounds)):
        starts, lengths = bounds[members], np.diff(bounds)[members]
        outputs.append(_attend_padded(q, k, v, starts, lengths, causal=causal))
        rows.append(np.concatenate([np.arange(s, s + n) for s, n in zip(starts, lengths, strict=True)]))
    if not outputs:
        return q + k + v  # no event at all: an empty result that still belongs to the graph of its inputs
    if len(outputs) == 1 and np.array_equal(rows[0], np.arange(q.shape[0])):
        return outputs[0]
    place = np.empty(q.shape[0], dtype=np.int64)
    place[np.concatenate(rows)] = np.arange(q.shape[0])
    return torch.cat(outputs).index_select(0, torch.from_numpy(place).to(q.device))


def _attend_padded(q: Tensor, k: Tensor, v: Tensor, starts: np.ndarray, lengths: np.ndarray, *, causal: bool) -> Tensor:
    """One bucket: gather to [B, H, L, D], attend, and return its real rows [sum of lengths, H, D] in order."""
    steps = np.arange(lengths.max())
    real_BL = steps < lengths[:, None]
    # Padding repeats the last event: any finite row will do, its result is dropped and its gradient is zero.
    index_BL = starts[:, None] + np.minimum(steps, lengths[:, None] - 1)
    index = torch.from_numpy(index_BL.ravel()).to(q.device)
    shape = (*index_BL.shape, *q.shape[1:])
    q_BHLD, k_BHLD, v_BHLD = (x.index_select(0, index).view(shape).transpose(1, 2) for x in (q, k, v))
    mask = None
    if not causal and not real_BL.all():
        mask = torch.from_numpy(real_BL).to(q.device)[:, None, None, :]
    out_BHLD = F.scaled_dot_product_attention(q_BHLD, k_BHLD, v_BHLD, attn_mask=mask, is_causal=causal)
    out_BLHD = out_BHLD.transpose(1, 2).reshape(-1, *q.shape[1:])
    if real_BL.all():
        return out_BLHD
    return out_BLHD.index_select(0, torch.from_numpy(np.flatnonzero(real_BL)).to(q.device))
