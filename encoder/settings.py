"""The settings of `spoor pretrain`: section [pretrain]."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from activity.errors import UsageError


@dataclass(frozen=True)
class PretrainSettings:
    """Raises UsageError when a value is out of range."""

    model: Literal["tiny", "base"] = "base"  # a named size of encoder/config.py
    epochs: int = 8  # passes over the training events, the last `validation_share` of time held out
    refit_epochs: int = 1  # passes over all events after that, at a tenth of the learning rate
    max_minutes: float = 0.0  # stop earlier, with the learning rate brought down in time; 0 = no limit
    token_budget: int = 512  # events in one optimiser step
    learning_rate: float = 5e-3  # of AdamW, at its highest
    weight_decay: float = 0.01  # of AdamW
    warmup_share: float = 0.05  # of the first stage, in which the learning rate rises from 0
    average_decay: float = 0.98  # per step, of the averaged weights that are released
    positive_actions: tuple[str, ...] = ()  # actions whose items are targets; empty = all
    negatives: Literal["in-batch", "mixed", "full"] = "mixed"  # from the batch; with uniform ones; every item
    uniform_negatives: int = 512  # items drawn evenly for each step of `mixed`
    unknown_item_share: float = 0.01  # events whose item is hidden in training, so that row 0 learns something
    validation_share: float = 0.1  # newest share of events, held out of the first stage to measure quality
    checkpoint_steps: int = 200  # optimiser steps between checkpoints
    threads: int = 1  # of the processor; more pay off only for models larger than `base`
    seed: int = 0  # of initial weights, order of the data, dropout and negatives

    def __post_init__(self) -> None:
        self._require(self.epochs >= 1, "epochs", "at least 1")
        self._require(self.refit_epochs >= 0, "refit_epochs", "at least 0")
        self._require(self.max_minutes >= 0, "max_minutes", "at least 0")
        self._require(self.token_budget >= 1, "token_budget", "at least 1")
        self._require(self.learning_rate > 0, "learning_rate", "above 0")
        self._require(self.weight_decay >= 0, "weight_decay", "at least 0")
        self._require(0 <= self.warmup_share < 1, "warmup_share", "in [0, 1)")
        self._require(0 <= self.average_decay < 1, "average_decay", "in [0, 1)")
        self._require(self.uniform_negatives >= 1, "uniform_negatives", "at least 1")
        self._require(0 <= self.unknown_item_share < 1, "unknown_item_share", "in [0, 1)")
        self._require(0 < self.validation_share < 1, "validation_share", "in (0, 1)")
        self._require(self.checkpoint_steps >= 1, "checkpoint_steps", "at least 1")
        self._require(self.threads >= 1, "threads", "at least 1")
        self._require(self.seed >= 0, "seed", "at least 0")

    def _require(self, holds: bool, name: str, expected: str) -> None:
        if not holds:
            raise UsageError(
                f"pretrain.{name} must be {expected}; found {getattr(self, name)}",
                hint="`spoor config show` lists every setting and where it comes from",
            )
