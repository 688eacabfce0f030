"""Where a training run stands, in one safetensors file that is replaced by one rename.

Tensors: model, averaged model, optimiser, best weights so far, and what grows with the run: losses and evaluations.
Its JSON header, which safetensors limits to 100 MB, holds the place in the loader, the planned steps, and the identity
of the run: settings, model and data. There is no random state to keep: each step seeds its own draws.
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
    optimiser: Optimiser  # holds the average too: what is evaluated and released
    stage: int = 0
    epoch: int = 0
    batch: int = 0
    step: int = 0  # optimiser steps taken
    tokens: int = 0  # events trained on
    seconds: float = 0.0  # of the run, over all resumptions
    stage_began: float = 0.0  # seconds of the run at the start of the stage
    future_pairs: int = 0  # that the future-token loss has seen
    losses: list[float] = field(default_factory=list)  # one a step
    evaluations: list[dict[str, float]] = field(default_factory=list)  # one an epoch of the first stage
    best_epoch: int = -1  # index among the evaluations; -1 before the first
    best: dict[str, Tensor] = field(default_factory=dict)  # averaged weights of that epoch
    planned: StepPlan | None = None  # decided once; None before that, and where nothing limits the steps
    ended_by: str = ""  # what ended the first stage: epochs, patience, steps, max_minutes
    cut: bool = False  # the clock has ended a stage before its planned steps

    @classmethod
    def of(cls, model: UserEncoder, settings: PretrainSettings) -> TrainState:
        """At the start, with the model's weights as they are."""
        return cls(
            model,
            Optimiser(model, weight_decay=settings.weight_decay, average_decay=settings.average_decay),
        )

    @property
    def average(self) -> UserEncoder:
        return self.optimiser.average

    def keep_best(self) -> None:
        """The newest evaluation is the best so far: its weights are kept."""
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
    # Bytes first: safetensors tells of a full disk by an error of its own.
    atomic_write(path, save(tensors, metadata={"spoor": json.dumps(header)}))


@dataclass(frozen=True)
class Unfinished:
    """What a killed run has left: its steps, and in what it differs from the run at hand."""

    step: int
    changed: Sequence[str]


def look_at_checkpoint(path: Path, identity: Mapping[str, Any]) -> Unfinished:
    """Reads the header alone. Raises DataError if it is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {})["spoor"])
        return Unfinished(int(header["place"]["step"]), _changed(header, identity))
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise _unreadable(path, error) from None


def load_checkpoint(path: Path, state: TrainState, identity: Mapping[str, Any]) -> None:
    """Fills a fresh `state`. Raises UsageError if the checkpoint belongs to another run, DataError if it is damaged."""
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
    else:  # written before they had tensors of their own
        state.losses, state.evaluations = place["losses"], place["evaluations"]


def _json_tensor(value: Any) -> Tensor:
    return torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)


def _changed(header: Mapping[str, Any], identity: Mapping[str, Any]) -> list[str]:
    """In what the runs differ. A setting that is younger than the checkpoint had its default then."""
    defaults = {each.name: each.default for each in fields(PretrainSettings)}
    found: dict[str, Any] = dict(header["identity"])
    found["settings"] = {name: value for name, value in defaults.items() if name in identity.get("settings", {})} | (
        found.get("settings") or {}
    )
    ours = json.loads(json.dumps(identity))
    return sorted(key for key in ours if json.loads(json.dumps(found.get(key))) != ours[key])


def _unreadable(path: Path, error: Exception) -> DataError:
    return DataError(f"checkpoint `{path}` cannot be read: {error}", hint="remove it, and train without --resume")
