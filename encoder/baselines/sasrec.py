"""SASRec (arXiv 1808.09781) as usually implemented, trained with the full softmax: a baseline, also for benchmarks/.

- Histories padded on the left to a fixed length; learned positions; pre-LN blocks of PyTorch's attention layer.
- Item embeddings tied to the output by the dot product; dropout after the embeddings and in the blocks.
- Adam at a constant rate, cross-entropy over every item, early stopping by NDCG@10 on the validation events.
- Left out on purpose: actions, surfaces, time, length-sorted batches, averaged weights, warm-up. A refit on the
  validation events is optional (`refit_epochs`), so that both sides of a comparison can have it.

Legend: B users of a batch, L = length, C = width, V known items (row 0 of the table: padding and unknown).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spoor.activity.history import slice_rows
from spoor.base.errors import DataError, UsageError
from spoor.base.numbers import number_text
from spoor.encoder.evaluation.questions import Inputs
from spoor.encoder.evaluation.scoring import Scores, Training, mean_ndcg
from spoor.encoder.model.vocabulary import Indexes
from spoor.encoder.training.pace import MEASURED_STEPS, Clock, Pace, rounded_down

_CHOICE_QUESTIONS = 5_000
_LONG_HISTORIES = 50.0  # mean events per user, from which the settings for long histories apply
_FEW_ITEMS = 2_000


@dataclass(frozen=True, kw_only=True)
class SasrecSettings:
    length: int  # newest events of a user that the model reads
    width: int
    blocks: int = 2
    heads: int = 1
    dropout: float
    learning_rate: float = 1e-3
    batch_users: int = 128
    max_epochs: int = 200
    patience: int = 10  # epochs without a better NDCG@10 after which training ends
    refit_epochs: int = 0  # after the best epoch, on all events before the evaluated role
    steps: int = 0  # optimiser steps before the refit, at most; 0 = as many as max_minutes allows
    max_minutes: float = 60.0  # of training; the steps that fit are measured at its start; the best epoch is kept

    @classmethod
    def usual(
        cls, *, mean_length: float, items: int, refit_epochs: int = 0, max_minutes: float = 60.0
    ) -> SasrecSettings:
        """Usual settings for short (Amazon data sets) or long (MovieLens) histories."""
        long = mean_length >= _LONG_HISTORIES
        return cls(
            length=200 if long else 50,
            width=64 if items < _FEW_ITEMS else 128,
            dropout=0.2 if long else 0.5,
            refit_epochs=refit_epochs,
            max_minutes=max_minutes,
        )


class SasrecModel(nn.Module):
    """`items`: number of known items."""

    def __init__(self, settings: SasrecSettings, *, items: int) -> None:
        super().__init__()
        width = settings.width
        self.heads = settings.heads
        self.items = nn.Embedding(items + 1, width, padding_idx=0)
        self.positions = nn.Embedding(settings.length, width)
        self.dropout = nn.Dropout(settings.dropout)
        layer = nn.TransformerEncoderLayer(
            width, settings.heads, width, settings.dropout, activation="relu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(
            layer, settings.blocks, norm=nn.LayerNorm(width), enable_nested_tensor=False
        )
        for table in (self.items, self.positions):
            nn.init.normal_(table.weight, std=0.02)
        with torch.no_grad():
            self.items.weight[0] = 0

    def forward(self, padded: Tensor) -> Tensor:
        """int64 [B, L], 0 for padding, to [B, L, C]."""
        length = padded.shape[1]
        x = self.items(padded) * self.items.embedding_dim**0.5 + self.positions.weight[-length:]
        later = torch.ones(length, length, dtype=torch.bool, device=padded.device).triu(1)
        # Padding is masked as a key except at its own position: a row without keys would be NaN.
        padding = (padded == 0)[:, None, :] & ~torch.eye(length, dtype=torch.bool, device=padded.device)
        mask = (later | padding).repeat_interleave(self.heads, 0)
        return self.blocks(self.dropout(x), mask=mask)

    def scores(self, x: Tensor) -> Tensor:
        """[..., C] to [..., V]."""
        return x @ self.items.weight[1:].T


def pad(items: Indexes, offsets: Indexes, *, length: int) -> Tensor:
    """int64 [U, length]: the newest `length` items of each user, padded with 0 on the left."""
    lengths = np.diff(offsets)
    from_end = np.repeat(offsets[1:], lengths) - np.arange(len(items))
    kept = from_end <= length
    padded = np.zeros((len(lengths), length), np.int64)
    padded[np.repeat(np.arange(len(lengths)), lengths)[kept], length - from_end[kept]] = items[kept]
    return torch.from_numpy(padded)


def next_item_loss(model: SasrecModel, padded: Tensor) -> Tensor:
    """Mean full-softmax cross-entropy of the next item, from int64 [B, L + 1]."""
    inputs, targets = padded[:, :-1], padded[:, 1:]
    asked = (inputs > 0) & (targets > 0)
    return F.cross_entropy(model.scores(model(inputs)[asked]), targets[asked] - 1)


class Sasrec:
    """`settings`: None takes the usual settings for the data."""

    def __init__(
        self,
        settings: SasrecSettings | None = None,
        *,
        refit_epochs: int = 0,
        max_minutes: float = 60.0,
        seed: int = 0,
    ) -> None:
        self._settings = settings
        self._refit_epochs = refit_epochs
        self._max_minutes = max_minutes
        self._seed = seed
        self.history: list[float] = []  # NDCG@10 on the validation events after each epoch
        self.steps = 0  # optimiser steps before the refit
        self.planned = 0  # upper limit of `steps`, decided once; 0 = not known yet
        self._ended = ""

    def prepare(self, training: Training) -> None:
        """Raises UsageError without validation events, DataError if training diverges."""
        settings = self._settings = self._settings or SasrecSettings.usual(
            mean_length=len(training.items) / max(len(training.offsets) - 1, 1),
            items=training.vocabulary_size,
            refit_epochs=self._refit_epochs,
            max_minutes=self._max_minutes,
        )
        rows = training.validation_rows(at_most=_CHOICE_QUESTIONS, seed=self._seed)
        if not len(rows):
            raise UsageError("sasrec needs validation events to stop by", hint="leave it out of --baselines")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._seed)
            self._model = SasrecModel(settings, items=training.vocabulary_size)
            self._fit(training, rows, settings)
        self._model.eval()

    def scores(self, inputs: Inputs) -> Scores:
        return self._scores(inputs.items, inputs.offsets)

    def describe(self) -> str:
        if self._settings is None:
            return "padded SASRec, full softmax"
        settings = self._settings
        refit = f", refit {settings.refit_epochs} epochs" if settings.refit_epochs else ""
        return (
            f"padded SASRec, full softmax, length {settings.length}, width {settings.width}, {settings.blocks} blocks, "
            f"dropout {number_text(settings.dropout)}, best of {len(self.history)} epochs{refit}{self._ended}"
        )

    def _fit(self, training: Training, rows: Indexes, settings: SasrecSettings) -> None:
        optimiser = torch.optim.Adam(self._model.parameters(), lr=settings.learning_rate)
        clock, pace = Clock(done=0.0, allowed=60 * settings.max_minutes), Pace()
        best = {name: value.clone() for name, value in self._model.state_dict().items()}
        without_validation = training.before_validation()
        self.planned = settings.steps
        while len(self.history) < settings.max_epochs:
            began, ended = clock.seconds, ""
            for _ in self._epoch(without_validation, settings, optimiser, seed=len(self.history)):
                self.steps += 1
                seconds = clock.seconds
                pace.step_took(seconds - began)
                began = seconds
                if not self.planned and self.steps == MEASURED_STEPS:
                    self.planned = self._plan(training, rows, settings, clock, pace)
                    began = clock.seconds
                if self.planned and self.steps >= self.planned:
                    ended = f"; ended after its {self.steps:,} planned steps"
                elif clock.seconds >= clock.allowed:
                    ended = f"; the time was over after step {self.steps:,}"
                if ended:
                    break
            began = clock.seconds
            self.history.append(self._ndcg(training, rows))
            pace.evaluation_seconds = clock.seconds - began
            if self.history[-1] == max(self.history):
                best = {name: value.clone() for name, value in self._model.state_dict().items()}
            print(f"sasrec epoch={len(self.history)} validation_ndcg_at_10={self.history[-1]:.4f}", file=sys.stderr)
            if ended:
                rising = ", while still rising" if self.history[-1] == max(self.history) else ""
                self._ended = ended + rising
                print(f"sasrec{self._ended}", file=sys.stderr)
                break
            if len(self.history) - int(np.argmax(self.history)) > settings.patience:
                break
        self._model.load_state_dict(best)
        for epoch in range(settings.refit_epochs):
            for _ in self._epoch(training, settings, optimiser, seed=settings.max_epochs + epoch):
                pass

    def _plan(self, training: Training, rows: Indexes, settings: SasrecSettings, clock: Clock, pace: Pace) -> int:
        """The number of steps at the measured speed; giving it as `steps` repeats the training."""
        if pace.evaluation_seconds is None:
            began = clock.seconds
            self._ndcg(training, rows)
            self._model.train()
            pace.evaluation_seconds = clock.seconds - began
        epoch = -(-int((np.diff(training.offsets) >= 2).sum()) // settings.batch_users)
        further = pace.steps_in(clock.allowed - clock.seconds, steps_per_epoch=epoch)
        planned = max(rounded_down(self.steps + further), self.steps)
        if planned < epoch * settings.max_epochs:
            print(
                f"sasrec steps={planned} step_seconds={pace.step_seconds:.4f} (decided now and kept)", file=sys.stderr
            )
        return planned

    def _epoch(
        self, training: Training, settings: SasrecSettings, optimiser: torch.optim.Optimizer, *, seed: int
    ) -> Iterator[float]:
        """Trains on every user once; yields the loss after each step."""
        self._model.train()
        for users in user_batches(training, settings.batch_users, seed=[self._seed, seed]):
            loss = next_item_loss(self._model, newest(training, users, length=settings.length + 1))
            if not torch.isfinite(loss):
                raise DataError("sasrec diverged", hint="lower its learning rate")
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            yield loss.item()

    def _ndcg(self, training: Training, rows: Indexes) -> float:
        self._model.eval()
        return mean_ndcg(training, rows, self._scores)

    def _scores(self, items: Indexes, offsets: Indexes) -> Scores:
        assert self._settings is not None, "prepare comes first"
        with torch.inference_mode():
            x = self._model(pad(items, offsets, length=self._settings.length))
            return self._model.scores(x[:, -1]).numpy()


def user_batches(training: Training, batch_users: int, *, seed: list[int]) -> Iterator[Indexes]:
    """Batches of users with an event to predict, in shuffled order."""
    users = np.random.default_rng(seed).permutation(np.flatnonzero(np.diff(training.offsets) >= 2))
    for start in range(0, len(users), batch_users):
        yield users[start : start + batch_users]


def newest(training: Training, users: Indexes, *, length: int) -> Tensor:
    """The newest `length` items of these users, in the format of `pad`."""
    starts, stops = training.offsets[users], training.offsets[users + 1]
    rows, offsets = slice_rows(starts, stops - starts)
    return pad(training.items[rows].astype(np.int64), offsets, length=length)
