"""Inputs of the network: the events of some users, and candidates that are appended to their histories.

Legend: N events of all users together (jagged), U users, C candidates, I = config.item_width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from spoor.encoder.model.vocabulary import Indexes


@dataclass(frozen=True, eq=False)
class Events:
    """`items`, `actions`, `surfaces` int64 [N]: vocabulary indexes, one user after the other, oldest first; `offsets`
    int64 [U + 1]; `log_gaps` float32 [N]: log(1 + seconds since the previous event), needed if the configuration has
    time_gaps. The gap of a user's first event counts as 0."""

    items: Tensor
    actions: Tensor
    surfaces: Tensor
    offsets: Tensor
    log_gaps: Tensor | None = None

    @staticmethod
    def of(columns: Sequence[Indexes], times_ms: Indexes, offsets: Indexes) -> Events:
        """`columns`: items, actions and surfaces, as `Vocabulary.event_indexes` returns them."""
        items, actions, surfaces = (torch.from_numpy(column) for column in columns)
        gaps = torch.from_numpy(log_gaps(times_ms, offsets))
        return Events(items, actions, surfaces, torch.from_numpy(offsets), gaps)

    @property
    def count(self) -> int:
        """N."""
        return self.items.shape[0]  # len() would make it a constant in an export

    def take(self, rows: Indexes | Tensor, offsets: Tensor) -> Events:
        """The events at these rows, as histories with these `offsets`."""
        gaps = None if self.log_gaps is None else self.log_gaps[rows]
        return Events(self.items[rows], self.actions[rows], self.surfaces[rows], offsets, gaps)

    def to(self, device: torch.device) -> Events:
        items, actions, surfaces, offsets = (
            column.to(device) for column in (self.items, self.actions, self.surfaces, self.offsets)
        )
        return Events(items, actions, surfaces, offsets, None if self.log_gaps is None else self.log_gaps.to(device))


@dataclass(frozen=True, eq=False)
class Candidates:
    """`items`, `surfaces` int64 [C]: vocabulary indexes of the candidates and of the surfaces that show them; `users`
    int64 [C] in [0, U): the user whose history a candidate reads; `log_gaps` float32 [C]: log(1 + seconds since the
    newest event), needed if the configuration has time_gaps; `content` float [C, I]: added to the embeddings."""

    items: Tensor
    surfaces: Tensor
    users: Tensor
    log_gaps: Tensor | None = None
    content: Tensor | None = None

    def take(self, rows: slice) -> Candidates:
        gaps, content = (None if column is None else column[rows] for column in (self.log_gaps, self.content))
        return Candidates(self.items[rows], self.surfaces[rows], self.users[rows], gaps, content)


def rows_and_owners(offsets: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """int64 [rows] twice: the rows of a jagged batch, and the sequence of each row."""
    every = torch.arange(rows, device=offsets.device)
    return every, torch.searchsorted(offsets, every, right=True) - 1


def log_gaps(times_ms: Indexes, offsets: Indexes) -> npt.NDArray[np.float32]:
    """float32[N]: log(1 + seconds since the previous event); 0 for the first of each sequence, because a served window
    does not know earlier events either."""
    gaps = np.diff(times_ms, prepend=times_ms[:1]) / 1000.0
    gaps[offsets[:-1][np.diff(offsets) > 0]] = 0.0
    return np.log1p(np.maximum(gaps, 0.0)).astype(np.float32)
