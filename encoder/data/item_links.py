"""Item links: which items follow which in histories, as a sparse matrix without trained parameters.

    links[a, b] = ( n(a before b) + BACKWARD n(b before a) ) / ( n(a) n(b) )^POPULARITY
    n(a before b) = sum over users of GAP_DECAY^(gap - 1), for gaps of 1 to LONGEST_GAP events

They have two uses. Their leading factors initialise the item table of a small catalogue: the transformer then needs few
epochs. Their scores complement the user vector's, because a vector of a few hundred floats cannot hold rare pairs.
docs/decisions/0006-item-links-start-the-table-and-stay-out-of-the-vector.md measures both.

Legend: N events, U users, V known items (index 0 is the unknown item, linked to nothing), F floats of a factor.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
import torch

from spoor.base.errors import DataError
from spoor.encoder.data.corpus import Corpus
from spoor.encoder.data.split import Split
from spoor.encoder.model.vocabulary import Indexes, Vocabulary

LONGEST_GAP = 8  # events
GAP_DECAY = 0.85
BACKWARD = 0.5  # weight of a pair read against time
POPULARITY = 0.4  # 0: counts; 0.5: cosine, which favours chance pairs of rare items
AGE_DECAY = 0.7  # of an event's weight in scores, per later event
_GAP_WEIGHTS = tuple(GAP_DECAY ** (gap - 1) for gap in range(1, LONGEST_GAP + 1))
_MOST_PER_ITEM = 300  # strongest links kept of each item
_ROWS_AT_ONCE = 4_096  # items whose links are computed together
_POWER_ITERATIONS = 4  # of the randomised factorisation: training moves the factors by far more than its error
_NOISE = 0.3  # share of noise in an item's first vector, so that items without links differ


@dataclass(frozen=True, eq=False)
class ItemLinks:
    """`matrix` float32 CSR [V + 1, V + 1], row: an item of the history, column: a candidate; `events` int64[V + 1]:
    number of events of each item."""

    matrix: Any  # scipy.sparse.csr_matrix, which has no useful type
    events: Indexes

    @classmethod
    def count(cls, histories: Iterable[tuple[Indexes, Indexes]], *, vocabulary_size: int) -> ItemLinks:
        """From blocks of (items int64[N], offsets int64[U + 1]), each history oldest first."""
        shape = (vocabulary_size + 1, vocabulary_size + 1)
        before = sp.csr_matrix(shape, dtype=np.float32)
        seen = np.zeros(vocabulary_size + 1, np.int64)
        for items, offsets in histories:
            before = before + count_pairs(items, offsets, weights=_GAP_WEIGHTS, size=shape[0], repeats=False)
            seen += np.bincount(items, minlength=vocabulary_size + 1)
        scale = np.maximum(seen, 1.0) ** -POPULARITY
        after = before.T.tocsr()
        parts = [sp.csr_matrix((0, shape[1]), dtype=np.float32)]
        for start in range(0, shape[0], _ROWS_AT_ONCE):  # in parts: most links are dropped, so never hold all
            rows = slice(start, start + _ROWS_AT_ONCE)
            linked = sp.diags_array(scale[rows]) @ (before[rows] + BACKWARD * after[rows]) @ sp.diags_array(scale)
            parts.append(_strongest(linked.tocsr(), _MOST_PER_ITEM))
        return cls(sp.vstack(parts, format="csr"), seen)

    def scores(self, items: Indexes, offsets: Indexes) -> npt.NDArray[np.float32]:
        """Histories (oldest first) to [U, V + 1]: links from every event; newer events count more."""
        ages = np.repeat(offsets[1:], np.diff(offsets)) - 1 - np.arange(len(items))
        weights = (AGE_DECAY**ages).astype(np.float32)
        histories = sp.csr_matrix((weights, items, offsets), shape=(len(offsets) - 1, self.matrix.shape[0]))
        return (histories @ self.matrix).toarray()

    def factors(self, width: int, *, seed: int) -> npt.NDArray[np.float32]:
        """[V + 1, width], rows of norm 1: items with similar links get similar vectors. Row 0 is only noise.

        The leading factors of the symmetrised links, plus a little noise.
        """
        rng = np.random.default_rng(seed)
        noise = _unit_rows(rng.normal(size=(self.matrix.shape[0], width)))
        rank = min(width, self.matrix.shape[0] - 1)
        if self.matrix.nnz == 0 or rank < 1:
            return noise
        vectors = np.zeros_like(noise)
        vectors[:, :rank] = _leading_factors(self.matrix, rank, seed=seed)
        return _unit_rows((1 - _NOISE) * _unit_rows(vectors) + _NOISE * noise)

    def arrays(self) -> dict[str, npt.NDArray[np.generic]]:
        """Arrays for a release's files; `from_arrays` is the inverse."""
        return {
            "starts": np.asarray(self.matrix.indptr, np.int64),
            "items": np.asarray(self.matrix.indices, np.int32),
            "weights": np.asarray(self.matrix.data, np.float32),
            "events": self.events,
        }

    @classmethod
    def from_arrays(cls, arrays: dict[str, npt.NDArray[np.generic]], *, vocabulary_size: int) -> ItemLinks:
        """Raises DataError if the arrays are not the links of a vocabulary of this size."""
        size = vocabulary_size + 1
        try:
            matrix = sp.csr_matrix((arrays["weights"], arrays["items"], arrays["starts"]), shape=(size, size))
            matrix.check_format(full_check=True)
            events = np.asarray(arrays["events"], np.int64)
            if events.shape != (size,):
                raise ValueError(f"events of {len(events)} items")
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"these are no links of {vocabulary_size} items: {error}") from None
        return cls(matrix, events)


