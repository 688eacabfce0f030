"""The host ranker: a pointwise multi-task DCNv2 network, like the rankers of the paper.

- Crosses: x_{l+1} = x_0 * (W_l x_l + b_l) + x_l, then a small MLP, then one logit per task (DCNv2, stacked).
- Its inputs are numbers: standardised features from Feast, item attributes, and the outputs of a module.
- Left out: wide embedding tables of other ids, task-specific towers.

Legend: C candidates, F input floats, K tasks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class HostConfig:
    crosses: int = 2  # cross layers
    hidden: int = 64  # units of the layer before the tasks
    dropout: float = 0.1  # share of hidden activations dropped in training


class CrossLayer(nn.Module):
    """One cross of DCNv2 with a full matrix."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, x0_CF: Tensor, x_CF: Tensor) -> Tensor:
        """[C, F] twice to [C, F]."""
        return x0_CF * self.linear(x_CF) + x_CF


class Host(nn.Module):
    """`inputs`: floats per candidate; `tasks`: logits per candidate."""

    def __init__(self, config: HostConfig, *, inputs: int, tasks: int) -> None:
        super().__init__()
        self.config = config
        self.crosses = nn.ModuleList([CrossLayer(inputs) for _ in range(config.crosses)])
        self.hidden = nn.Linear(inputs, config.hidden)
        self.dropout = nn.Dropout(config.dropout)
        self.tasks = nn.Linear(config.hidden, tasks)

    def forward(self, x_CF: Tensor) -> Tensor:
        """[C, F] to logits [C, K]."""
        crossed = x_CF
        for cross in self.crosses:
            crossed = cross(x_CF, crossed)
        return self.tasks(self.dropout(torch.relu(self.hidden(crossed))))

    def initialise(self, seed: int) -> None:
        """Draws every parameter, independent of the global random state.

        | layer           | distribution                      |
        |-----------------|-----------------------------------|
        | crosses         | normal, deviation 0.1 / sqrt(F)   |
        | other weights   | normal, deviation 1 / sqrt(inputs)|
        | biases          | 0                                 |
        """
        generator = torch.Generator().manual_seed(seed)
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                scale = 0.1 if name.startswith("crosses") else 1.0
                nn.init.normal_(module.weight, std=scale / math.sqrt(module.in_features), generator=generator)
                nn.init.zeros_(module.bias)
