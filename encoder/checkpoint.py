"""Where a training run stands, in one safetensors file that is replaced by one rename.

Tensors: model, averaged model, optimiser. Its JSON header holds the place in the loader, the losses so far, and the
identity of the run: settings, model and data. There is no random state to keep: each step seeds its own draws.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from activity.errors import DataError, UsageError
from activity.files import atomic_write
from encoder.model import UserEncoder
from encoder.settings import PretrainSettings


@dataclass
class TrainState:
    """Everything that changes while training. (stage, epoch, batch) is the next batch to take."""

    model: UserEncoder
    average: AveragedModel  # exponential average of the weights: what is evaluated and released
    optimiser: torch.optim.AdamW
    stage: int = 0
    epoch: int = 0
    batch: int = 0
    step: int = 0  # optimiser steps taken
    seconds: float = 0.0  # spent in steps, over all resumptions
    losses: list[float] = field(default_factory=list)  # one a step
    evaluations: list[dict[str, float]] = field(default_factory=list)  # one an epoch of the first stage

    @classmethod
    def fresh(cls, model: UserEncoder, settings: PretrainSettings) -> TrainState:
        model.initialise(settings.seed)
        average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(settings.average_decay))
        optimiser = torch.optim.AdamW(
            model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True
        )
        return cls(model, average, optimiser)

    @property
    def averaged_model(self) -> UserEncoder:
        module = self.average.module
        assert isinstance(module, UserEncoder)
        return module


_PLACE = ("stage", "epoch", "batch", "step", "seconds", "losses", "evaluations")


def save_checkpoint(path: Path, state: TrainState, identity: Mapping[str, Any]) -> None:
    """Raises InfrastructureError if the folder cannot be written."""
    tensors = {f"model.{name}": value for name, value in state.model.state_dict().items()}
    tensors |= {f"average.{name}": value for name, value in state.average.state_dict().items()}
    for index, values in state.optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{index}.{name}": value for name, value in values.items()}
    header = {"identity": identity, "place": {name: getattr(state, name) for name in _PLACE}}
    # Bytes first: safetensors tells of a full disk by an error of its own.
    atomic_write(path, save(tensors, metadata={"spoor": json.dumps(header)}))


def load_checkpoint(path: Path, state: TrainState, identity: Mapping[str, Any]) -> None:
    """Fills a fresh `state`. Raises UsageError if the checkpoint belongs to another run, DataError if it is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {})["spoor"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise DataError(
            f"checkpoint `{path}` cannot be read: {error}", hint="remove it, and train without --resume"
        ) from None
    changed = sorted(key for key in identity if header["identity"].get(key) != json.loads(json.dumps(identity[key])))
    if changed:
        raise UsageError(
            f"checkpoint `{path}` belongs to another run: {', '.join(changed)} differ",
            hint="train without --resume to start anew, or restore the settings and the events of that run",
        )
    parts: dict[str, dict[str, torch.Tensor]] = {"model": {}, "average": {}, "optimiser": {}}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        parts[part][rest] = tensor
    state.model.load_state_dict(parts["model"])
    state.average.load_state_dict(parts["average"])
    moments: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in parts["optimiser"].items():
        index, _, key = name.partition(".")
        moments.setdefault(int(index), {})[key] = tensor
    groups = state.optimiser.state_dict()["param_groups"]
    state.optimiser.load_state_dict({"state": moments, "param_groups": groups})
    for name in _PLACE:
        setattr(state, name, header["place"][name])