def count_links(corpus: Corpus, split: Split, vocabulary: Vocabulary, *, upto: int) -> ItemLinks:
    """Item links of the events whose role is at most `upto`."""
    seen = split.allowed_histories(corpus, upto=upto)
    blocks = ((vocabulary.item_indexes(block.values["item"]), block.offsets) for block in seen)
    return ItemLinks.count(blocks, vocabulary_size=len(vocabulary.items))


def count_pairs(items: Indexes, offsets: Indexes, *, weights: Sequence[float], size: int, repeats: bool) -> Any:
    """float32 CSR [size, size]: how often the column's item came after the row's in one history; a pair g events apart
    counts weights[g - 1]. Item 0 is not counted; `repeats`: whether an item pairs with itself."""
    users = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    found = sp.csr_matrix((size, size), dtype=np.float32)
    for gap, weight in enumerate(weights, 1):
        earlier, later = slice(None, -gap), slice(gap, None)
        together = (users[earlier] == users[later]) & (items[earlier] > 0) & (items[later] > 0)
        if not repeats:
            together &= items[earlier] != items[later]
        places = (items[earlier][together], items[later][together])
        found = found + sp.csr_matrix((np.full(len(places[0]), weight, np.float32), places), shape=(size, size))
    return found


def _strongest(matrix: Any, most: int) -> Any:
    """The `most` largest entries of each row; ties go to the lower column."""
    starts = np.asarray(matrix.indptr)
    rows = np.repeat(np.arange(matrix.shape[0]), np.diff(starts))
    columns, values = np.asarray(matrix.indices), np.asarray(matrix.data)
    order = np.lexsort((columns, -values, rows))
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    kept = place - starts[rows] < most
    entries = (values[kept].astype(np.float32), (rows[kept], columns[kept]))
    return sp.csr_matrix(entries, shape=matrix.shape)


def _leading_factors(matrix: Any, rank: int, *, seed: int) -> npt.NDArray[np.float32]:
    """Singular vectors of the symmetrised links times the root of their singular values, by randomised SVD (Halko et
    al., arXiv 0909.4061)."""
    both_ways = 0.5 * (matrix + matrix.T)
    both_ways.sum_duplicates()  # also sorts, so torch need not copy and sort it
    both_ways = both_ways.tocoo()
    places = np.stack([both_ways.row, both_ways.col]).astype(np.int64)
    values = torch.from_numpy(both_ways.data.astype(np.float32))
    symmetric = torch.sparse_coo_tensor(
        torch.from_numpy(places), values, both_ways.shape, check_invariants=True, is_coalesced=True
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        u, s, _ = torch.svd_lowrank(symmetric, q=rank, niter=_POWER_ITERATIONS)
    return (u * s.sqrt()).numpy()


def _unit_rows(x: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
    norms = np.linalg.norm(x, axis=1, keepdims=True)
    return (x / np.maximum(norms, 1e-12)).astype(np.float32)
