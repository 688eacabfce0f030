"""The checkpoint of a training run: one safetensors file, replaced atomically by a rename.

Tensors: model, averaged model, optimiser, best weights so far, and the growing lists of losses and evaluations.
The JSON header (safetensors limits it to 100 MB) holds the loader position, the planned steps and the identity of the
run: settings, model and data. No random state is saved: each step seeds its own generators.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from spoor.base.errors import DataError, UsageError
from spoor.base.files import atomic_write
from spoor.encoder.model.user_encoder import UserEncoder
from spoor.encoder.training.optimiser import Optimiser
from spoor.encoder.training.pace import StepPlan
from spoor.encoder.training.settings import PretrainSettings


@dataclass
class TrainState:
    """Everything that changes while training. (stage, epoch, batch) is the next batch to take."""

    model: UserEncoder
    optimiser: Optimiser  # also holds the averaged weights, which are evaluated and released
    stage: int = 0
    epoch: int = 0
    batch: int = 0
    step: int = 0  # optimiser steps taken
    tokens: int = 0  # events trained on
    seconds: float = 0.0  # of the run, summed over all resumptions
    stage_began: float = 0.0  # seconds of the run at the start of the stage
    future_pairs: int = 0  # pairs that the future-token loss has seen
    losses: list[float] = field(default_factory=list)  # one per step
    evaluations: list[dict[str, float]] = field(default_factory=list)  # one per epoch of the first stage
    best_epoch: int = -1  # index in evaluations; -1 before the first
    best: dict[str, Tensor] = field(default_factory=dict)  # averaged weights of that epoch
    planned: StepPlan | None = None  # decided once; None until then, and if nothing limits the steps
    ended_by: str = ""  # reason the first stage ended: epochs, patience, steps, max_minutes
    cut: bool = False  # the time limit ended a stage before its planned steps

    @classmethod
    def of(cls, model: UserEncoder, settings: PretrainSettings) -> TrainState:
        """The state at the start, with the model's current weights."""
        return cls(
            model,
            Optimiser(model, weight_decay=settings.weight_decay, average_decay=settings.average_decay),
        )

    @property
    def average(self) -> UserEncoder:
        return self.optimiser.average

    def keep_best(self) -> None:
        """Marks the newest evaluation as the best and copies its weights."""
        self.best_epoch = len(self.evaluations) - 1
        self.best = {name: value.clone() for name, value in self.average.state_dict().items()}


_PLACE = (
    *("stage", "epoch", "batch", "step", "tokens", "seconds", "stage_began", "future_pairs"),
    *("best_epoch", "ended_by", "cut"),
)


def save_checkpoint(path: Path, state: TrainState, identity: Mapping[str, Any]) -> None:
    """Raises InfrastructureError if the folder cannot be written."""
    parts = {
        "model": state.model.state_dict(),
        "average": state.average.state_dict(),
        "optimiser": state.optimiser.tensors(),
        "best": state.best,
        "log": {
            "losses": torch.tensor(state.losses, dtype=torch.float64),
            "evaluations": _json_tensor(state.evaluations),
        },
    }
    tensors = {f"{part}.{name}": value for part, values in parts.items() for name, value in values.items()}
    place = {name: getattr(state, name) for name in _PLACE}
    header = {"identity": identity, "place": place, "planned": asdict(state.planned) if state.planned else None}
    # Serialise first: safetensors' own writer reports a full disk by an error type of its own.
    atomic_write(path, save(tensors, metadata={"spoor": json.dumps(header)}))


@dataclass(frozen=True)
class Unfinished:
    """The checkpoint of a killed run: its steps, and how its identity differs from that of the current run."""

    step: int
    changed: Sequence[str]


def look_at_checkpoint(path: Path, identity: Mapping[str, Any]) -> Unfinished:
    """Reads only the header. Raises DataError if the file is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {})["spoor"])
        return Unfinished(int(header["place"]["step"]), _changed(header, identity))
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise _unreadable(path, error) from None


def load_checkpoint(path: Path, state: TrainState, identity: Mapping[str, Any]) -> None:
    """Loads into a fresh `state`. Raises UsageError if the checkpoint is of another run, DataError if it is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {})["spoor"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise _unreadable(path, error) from None
    changed = _changed(header, identity)
    if changed:
        raise UsageError(
            f"checkpoint `{path}` belongs to another run: {', '.join(changed)} differ",
            hint="train without --resume to start anew, or restore the settings and the events of that run",
        )
    parts: dict[str, dict[str, torch.Tensor]] = {"model": {}, "average": {}, "optimiser": {}, "best": {}, "log": {}}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        parts[part][rest] = tensor
    state.model.load_state_dict(parts["model"])
    state.average.load_state_dict(parts["average"])
    state.optimiser.load(parts["optimiser"])
    state.best = parts["best"]
    place = header["place"]
    for name in _PLACE:
        setattr(state, name, place.get(name, getattr(state, name)))
    planned = header.get("planned")
    state.planned = None if planned is None else StepPlan(**planned)
    if parts["log"]:
        state.losses = parts["log"]["losses"].tolist()
        state.evaluations = json.loads(parts["log"]["evaluations"].numpy().tobytes())
    else:  # older checkpoints keep them in the header
        state.losses, state.evaluations = place["losses"], place["evaluations"]


def _json_tensor(value: Any) -> Tensor:
    return torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)


def _changed(header: Mapping[str, Any], identity: Mapping[str, Any]) -> list[str]:
    """The parts of the identity that differ. A setting newer than the checkpoint counts as its default."""
    defaults = {each.name: each.default for each in fields(PretrainSettings)}
    found: dict[str, Any] = dict(header["identity"])
    found["settings"] = {name: value for name, value in defaults.items() if name in identity.get("settings", {})} | (
        found.get("settings") or {}
    )
    ours = json.loads(json.dumps(identity))
    return sorted(key for key in ours if json.loads(json.dumps(found.get(key))) != ours[key])


def _unreadable(path: Path, error: Exception) -> DataError:
    return DataError(f"checkpoint `{path}` cannot be read: {error}", hint="remove it, and train without --resume")
