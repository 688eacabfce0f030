"""The settings of `spoor pretrain`: section [pretrain]."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from spoor.base.errors import UsageError


@dataclass(frozen=True)
class PretrainSettings:
    """Raises UsageError when a value is out of range."""

    model: str = "auto"  # by counts of the data; or tiny, base, paper (encoder/model/configs), or such a JSON file
    epochs: int = 8  # passes over the training events
    patience: int = 5  # epochs without a better validation NDCG@10 after which training ends; 0 = never
    refit_epochs: int = 1  # passes after that over the training and validation events
    refit_rate: float = 0.1  # of the learning rate, at the start of these passes
    steps: int = 0  # optimiser steps of the whole run, refit included, at most; 0 = by epochs and max_minutes
    max_minutes: float = 0.0  # of the whole run; how many steps fit is measured at its start; 0 = no limit
    token_budget: int = 512  # events in one optimiser step
    accumulation: int = 1  # parts that a step's events are divided into, one after the other, to save memory
    activations: Literal["kept", "recomputed"] = "kept"  # recomputed: less memory, a third more time
    learning_rate: float = 5e-3  # of AdamW, at its highest
    schedule: Literal["cosine", "constant"] = "cosine"  # of the learning rate, after it has risen
    warmup_steps: int = 20  # in which the learning rate rises from 0
    weight_decay: float = 0.01  # of AdamW
    average_decay: float = 0.98  # per step, of the averaged weights that are released
    item_start: Literal["random", "links"] = "random"  # first item embeddings; links: factors of who follows whom
    positive_actions: tuple[str, ...] = ()  # actions whose items are targets; empty = all
    next_token_weight: float = 1.0  # of the loss that asks for the next event
    multi_token_weight: float = 0.0  # of the loss that asks for the next `target_window` events
    future_token_weight: float = 0.0  # of the loss that asks only from the served length on
    target_window: int = 16  # events ahead that the latter two ask for
    pairs_per_event: float = 1.0  # of all pairs of the multi-token loss, how many are drawn
    negatives: Literal["in-batch", "mixed", "full"] = "mixed"  # from the batch; with uniform ones; every item
    uniform_negatives: int = 512  # items drawn evenly for each step of `mixed`
    own_positives: Literal["masked", "kept"] = "masked"  # a user's own targets among drawn negatives
    unknown_item_share: float = 0.01  # events whose item is hidden in training, so that row 0 learns something
    table_updates: Literal["auto", "dense", "sparse"] = "auto"  # sparse: only rows that a step read; auto: by size
    mixture: Literal["none", "fitted"] = "none"  # item links and own history beside the vector, for Spoor's ranking
    validation_users: int = 20_000  # at most so many are asked after each epoch
    checkpoint_steps: int = 200  # optimiser steps between checkpoints
    threads: int = 0  # of the processor in each process; 0 = its share of all cores
    seed: int = 0  # of initial weights, order of the data, dropout and negatives
    mlflow_uri: str = ""  # MLflow tracking server to log to; empty = none

    def __post_init__(self) -> None:
        self._require_at_least(1, "epochs", "token_budget", "accumulation", "target_window", "uniform_negatives")
        self._require_at_least(1, "validation_users", "checkpoint_steps")
        self._require_at_least(0, "patience", "refit_epochs", "steps", "max_minutes", "warmup_steps", "weight_decay")
        self._require_at_least(0, "next_token_weight", "multi_token_weight", "future_token_weight", "threads", "seed")
        for name in ("learning_rate", "refit_rate", "pairs_per_event"):
            self._require(getattr(self, name) > 0, name, "above 0")
        for name in ("average_decay", "unknown_item_share"):
            self._require(0 <= getattr(self, name) < 1, name, "in [0, 1)")
        weights = self.next_token_weight + self.multi_token_weight + self.future_token_weight
        self._require(weights > 0, "next_token_weight", "above 0 where the other two weights are 0")

    def _require_at_least(self, least: int, *names: str) -> None:
        for name in names:
            self._require(getattr(self, name) >= least, name, f"at least {least}")

    def _require(self, holds: bool, name: str, expected: str) -> None:
        if not holds:
            raise UsageError(
                f"pretrain.{name} must be {expected}; found {getattr(self, name)}",
                hint="`spoor config show` lists every setting and where it comes from",
            )
