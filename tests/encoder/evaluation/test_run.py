"""The whole table on small corpora: against plain loops, without a look at what is asked, in every awkward case."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from spoor.activity.events import Event, events_table
from spoor.activity.settings import EventSettings
from spoor.activity.simulator import SimulatorSettings, simulate
from spoor.base.errors import DataError
from spoor.encoder.baselines.by_name import FLOORS, make_baselines
from spoor.encoder.baselines.popularity import Popularity
from spoor.encoder.data.batches import build_vocabulary
from spoor.encoder.data.corpus import Corpus
from spoor.encoder.data.split import TEST, VALIDATION, Protocol, make_split
from spoor.encoder.evaluation import questions, run
from spoor.encoder.evaluation.metrics import METRICS
from spoor.encoder.evaluation.questions import Inputs, Seen
from spoor.encoder.evaluation.report import EvaluationReport
from spoor.encoder.evaluation.run import evaluate_scorers
from spoor.encoder.evaluation.scoring import Scorer, Scores, Training
from spoor.encoder.model.vocabulary import Vocabulary

DAY_MS = 86_400_000
START_MS = 19_675 * DAY_MS
Build = Callable[[pa.Table], Corpus]


@pytest.fixture
def build(tmp_path: Path) -> Build:
    made = iter(range(99))
    return lambda events: Corpus.build(events, tmp_path / f"corpus-{next(made)}", events=EventSettings())


def simulated(seed: int = 0) -> pa.Table:
    settings = SimulatorSettings(
        events=1_500, from_ms=START_MS, to_ms=START_MS + 60 * DAY_MS, users=50, items=40, seed=seed
    )
    return pa.concat_tables(simulate(settings))


class Recorder:
    """Popularity that keeps what it was shown."""

    def __init__(self) -> None:
        self.inner = Popularity()
        self.inputs: list[tuple[list[int], ...]] = []

    def prepare(self, training: Training) -> None:
        self.training = training
        self.inner.prepare(training)

    def scores(self, inputs: Inputs) -> Scores:
        bounds = inputs.offsets
        self.inputs += [tuple(inputs.items[bounds[row] : bounds[row + 1]].tolist()) for row in range(inputs.count)]
        return self.inner.scores(inputs)

    def describe(self) -> str:
        return "recorder"


def evaluated(
    corpus: Corpus, scorers: dict[str, Scorer], *, protocol: Protocol = "leave-one-out", seen: Seen = "filtered", **more
) -> EvaluationReport:
    split = make_split(corpus, protocol)
    vocabulary: Vocabulary = build_vocabulary(corpus, split)
    return evaluate_scorers(corpus, split, vocabulary, scorers, seen=seen, **more)


@pytest.mark.parametrize("protocol", ["leave-one-out", "global-time"])
@pytest.mark.parametrize("seen", ["filtered", "kept"])
def test_popularity_equals_a_plain_loop(
    build: Build, protocol: Protocol, seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = build(simulated())
    split = make_split(corpus, protocol)
    vocabulary = build_vocabulary(corpus, split)
    histories = corpus.read(0, corpus.users)
    roles, items = split.roles(histories), vocabulary.item_indexes(histories.values["item"])
    counts = Counter(items[roles < TEST].tolist())
    places, seen_before, unknown, users = [], 0, 0, set()
    for user in range(corpus.users):
        start, end = histories.offsets[user], histories.offsets[user + 1]
        for row in range(start + 1, end):
            if roles[row] != TEST:
                continue
            had, target = set(items[start:row].tolist()), int(items[row])
            seen_before += target in had and target > 0
            unknown += target == 0
            users.add(user)
            candidates = [item for item in range(1, len(vocabulary.items) + 1) if seen == "kept" or item not in had]
            if target in candidates:
                higher = sum(counts[item] > counts[target] for item in candidates)
                equal = sum(counts[item] == counts[target] for item in candidates) - 1
                places.append(higher + equal / 2)
            else:
                places.append(np.inf)
    monkeypatch.setattr(run, "_BLOCK_EVENTS", 200)
    monkeypatch.setattr(questions, "_MOST_QUESTIONS", 7)
    report = evaluated(corpus, {"popularity": Popularity()}, protocol=protocol, seen=seen)
    assert (report.questions, report.users) == (len(places), len(users))
    assert (report.seen_targets, report.unknown_targets) == (seen_before, unknown)
    assert seen_before > 0
    for cutoff in (5, 10, 50):
        hits = np.array(places) < cutoff
        assert report.rows[0].metrics[f"recall@{cutoff}"] == pytest.approx(hits.mean())
        gains = np.where(hits, 1 / np.log2(np.array(places) + 2), 0)
        assert report.rows[0].metrics[f"ndcg@{cutoff}"] == pytest.approx(gains.mean())
    assert report.rows[0].coverage <= 1


@pytest.mark.parametrize("protocol", ["leave-one-out", "global-time"])
def test_what_is_asked_is_in_no_input_and_in_no_training(build: Build, protocol: Protocol) -> None:
    """Other test items, same everything else: scorers are shown the same."""
    table = simulated()
    corpus = build(table)
    split = make_split(corpus, protocol)
    histories = corpus.read(0, corpus.users)
    tests = {
        (user, int(histories.values["timestamp"][row]))
        for user, (start, end) in zip(
            corpus.user_ids(0, corpus.users),
            zip(histories.offsets[:-1], histories.offsets[1:], strict=True),
            strict=True,
        )
        for row in range(start, end)
        if split.roles(histories)[row] == TEST
    }
    changed = events_table(
        Event(
            row["user_id"],
            "item-never-seen" if (row["user_id"], row["timestamp"]) in tests else row["item_id"],
            row["action"],
            row["surface"],
            row["timestamp"],
        )
        for row in table.to_pylist()
    )
    before, after = Recorder(), Recorder()
    evaluated(corpus, {"recorder": before}, protocol=protocol)
    report = evaluated(build(changed), {"recorder": after}, protocol=protocol)
    assert report.unknown_targets == report.questions > 20
    assert before.training.items.tolist() == after.training.items.tolist()
    if protocol == "leave-one-out":  # by time, a test event is input to the tests after it
        assert sorted(before.inputs) == sorted(after.inputs)


def test_asking_for_validation_shows_training_alone(build: Build) -> None:
    recorder = Recorder()
    report = evaluated(build(simulated()), {"recorder": recorder}, role=VALIDATION)
    assert report.role == "validation"
    assert set(recorder.training.roles.tolist()) == {0}


def test_rows_are_compared_in_pairs_and_the_report_is_json_text_and_picture(build: Build) -> None:
    scorers = make_baselines([*FLOORS]) | {"again": Popularity()}
    report = evaluated(build(simulated()), scorers, seen="kept")
    shown = json.loads(json.dumps(report.to_json()))
    assert list(shown["rows"]) == [*FLOORS, "again"]
    assert shown["recall@10"] == shown["rows"]["popularity"]["recall@10"]
    assert shown["recall@10_interval"][0] <= shown["recall@10"] <= shown["recall@10_interval"][1]
    assert {*METRICS, "seconds", "users", "seen", "digest", "coverage@10", "popularity_share@10"} <= shown.keys()
    assert shown["differences"]["again"]["ndcg@10_interval"] == [0, 0]
    for by in ("history length", "item age", "item popularity"):
        parts = [part for part in report.slices if part.by == by]
        assert sum(part.questions for part in parts) == report.questions
        mean = sum(part.questions * part.metrics["markov"]["recall@10"] for part in parts) / report.questions
        assert mean == pytest.approx(shown["rows"]["markov"]["recall@10"])
    assert all(name in report.text() for name in [*FLOORS, "again", "seen items kept"])
    assert report.picture().startswith(b"\x89PNG")


def test_the_seed_moves_intervals_alone(build: Build) -> None:
    corpus = build(simulated())
    first, again, other = (evaluated(corpus, {"p": Popularity()}, seed=seed).rows[0] for seed in (1, 1, 2))
    assert first.intervals == again.intervals != other.intervals
    assert first.metrics == other.metrics


def test_bands_of_age_and_popularity(build: Build) -> None:
    """Ann's test item is a week old and has two events before; Bob's is new to everyone."""
    events = [("ann", "a", 0), ("ann", "b", 1), ("ann", "c", 8), ("bob", "c", 1), ("bob", "c", 2), ("bob", "x", 9)]
    table = events_table(Event(user, item, "v", "s", START_MS + day * DAY_MS) for user, item, day in events)
    report = evaluated(build(table), {"p": Popularity()})
    found = {(part.by, part.band): part.questions for part in report.slices}
    assert found == {
        ("history length", "1 to 4"): 2,
        ("item age", "7 to 28 days"): 1,
        ("item age", "unknown to the release"): 1,
        ("item popularity", "1 to 4"): 1,
        ("item popularity", "unknown to the release"): 1,
    }


def test_nothing_to_ask_is_an_error_that_says_what_is_needed(build: Build) -> None:
    table = events_table(Event(user, "a", "v", "s", START_MS + n) for user in "ab" for n in range(2))
    with pytest.raises(DataError, match="no event to ask for") as error:
        evaluated(build(table), {"popularity": Popularity()})
    assert "three events" in error.value.hint


def test_a_scorer_without_numbers_is_named(build: Build) -> None:
    class Broken(Popularity):
        def scores(self, inputs: Inputs) -> Scores:
            return super().scores(inputs) * np.float32(np.nan)

    with pytest.raises(DataError, match="broken: scores hold NaN"):
        evaluated(build(simulated()), {"broken": Broken()})
