"""The ranker: two layers over standardised features, trained to tell relevant items from others.

Small on purpose: what it is fed decides what it can do, so that a difference between two feature sets is a difference
between the features. Nulls become the mean, and an indicator per group of features that are null together.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from spoor.base.errors import DataError
from spoor.ranking.features.dataset import Floats, Inputs

_MIN_DEVIATION = 1e-6
_CLIP = 8.0  # standard deviations: a count far outside of training must not run away with the score


@dataclass(frozen=True)
class RankerConfig:
    hidden: int = 32  # units of the inner layer
    epochs: int = 10  # passes over the training rows
    batch_rows: int = 1024
    learning_rate: float = 3e-3
    weight_decay: float = 1e-2
    seed: int = 0  # of initial weights and row order


class Ranker:
    """A trained ranker: `score` takes inputs of the layout that it was trained on."""

    def __init__(self, model: nn.Module, mean: Floats, deviation: Floats, groups: tuple[slice, ...]) -> None:
        self._model = model
        self._mean = mean
        self._deviation = deviation
        self._groups = groups

    def score(self, inputs: Inputs) -> Floats:
        """float32[n], higher is better; comparable within one request."""
        if inputs.groups != self._groups:
            raise DataError(
                f"the ranker was trained on {len(self._mean)} features, found {inputs.values.shape[1]}",
                hint="train it again: the feature service or its release changed",
            )
        with torch.inference_mode():
            rows = torch.from_numpy(standardised(inputs, self._mean, self._deviation))
            return self._model(rows).squeeze(1).numpy()


def train_ranker(inputs: Inputs, labels: npt.NDArray[np.float32], config: RankerConfig) -> Ranker:
    """Fits binary cross-entropy. `labels`: float32[n] of 0 and 1. The same seed gives the same ranker on one machine;
    the process's random state is left alone. Raises DataError without both labels."""
    if not 0 < labels.sum() < len(labels):
        raise DataError(
            f"{len(labels)} training rows with {int(labels.sum())} relevant ones cannot train a ranker",
            hint="widen the training window, or check which actions count as positive",
        )
    mean, deviation = moments(inputs.values)
    rows = torch.from_numpy(standardised(inputs, mean, deviation))
    targets = torch.from_numpy(labels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = nn.Sequential(nn.Linear(rows.shape[1], config.hidden), nn.ReLU(), nn.Linear(config.hidden, 1))
        optimiser = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
        for _ in range(config.epochs):
            for batch in torch.randperm(len(rows)).split(config.batch_rows):
                _step(model, optimiser, rows[batch], targets[batch])
    return Ranker(model.eval(), mean, deviation, inputs.groups)


def _step(model: nn.Module, optimiser: torch.optim.Optimizer, rows: Tensor, targets: Tensor) -> None:
    optimiser.zero_grad(set_to_none=True)
    nn.functional.binary_cross_entropy_with_logits(model(rows).squeeze(1), targets).backward()
    optimiser.step()


def moments(values: Floats) -> tuple[Floats, Floats]:
    """Mean and deviation per column over what is not null; 0 and 1 for a column without any value or any change."""
    known = ~np.isnan(values)
    count = np.maximum(known.sum(0), 1)
    filled = np.where(known, values, 0).astype(np.float64)
    mean = filled.sum(0) / count
    deviation = np.sqrt((np.where(known, values - mean, 0) ** 2).sum(0) / count)
    deviation[deviation < _MIN_DEVIATION] = 1.0
    return mean.astype(np.float32), deviation.astype(np.float32)


def standardised(inputs: Inputs, mean: Floats, deviation: Floats) -> Floats:
    """float32[n, f + groups]: standardised values, then one indicator per group."""
    missing = np.isnan(inputs.values)
    values = np.clip((inputs.values - mean) / deviation, -_CLIP, _CLIP)
    flags = [missing[:, group].any(1, keepdims=True) for group in inputs.groups]
    return np.concatenate([np.where(missing, 0, values), *flags], 1).astype(np.float32)
