"""What is held out reaches nothing that trains: from the file of events to batches, links, validator and recipe."""

import hashlib
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as pq
import pytest

from spoor.activity.settings import EventSettings
from spoor.activity.simulator import SimulatorSettings, simulate
from spoor.encoder.data import corpus_build
from spoor.encoder.data.batches import Batch, BatchReader, build_vocabulary, target_counts
from spoor.encoder.data.corpus import Corpus
from spoor.encoder.data.item_links import count_links
from spoor.encoder.data.split import TEST, TRAIN, VALIDATION, Protocol, make_split, training_statistics
from spoor.encoder.evaluation.mixture import Mixture
from spoor.encoder.evaluation.validation import Validator
from spoor.encoder.model.config import MODEL_CONFIGS
from spoor.encoder.release.inference import new_model
from spoor.encoder.training.recipe import choose

HOUR_MS = 3_600_000
START_MS = 1_700_000_000_000 // HOUR_MS * HOUR_MS
POSITIVE = ["view", "save"]


@pytest.fixture(autouse=True)
def small_partitions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus_build, "_PARTITION_EVENTS", 300)


def written(path: Path, events: pa.Table) -> Path:
    pq.write_table(events, path) if path.suffix == ".parquet" else csv.write_csv(events, path)
    return path


def coarse_events(*, pos: bool) -> pa.Table:
    """Many events of a user share an hour; with `pos` the rows are in disorder besides."""
    settings = SimulatorSettings(events=2_000, from_ms=START_MS, to_ms=START_MS + 10**8, users=40, items=60, seed=2)
    events = pa.concat_tables(simulate(settings)).sort_by("timestamp")
    times = events["timestamp"].to_numpy() // HOUR_MS * HOUR_MS
    events = events.set_column(4, events.schema.field(4), pa.array(times))
    if not pos:
        return events
    places = pa.array(np.arange(len(events)))
    return events.append_column("pos", places).take(np.random.default_rng(0).permutation(len(events)))


def with_other_tests(events: pa.Table, corpus: Corpus, protocol: Protocol) -> pa.Table:
    """The same events; those that test are of an item, action and surface that nothing else has, with long names."""
    histories = corpus.read(0, corpus.users)
    roles = make_split(corpus, protocol).roles(histories)
    tests = {user: int((roles[a:b] == TEST).sum()) for user, a, b in spans(corpus)}
    order = events["pos"].to_numpy() if "pos" in events.column_names else np.arange(len(events))
    left = dict(tests)
    changed = events.to_pylist()
    for row in np.argsort(-order, kind="stable"):  # newest first
        if left[changed[row]["user_id"]]:
            left[changed[row]["user_id"]] -= 1
            changed[row] |= {"item_id": "other" * 20, "action": "other", "surface": "other"}
    assert sum(tests.values()) > 30 and not any(left.values())
    return pa.Table.from_pylist(changed, schema=events.schema)


def spans(corpus: Corpus) -> list[tuple[str, int, int]]:
    return list(
        zip(corpus.user_ids(0, corpus.users), corpus.offsets[:-1].tolist(), corpus.offsets[1:].tolist(), strict=True)
    )


def digest(*arrays: Any) -> str:
    found = hashlib.sha256()
    for array in arrays:
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


def everything_that_trains(corpus: Corpus, protocol: Protocol) -> dict[str, Any]:
    """Each input of a run by name, large ones as digests."""
    split = make_split(corpus, protocol)
    vocabulary = build_vocabulary(corpus, split)
    recipe = choose(training_statistics(corpus, split))
    model = new_model(MODEL_CONFIGS["tiny"], vocabulary)
    model.initialise(0)
    model.eval()
    found: dict[str, Any] = {
        "statistics": training_statistics(corpus, split),
        "recipe": (recipe.model, json.dumps(recipe.settings), recipe.repeats, recipe.reasons),
        "vocabulary": (vocabulary.item_ids, digest(vocabulary.items, vocabulary.actions, vocabulary.surfaces)),
        "users": corpus.user_ids(0, corpus.users),
    }
    for role in (TRAIN, VALIDATION):
        counts = target_counts(corpus, split, vocabulary, roles_upto=role, positive_actions=POSITIVE)
        links = count_links(corpus, split, vocabulary, upto=role)
        found[f"counts {role}"] = counts.tolist()
        found[f"links {role}"] = digest(*links.arrays().values())
        found[f"start {role}"] = digest(links.factors(8, seed=0))
        reader = BatchReader(
            corpus,
            split,
            vocabulary,
            roles_upto=role,
            segment_length=9,
            token_budget=80,
            seed=0,
            positive_actions=POSITIVE,
            block_events=300,
        )
        for epoch in range(2):
            batches = [
                digest(*(getattr(batch, field.name).numpy() for field in fields(Batch)))
                for batch in reader.epoch(epoch)
            ]
            assert len(batches) > 10
            found[f"batches {role} {epoch}"] = batches
    for seen in ("filtered", "kept"):
        validator = Validator(corpus, split, vocabulary, seen=seen, max_users=25)
        found[f"validation {seen}"] = validator.measure(model)
        links = count_links(corpus, split, vocabulary, upto=TRAIN)
        found[f"mixture {seen}"] = Mixture.fit(links, validator.asked(model), seen=seen).weights
    return found


@pytest.mark.parametrize("protocol", ["leave-one-out", "global-time"])
@pytest.mark.parametrize(("suffix", "pos"), [("parquet", False), ("parquet", True), ("csv", False), ("csv", True)])
def test_other_held_out_items_leave_every_input_of_training_to_the_bit(
    tmp_path: Path, protocol: Protocol, suffix: str, pos: bool
) -> None:
    events = coarse_events(pos=pos)
    path = written(tmp_path / f"e.{suffix}", events)
    corpus = Corpus.build(path, tmp_path / "corpus", events=EventSettings())
    assert corpus.counts.tie_share > 0.2
    changed = with_other_tests(events, corpus, protocol)
    other = Corpus.build(written(tmp_path / f"other.{suffix}", changed), tmp_path / "other", events=EventSettings())
    assert other.fingerprint != corpus.fingerprint and other.events == corpus.events
    expected, found = everything_that_trains(corpus, protocol), everything_that_trains(other, protocol)
    assert [name for name in expected if found[name] != expected[name]] == []


def test_another_training_item_is_noticed(tmp_path: Path) -> None:
    """So that the test above can fail."""
    events = coarse_events(pos=False)
    corpus = Corpus.build(written(tmp_path / "e.parquet", events), tmp_path / "corpus", events=EventSettings())
    items = events["item_id"].to_pylist()
    users = events["user_id"].to_pylist()
    first = users.index(max(set(users), key=users.count))
    items[first] = next(item for item in items if item != items[first])
    changed = written(tmp_path / "other.parquet", events.set_column(1, events.schema.field(1), pa.array(items)))
    other = Corpus.build(changed, tmp_path / "other", events=EventSettings())
    expected, found = everything_that_trains(corpus, "leave-one-out"), everything_that_trains(other, "leave-one-out")
    names = {name for name in expected if found[name] != expected[name]}
    assert {"links 0", "start 0", "batches 0 0", "batches 1 1"} <= names
