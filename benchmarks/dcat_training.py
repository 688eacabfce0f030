"""How much faster is a training step over candidates by DCAT than by the transformer over every history + candidate?

    python -m benchmarks.dcat_training [--repeats 3] [--threads 2] [--device cuda --dtype bfloat16] --json [--keep]

d = L = 256, 4 layers, same weights, 4 users with 16 candidates each (r = 16): forward and backward. The peer
(benchmarks/shared/naive.py) runs every history + candidate, as many sequences at once as is best for it, tried
beforehand.

    ratio             a loss on the candidates' outputs alone; the last layer only at the candidates on both sides
    ratio_with_ntl    and the next-token loss over the histories; the peer takes it from one sequence of each user, but
                      its last layer computes all outputs of every sequence, as a plain transformer's does

Times are the best of the repeats on both sides; losses and gradients are compared in the same run. The FLOP bound of
`ratio` counts as in benchmarks/dcat_serving.py.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.dcat_serving import ITEMS, LENGTH, WIDTH, Request, flops
from benchmarks.shared.naive import model_of, naive_outputs, padded_blocks
from benchmarks.shared.rows import finish
from benchmarks.shared.timing import (
    add_device_options,
    best_seconds,
    device_circumstances,
    fastest,
    use_device,
)
from spoor.encoder.model.dcat import context_and_cross
from spoor.encoder.model.losses import Drawn, Targets, sampled_softmax_loss
from spoor.encoder.model.user_encoder import UserEncoder

RESULTS = Path(__file__).parent / "results" / "dcat_training.jsonl"
GOALS = {"ratio": 8.0, "ratio_with_ntl": 5.0}
LAYERS, USERS, PER_USER = 4, 4, 16
_SIZES = (1, 2, 4, 8, 16, 64)  # sequences whose forward and backward pass the peer runs at once


class Step:
    """One step's losses and gradients, by DCAT or naively. `sequence`: whether the next-token loss counts."""

    def __init__(self, model: UserEncoder, *, sequence: bool) -> None:
        self.model, self.sequence = model, sequence
        self.request = Request(model, users=USERS, candidates=USERS * PER_USER)
        rng = np.random.default_rng(2)
        self.wanted = torch.tensor(rng.standard_normal((USERS * PER_USER, WIDTH)), dtype=torch.float32)
        items = self.request.items.unique()
        self.negatives = Drawn(items, torch.zeros(len(items)))

    def dcat(self) -> float:
        self.model.zero_grad()
        crossed, events = context_and_cross(self.model, *self.request.asked, outputs=self.sequence)
        loss = self._candidate_loss(crossed, torch.arange(len(self.request.user)))
        if events is not None:
            loss = loss + self._sequence_loss(events.view(USERS, LENGTH, -1), torch.arange(USERS))
        loss.backward()
        return float(loss.detach())

    def naive(self, *, batch: int) -> float:
        self.model.zero_grad()
        total = 0.0
        for some in torch.arange(len(self.request.user)).split(batch):
            history_UNC, candidates_KC = self.request.embedded()
            x_BLC = torch.cat([history_UNC[self.request.user[some]], candidates_KC[some, None]], dim=1)
            if self.sequence:
                outputs = self._every_output(x_BLC)
                loss = self._candidate_loss(outputs[:, -1], some)
                firsts = some < USERS  # the first candidate of each user
                if firsts.any():
                    loss = loss + self._sequence_loss(outputs[firsts, :-1], self.request.user[some[firsts]])
            else:
                loss = self._candidate_loss(naive_outputs(self.model, x_BLC, skip_last=True), some)
            loss.backward()
            total += float(loss.detach())
        return total

    def gradients(self) -> dict[str, Tensor]:
        return {name: p.grad.clone() for name, p in self.model.named_parameters() if p.grad is not None}

    def _every_output(self, x_BLC: Tensor) -> Tensor:
        x_BLC, _ = padded_blocks(self.model, x_BLC, blocks=LAYERS)
        return self.model.user_vectors(x_BLC.flatten(0, 1)).view(*x_BLC.shape[:2], -1)

    def _candidate_loss(self, outputs_KE: Tensor, some: Tensor) -> Tensor:
        return (outputs_KE * self.wanted[some]).sum() / len(self.wanted)

    def _sequence_loss(self, outputs_ULE: Tensor, users: Tensor) -> Tensor:
        """Each event is asked for the next; negatives are the batch's other items."""
        targets = self.request.items.view(USERS, LENGTH)[users, 1:].flatten()
        count = len(targets)
        return sampled_softmax_loss(
            outputs_ULE[:, :-1].flatten(0, 1).float(),
            self.model.targets(self.negatives.items).float(),
            self.negatives,
            Targets(torch.arange(count), targets, torch.full((count,), 1 / (USERS * (LENGTH - 1)))),
            temperature=self.model.temperature,
        )


def measure(*, repeats: int, dtype: torch.dtype) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, sequence in (("ratio", False), ("ratio_with_ntl", True)):
        model = model_of(items=ITEMS, width=WIDTH, length=LENGTH, layers=LAYERS, dtype=dtype)
        step = Step(model, sequence=sequence)
        batch = fastest(lambda size, step=step: step.naive(batch=size), _SIZES)
        losses = [step.dcat()]
        ours = step.gradients()
        losses.append(step.naive(batch=batch))
        theirs = step.gradients()
        runs = {"dcat": step.dcat, "naive": partial(step.naive, batch=batch)}
        seconds = best_seconds(runs, rounds=repeats)
        found[name] = round(seconds["naive"] / seconds["dcat"], 2)
        found[f"{name}_run"] = {
            "seconds": {who: round(took, 4) for who, took in seconds.items()},
            "naive_sequences_at_once": batch,
            "loss": losses,
            # Relative to the largest of each parameter's gradients: sums of thousands of terms in another order.
            "gradient_difference": max(
                float((ours[key] - theirs[key]).abs().max() / theirs[key].abs().max().clamp_min(1e-12))
                for key in theirs
            ),
        }
        print(f"{name}: {found[name]}, {found[f'{name}_run']}", file=sys.stderr)
    bound = flops(LAYERS, candidates=None) / flops(LAYERS, candidates=PER_USER)
    return {
        "benchmark": "dcat_training",
        **found,
        "goals": GOALS,
        "flop_bound": round(bound, 1),
        "repeats": repeats,
    } | device_circumstances(dtype)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="of each side")
    add_device_options(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--keep", action="store_true", help=f"append the object to {RESULTS.name}")
    options = parser.parse_args()
    dtype = use_device(options)
    finish(measure(repeats=options.repeats, dtype=dtype), options, RESULTS, module="benchmarks.dcat_training")


if __name__ == "__main__":
    main()
