"""Names of this version and of the one before it find each other: releases and stored histories may be older."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from spoor.activity.events import Event, events_table
from spoor.activity.hashing import hash_names, old_names
from spoor.activity.history import Histories
from spoor.activity.packing import unpack
from spoor.activity.settings import EventSettings
from spoor.encoder.data.batches import BatchReader, build_vocabulary
from spoor.encoder.data.corpus import Corpus
from spoor.encoder.data.split import VALIDATION, make_split
from spoor.encoder.model.config import MODEL_CONFIGS
from spoor.encoder.model.vocabulary import name_indexes
from spoor.encoder.release.folder import load_release
from spoor.encoder.release.inference import FrozenEncoder, new_model
from tests.earlier_version import age_release, old_packed
from tests.encoder.conftest import ACTIONS, ReleaseParts


def test_names_are_found_whichever_side_is_older() -> None:
    known, asked = np.sort(hash_names(ACTIONS)), hash_names([*ACTIONS, "new"])
    expected = [*(1 + np.searchsorted(known, asked[:-1])), 0]
    for names in (known, old_names(known)):
        for hashes in (asked, old_names(asked)):
            assert name_indexes(hashes, names).tolist() == expected
    assert name_indexes(asked, known[:0]).tolist() == [0] * 4
    assert name_indexes(asked[:0], known).tolist() == []


def test_an_old_name_that_two_known_names_begin_with_is_unknown() -> None:
    both = np.sort(hash_names(["page-57", "page-268"]))
    assert name_indexes(old_names(both), both).tolist() == [0, 0]
    assert name_indexes(both, both).tolist() == [1, 2]
    assert name_indexes(both, old_names(both)[:1]).tolist() == [1, 1]  # the old release took them for one


def test_the_smallest_and_the_largest_old_name_find_theirs() -> None:
    known = np.array([5 << 20, 65535 << 48 | 3], np.uint64)
    assert name_indexes(np.array([0, 65535, 65534], np.uint64), known).tolist() == [1, 2, 0]


def test_an_old_release_gives_the_same_vectors_for_old_and_new_histories(
    parts: ReleaseParts, make_histories: Callable[..., Histories], tmp_path: Path
) -> None:
    parts.save(tmp_path / "new")
    parts.save(tmp_path / "old")
    age_release(tmp_path / "old")
    histories = make_histories([0, 1, 30, 7])
    older = unpack([old_packed(histories[user]) for user in range(histories.count)])
    assert older.hold_old_events().tolist() == [False, True, True, True]
    expected, used = FrozenEncoder(load_release(tmp_path / "new")).encode(histories)
    assert used.tolist() == [0, 1, 30, 7]
    for release in ("new", "old"):
        encoder = FrozenEncoder(load_release(tmp_path / release))
        for each in (histories, older):
            assert np.array_equal(encoder.encode(each)[0], expected)
    assert load_release(tmp_path / "old").info.hash_version == 1


def test_100_000_names_are_learned_and_encoded(tmp_path: Path) -> None:
    """Pages as surfaces: hash version 1 told about 300 apart."""
    names = [f"page-{number}" for number in range(100_000)]
    start = 1_700_000_000_000
    events = [Event(f"u{n % 1_000}", f"i{n % 50}", "view", name, start + n) for n, name in enumerate(names)]
    corpus = Corpus.build(events_table(events), tmp_path / "corpus", events=EventSettings())
    vocabulary = build_vocabulary(corpus, make_split(corpus, "newest"))
    assert len(vocabulary.surfaces) == 100_000
    histories = corpus.read(0, corpus.users)
    _, _, surfaces = vocabulary.event_indexes(histories)
    assert len(np.unique(surfaces)) == 100_000 and surfaces.min() == 1
    reader = BatchReader(
        corpus,
        make_split(corpus, "newest"),
        vocabulary,
        roles_upto=VALIDATION,
        segment_length=100,
        token_budget=4_096,
        seed=0,
    )
    batch = next(reader.epoch(0))
    assert len(np.unique(batch.surfaces.numpy())) == batch.tokens
    model = new_model(MODEL_CONFIGS["tiny"], vocabulary)
    model.initialise(0)
    model.last(batch).sum().backward()
    assert model.surfaces.weight.grad is not None
    assert np.count_nonzero(model.surfaces.weight.grad.abs().sum(1).numpy()) > batch.tokens // 2
