"""How fast is jagged attention beside PyTorch's own, forward, and forward and backward?

    python -m benchmarks.jagged_attention [--sequences 256] [--device cuda --dtype bfloat16] --json [--keep]

4 heads of 64 floats; lengths are drawn evenly from 1 to 256 (on average half of what padding takes). Peers: SDPA over
right-padded sequences, causal, and on a GPU `torch.nn.attention.varlen` (FlashAttention over jagged batches).
`ratio_padded` and `ratio_varlen` are theirs over ours, forward and backward; best of the rounds on all sides; outputs
are compared in the same run.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.shared.rows import finish
from benchmarks.shared.timing import add_device_options, best_seconds, device_circumstances, use_device
from spoor.kernels.jagged_attention import jagged_attention

RESULTS = Path(__file__).parent / "results" / "jagged_attention.jsonl"
GOAL_VARLEN = 0.8  # on a GPU
HEADS, HEAD_WIDTH, LONGEST = 4, 64, 256
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


class Batch:
    """q, k, v [N, H, D] and where sequences begin."""

    def __init__(self, *, sequences: int, dtype: torch.dtype) -> None:
        rng = np.random.default_rng(0)
        self.lengths = rng.integers(1, LONGEST + 1, sequences)
        bounds = np.concatenate([[0], self.lengths.cumsum()])
        self.offsets, self.offsets32 = torch.tensor(bounds), torch.tensor(bounds, dtype=torch.int32)
        self.qkv = [
            torch.tensor(rng.standard_normal((bounds[-1], HEADS, HEAD_WIDTH)), dtype=dtype, requires_grad=True)
            for _ in range(3)
        ]
        self.d_out = torch.tensor(rng.standard_normal((bounds[-1], HEADS, HEAD_WIDTH)), dtype=dtype)
        steps = np.arange(self.lengths.max())
        self.rows = torch.tensor(bounds[:-1, None] + np.minimum(steps, self.lengths[:, None] - 1))
        self.places = torch.tensor(np.flatnonzero(steps < self.lengths[:, None]))

    def jagged(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return jagged_attention(q, k, v, self.offsets)

    def varlen(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        from torch.nn.attention.varlen import varlen_attn

        longest = int(self.lengths.max())
        found = varlen_attn(q, k, v, self.offsets32, self.offsets32, longest, longest, window_size=(-1, 0))
        assert isinstance(found, Tensor)
        return found

    def padded(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """What it takes where data arrive jagged: padding, SDPA, and the real rows back."""
        q, k, v = (x[self.rows].transpose(1, 2) for x in (q, k, v))
        found = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
        return found.flatten(0, 1).index_select(0, self.places)

    def forward(self, attend: Attend) -> Tensor:
        with torch.inference_mode():
            return attend(*self.qkv)

    def step(self, attend: Attend) -> None:
        torch.autograd.grad(attend(*self.qkv), self.qkv, self.d_out)


def measure(*, sequences: int, rounds: int, dtype: torch.dtype) -> dict[str, Any]:
    batch = Batch(sequences=sequences, dtype=dtype)
    contenders: dict[str, Attend] = {"jagged": batch.jagged, "padded": batch.padded}
    if torch.get_default_device().type == "cuda" and dtype != torch.float32:  # which FlashAttention does not take
        contenders["varlen"] = batch.varlen
    expected = batch.jagged(*batch.qkv)
    differences = {
        peer: float((attend(*batch.qkv) - expected).detach().float().abs().max())
        for peer, attend in contenders.items()
        if peer != "jagged"
    }
    seconds = {
        name: best_seconds({who: partial(run, attend) for who, attend in contenders.items()}, rounds=rounds)
        for name, run in (("forward", batch.forward), ("forward and backward", batch.step))
    }
    both = seconds["forward and backward"]
    print(f"{seconds}", file=sys.stderr)
    return {
        "benchmark": "jagged_attention",
        **{f"ratio_{peer}": round(both[peer] / both["jagged"], 3) for peer in differences},
        "goal_varlen": GOAL_VARLEN,
        "ratios_forward": {
            peer: round(seconds["forward"][peer] / seconds["forward"]["jagged"], 3) for peer in differences
        },
        "seconds": {name: {who: round(took, 6) for who, took in of.items()} for name, of in seconds.items()},
        "differences": differences,
        "events": int(batch.lengths.sum()),
        "sequences": sequences,
        "rounds": rounds,
    } | device_circumstances(dtype)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sequences", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=20)
    add_device_options(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--keep", action="store_true", help=f"append the object to {RESULTS.name}")
    options = parser.parse_args()
    dtype = use_device(options)
    found = measure(sequences=options.sequences, rounds=options.rounds, dtype=dtype)
    finish(found, options, RESULTS, module="benchmarks.jagged_attention")


if __name__ == "__main__":
    main()
