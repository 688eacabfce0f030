"""Batches: every allowed event once an epoch, targets, masks, order, resuming, and no look at what is held out."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spoor.activity.events import Event, events_table
from spoor.activity.hashing import hash_item
from spoor.activity.settings import EventSettings
from spoor.activity.simulator import SimulatorSettings, simulate
from spoor.encoder.data.batches import Batch, BatchReader, build_vocabulary, cut, target_counts
from spoor.encoder.data.corpus import Corpus
from spoor.encoder.data.split import TEST, TRAIN, VALIDATION, make_split
from spoor.encoder.model.events import log_gaps

START_MS = 1_700_000_000_000
STORY = [("a", "save"), ("b", "hide"), ("a", "save"), ("c", "save"), ("d", "hide"), ("e", "save")]


def corpus_of(folder: Path, events: pa.Table) -> Corpus:
    return Corpus.build(events, folder / "corpus", events=EventSettings())


def simulated(events: int = 5_000) -> pa.Table:
    settings = SimulatorSettings(events=events, from_ms=START_MS, to_ms=START_MS + 10**9, users=60, items=90)
    return pa.concat_tables(simulate(settings))


def reader_of(corpus: Corpus, **changes: Any) -> BatchReader:
    split = make_split(corpus, changes.pop("protocol", "leave-one-out"))
    options: dict[str, Any] = {
        "roles_upto": TRAIN,
        "segment_length": 20,
        "token_budget": 150,
        "seed": 0,
        "block_events": 400,
    }
    return BatchReader(corpus, split, build_vocabulary(corpus, split), **(options | changes))


def same(one: Batch, other: Batch) -> bool:
    return all(torch.equal(getattr(one, field.name), getattr(other, field.name)) for field in fields(Batch))


def seen_rows(batches: list[Batch]) -> dict[tuple[int, int], int]:
    """(user, index in the history) -> vocabulary index of the item, of every event of the batches."""
    rows: dict[tuple[int, int], int] = {}
    for batch in batches:
        for s, (user, start) in enumerate(zip(batch.users.tolist(), batch.starts.tolist(), strict=True)):
            items = batch.items[int(batch.offsets[s]) : int(batch.offsets[s + 1])].tolist()
            for place, item in enumerate(items, start):
                assert (user, place) not in rows
                rows[user, place] = item
    return rows


@given(
    st.lists(st.integers(0, 30), max_size=20),
    st.integers(1, 9),
    st.integers(0, 10**6),
)
def test_cuts_cover_every_event_from_which_something_can_be_learned(
    lengths: list[int], segment_length: int, seed: int
) -> None:
    shifts = np.random.default_rng(seed).integers(0, segment_length, len(lengths))
    segments = cut(np.array(lengths, np.int64), shifts, segment_length=segment_length)
    assert np.all(segments.lengths >= 1) and np.all(segments.lengths <= segment_length)
    covered = [
        (user, place)
        for user, start, end in zip(segments.users, segments.starts, segments.ends, strict=True)
        for place in range(start, end)
    ]
    assert len(covered) == len(set(covered))
    missing = {(u, p) for u, length in enumerate(lengths) for p in range(length)} - set(covered)
    assert all(place == lengths[user] - 1 for user, place in missing)  # a last event, alone: nothing follows it
    whole = [u for u, length in enumerate(lengths) if 2 <= length <= segment_length]
    assert all(np.sum(segments.users == user) == 1 for user in whole)


def test_cuts_go_backwards_from_the_newest_event_and_shift() -> None:
    def slices(shift: int) -> list[tuple[int, int]]:
        segments = cut(np.array([10]), np.array([shift]), segment_length=4)
        return list(zip(segments.starts.tolist(), segments.ends.tolist(), strict=True))

    assert slices(0) == [(6, 10), (2, 6), (0, 2)]
    assert slices(2) == [(8, 10), (4, 8), (0, 4)]
    assert slices(3) == [(5, 9), (1, 5), (0, 1)]


def test_an_epoch_holds_every_allowed_event_once_as_the_corpus_has_it(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path, simulated())
    histories = corpus.read(0, corpus.users)
    for upto in (TRAIN, VALIDATION, TEST):
        reader = reader_of(corpus, roles_upto=upto)
        items, _, _ = reader.vocabulary.event_indexes(histories)
        batches = list(reader.epoch(0))
        assert all(batch.tokens <= 150 for batch in batches)
        rows = seen_rows(batches)
        assert all(items[histories.offsets[user] + place] == item for (user, place), item in rows.items())
        allowed = make_split(corpus, "leave-one-out").roles(histories) <= upto
        allowed[histories.offsets[:-1]] = False  # a first event follows nothing
        pairs = sum(int((batch.targets > 0).sum()) for batch in batches)
        assert pairs == int((items[allowed] > 0).sum())
        if upto <= VALIDATION:
            counts = target_counts(corpus, make_split(corpus, "leave-one-out"), reader.vocabulary, roles_upto=upto)
            assert counts.sum() == pairs


def test_the_same_arguments_give_the_same_batches_and_others_give_others(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path, simulated())
    batches = list(reader_of(corpus).epoch(3))
    assert all(same(one, other) for one, other in zip(batches, reader_of(corpus).epoch(3), strict=True))
    for other in (reader_of(corpus).epoch(4), reader_of(corpus, seed=1).epoch(3)):
        assert not torch.equal(batches[0].users, next(other).users)
    in_order = torch.cat([batch.users for batch in reader_of(corpus, block_events=10**6).epoch(0)]).numpy()
    assert abs(np.corrcoef(in_order, np.arange(len(in_order)))[0, 1]) < 0.2


def test_long_histories_are_cut_elsewhere_in_another_epoch(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path, events_table([Event("u", str(n), "v", "s", START_MS + n) for n in range(103)]))
    reader = reader_of(corpus)
    cuts = {tuple(sorted(s for batch in reader.epoch(epoch) for s in batch.starts.tolist())) for epoch in range(12)}
    assert len(cuts) > 6


@pytest.mark.parametrize("block_events", [100, 400, 10**6])
def test_an_epoch_goes_on_at_any_batch_without_reading_those_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_events: int
) -> None:
    corpus = corpus_of(tmp_path, simulated())
    reader = reader_of(corpus, block_events=block_events)
    batches = list(reader.epoch(1))
    assert len(batches) == reader.batches(1)
    for start in (0, 1, len(batches) // 2, len(batches) - 1):
        rest = list(reader.epoch(1, start_batch=start))
        assert len(rest) == len(batches) - start
        assert all(same(one, other) for one, other in zip(rest, batches[start:], strict=True))
    reads: list[tuple[int, int]] = []
    read = Corpus.read
    monkeypatch.setattr(Corpus, "read", lambda self, *users: reads.append(users) or read(self, *users))
    assert list(reader.epoch(1, start_batch=len(batches))) == []
    assert reads == []


def test_targets_positives_and_own_items_follow_the_positive_actions(tmp_path: Path) -> None:
    events = [Event("u", item, action, "s", START_MS + n * 1000) for n, (item, action) in enumerate(STORY)]
    corpus = corpus_of(tmp_path, events_table(events))
    reader = reader_of(corpus, roles_upto=VALIDATION, segment_length=3, positive_actions=["save"])
    names = ("-", *reader.vocabulary.item_ids)
    assert sorted(names) == ["-", "a", "b", "c", "d"]  # `e` only tests
    batches = list(reader.epoch(0))
    followed: dict[int, str] = {}
    for batch in batches:
        for s, start in enumerate(batch.starts.tolist()):
            rows = range(int(batch.offsets[s]), int(batch.offsets[s + 1]))
            followed |= {start + k: names[int(batch.targets[row])] for k, row in enumerate(rows)}
            own = batch.own_items[int(batch.own_offsets[s]) : int(batch.own_offsets[s + 1])].tolist()
            assert sorted(names[item] for item in own) == ["a", "c"]
            assert own == sorted(own)
            for k, row in enumerate(rows):
                assert bool(batch.positive[row]) == (STORY[start + k][1] == "save")
    assert [followed[place] for place in range(4)] == ["-", "a", "c", "-"]
    assert followed.get(4, "-") == "-"  # what follows the newest allowed event is no target
    counts = target_counts(
        corpus,
        make_split(corpus, "leave-one-out"),
        reader.vocabulary,
        roles_upto=VALIDATION,
        positive_actions=["save"],
    )
    assert {names[item]: count for item, count in enumerate(counts.tolist()) if count} == {"a": 1, "c": 1}


def test_gaps_are_log_seconds_and_start_anew_with_each_segment(tmp_path: Path) -> None:
    times = np.array([0, 1000, 61_000, 5_000, 5_500])
    gaps = log_gaps(times, np.array([0, 3, 3, 5]))
    assert np.allclose(gaps, np.log1p([0, 1, 60, 0, 0.5]))
    assert log_gaps(np.empty(0, np.int64), np.zeros(1, np.int64)).shape == (0,)
    for batch in reader_of(corpus_of(tmp_path, simulated())).epoch(0):
        assert np.array_equal(batch.log_gaps.numpy(), log_gaps(batch.times.numpy(), batch.offsets.numpy()))
        assert batch.log_gaps.dtype == torch.float32 and bool((batch.log_gaps[batch.offsets[:-1]] == 0).all())


def test_the_vocabulary_knows_what_trains_and_validates(tmp_path: Path) -> None:
    events = simulated(800)
    corpus = corpus_of(tmp_path, events)
    split = make_split(corpus, "leave-one-out")
    histories = corpus.read(0, corpus.users)
    for upto in (TRAIN, VALIDATION):
        vocabulary = build_vocabulary(corpus, split, roles_upto=upto)
        values = histories.values[split.roles(histories) <= upto]
        assert np.array_equal(vocabulary.items, np.unique(values["item"]))
        assert np.array_equal(vocabulary.actions, np.unique(values["action"]))
        assert np.array_equal(vocabulary.surfaces, np.unique(values["surface"]))
        assert vocabulary.items.tolist() == [hash_item(item) for item in vocabulary.item_ids]


@pytest.mark.parametrize("protocol", ["leave-one-out", "global-time"])
def test_what_is_held_out_changes_no_batch(tmp_path: Path, protocol: str) -> None:
    """Other items, actions and surfaces in the test events: vocabulary, counts and batches stay to the bit."""
    events = simulated()
    corpus = corpus_of(tmp_path, events)
    reader = reader_of(corpus, protocol=protocol, roles_upto=VALIDATION)
    batches = list(reader.epoch(0))
    assert sum(batch.tokens for batch in batches) > 1_000
    histories = corpus.read(0, corpus.users)
    tests = make_split(corpus, protocol).roles(histories) == TEST  # pyright: ignore[reportArgumentType]
    users = np.repeat(corpus.user_ids(0, corpus.users), histories.lengths)
    held_out = {(u, int(t)) for u, t in zip(users[tests], histories.values["timestamp"][tests], strict=True)}
    changed = [
        row | {"item_id": "other", "action": "other", "surface": "other"}
        if (row["user_id"], row["timestamp"]) in held_out
        else row
        for row in events.to_pylist()
    ]
    table = pa.Table.from_pylist(changed, schema=events.schema)
    assert table != events
    other = reader_of(corpus_of(tmp_path, table), protocol=protocol, roles_upto=VALIDATION)
    assert other.vocabulary.item_ids == reader.vocabulary.item_ids
    assert all(same(one, two) for one, two in zip(batches, other.epoch(0), strict=True))


def test_users_of_whom_nothing_can_be_learned_are_left_out(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path, events_table([Event(f"u{n}", "a", "v", "s", START_MS + n) for n in range(5)]))
    reader = reader_of(corpus)
    assert (reader.batches(0), list(reader.epoch(0))) == (0, [])


def test_a_segment_longer_than_the_budget_is_a_batch_of_its_own(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path, simulated(500))
    batches = list(reader_of(corpus, token_budget=1).epoch(0))
    assert all(len(batch.users) == 1 for batch in batches)
    assert len(seen_rows(batches)) > 300
