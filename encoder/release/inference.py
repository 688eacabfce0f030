"""Inference with a release: histories to user vectors, item hashes to item vectors.

The writer in store/writer.py calls `FrozenEncoder`. Threads may share it: it never changes after construction, and
torch's inference mode is per thread.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from spoor.activity.history import Histories, slice_rows
from spoor.base.errors import DataError, UsageError
from spoor.encoder.model.config import ModelConfig
from spoor.encoder.model.events import Events
from spoor.encoder.model.hashing import vocabulary_rows
from spoor.encoder.model.user_encoder import UserEncoder
from spoor.encoder.model.vocabulary import Indexes, Vocabulary
from spoor.encoder.release.allocator import keep_freed_memory
from spoor.encoder.release.folder import Release, load_release
from spoor.encoder.release.info import list_releases, read_info
from spoor.encoder.release.packed_tables import PackedTables, open_packed
from spoor.kernels.backend import require_usable

Vectors = npt.NDArray[np.float32]
_PADDING = 0.1  # maximum padding of a batch, as a share of its events


class FrozenEncoder:
    """Raises as `frozen_model`."""

    def __init__(self, release: Release, *, token_budget: int = 8_192) -> None:
        """`token_budget`: events of one forward pass; bounds memory, does not change any vector."""
        self.release = release.info.name
        self.dimension = release.info.dimension
        self.max_events = release.info.max_events
        self.trained_through_ms = release.info.trained_through_ms
        self.vocabulary = release.vocabulary
        self._token_budget = token_budget
        self.model = frozen_model(release)

    @property
    def item_ids(self) -> tuple[str, ...]:
        """The raw ids of all known items; `item_hashes` holds their hashes in the same order."""
        return self.vocabulary.item_ids

    @property
    def item_hashes(self) -> npt.NDArray[np.uint64]:
        return self.vocabulary.items

    def encode(self, histories: Histories) -> tuple[Vectors, Indexes]:
        """User vectors float32[U, d], of norm 1 if the score is the cosine, and events used int64[U] (at most
        max_events).

        A user without events gets zeros and 0. A vector depends only on the user's newest events; the other users of
        the batch change it by less than 1e-5.
        """
        recent = histories.newest(self.max_events)
        lengths = recent.lengths
        vectors = np.zeros((recent.count, self.dimension), np.float32)
        events = Events.of(self.vocabulary.event_indexes(recent), recent.values["timestamp"], recent.offsets)
        with torch.inference_mode():
            for batch in batches_by_length(recent.offsets, token_budget=self._token_budget):
                found = self.model.last(events.take(batch.rows, batch.offsets), lengths=batch.lengths)
                vectors[batch.users] = found.numpy()
        return vectors, lengths

    def item_vectors(self, item_hashes: npt.NDArray[np.uint64]) -> Vectors:
        """uint64[n] to float32[n, d], of norm 1 if the score is the cosine. Unknown items have the vector of row 0."""
        items = torch.from_numpy(self.vocabulary.item_indexes(np.asarray(item_hashes, np.uint64)))
        vectors = np.empty((len(items), self.dimension), np.float32)
        with torch.inference_mode():
            for start in range(0, len(items), self._token_budget):
                part = slice(start, start + self._token_budget)
                vectors[part] = self.model.targets(items[part]).numpy()
        return vectors


def load_encoders(releases_folder: Path, names: Sequence[str], *, threads: int = 1) -> list[FrozenEncoder]:
    """Encoders of the named releases, or of all releases in the folder if none is named, for writing vectors. Raises as
    `load_release`, and UsageError for a release whose vectors lack the norm of 1 that views need, or if this machine
    cannot run `kernels.backend`.

    `threads`: CPU threads that torch may use in this process. The default is one, because work spreads over processes:
    if threads outnumber free cores, torch's threads busy-wait for one another and encode ten times slower.
    """
    torch.set_num_threads(threads)
    keep_freed_memory()
    chosen = names or [info.name for info in list_releases(releases_folder)]
    for name in chosen:
        score = read_info(releases_folder / name).model.score
        if score != "cosine":
            raise UsageError(
                f"release `{name}` scores by the {score} product: its vectors have no norm of 1, which Feast's views "
                "ask for",
                hint="name the releases to write (stream.releases, --release), or move this one out of the folder",
            )
    return [FrozenEncoder(load_release(releases_folder / name)) for name in chosen]


def new_model(config: ModelConfig, vocabulary: Vocabulary, *, packed: PackedTables | None = None) -> UserEncoder:
    """The network for this vocabulary, with uninitialised parameters; items come from `packed` tables, if given."""
    return UserEncoder(
        config,
        item_rows=torch.from_numpy(item_rows(config, vocabulary)),
        actions=len(vocabulary.actions),
        surfaces=len(vocabulary.surfaces),
        gather=None if packed is None else packed.gather,
    )


def item_rows(config: ModelConfig, vocabulary: Vocabulary) -> Indexes:
    """The rows of each known item in each table, int64 [V + 1, T]; index 0 is the unknown item."""
    if config.items == "direct":
        return np.arange(1 + len(vocabulary.items))[:, None]
    return vocabulary_rows(vocabulary.items, functions=config.hash_functions, rows=config.table_rows)


def frozen_model(release: Release) -> UserEncoder:
    """The release's network, in evaluation mode. Raises DataError if the weights do not fit its configuration,
    UsageError if this machine cannot run `kernels.backend`."""
    require_usable()
    packed = None
    if release.info.packed is not None:
        packed = open_packed(release.info, known_items=len(release.vocabulary.items))
    model = new_model(release.info.model, release.vocabulary, packed=packed)
    weights = {name: torch.from_numpy(array) for name, array in release.weights.items()}
    take_weights(model, weights, release=release.info.name)
    return model.freeze()


def take_weights(model: UserEncoder, weights: Mapping[str, Tensor], *, release: str) -> None:
    """Loads the weights. Raises DataError, which names the release, if they do not fit."""
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise DataError(
            f"release `{release}`: the weights do not fit its configuration: {' '.join(str(error).split())}",
            hint="train the release again",
        ) from None


@dataclass(frozen=True, eq=False)
class LengthBatch:
    """Histories of some users. `users` int64 [U]; `rows` int64 [N]: index of each event; `offsets` int64 [U + 1] into
    `rows`; `lengths` int64 [U]: real events of each history; the padding after them repeats the last one."""

    users: Indexes
    rows: Tensor
    offsets: Tensor
    lengths: Tensor


def batches_by_length(offsets: Indexes, *, token_budget: int) -> Iterator[LengthBatch]:
    """Users with events, short histories first, in batches of at most `token_budget` events (at least one user).

    If padding adds at most 10 % to a batch, as usual, its histories are padded to one length: attention is causal, so
    no event sees the padding after it, and a rectangular batch needs no gathering in any layer."""
    lengths = np.diff(offsets)
    order = np.argsort(lengths, kind="stable")
    order = order[lengths[order] > 0]
    while order.size:
        within = max(int(np.searchsorted(np.cumsum(lengths[order]), token_budget, side="right")), 1)
        users, order = order[:within], order[within:]
        real = lengths[users]
        longest = int(real[-1])
        if longest * len(users) <= (1 + _PADDING) * real.sum():
            rows = (offsets[users, None] + np.minimum(np.arange(longest), real[:, None] - 1)).ravel()
            bounds = np.arange(len(users) + 1) * longest
        else:
            rows, bounds = slice_rows(offsets[users], real)
        yield LengthBatch(users, torch.from_numpy(rows), torch.from_numpy(bounds), torch.from_numpy(real))
