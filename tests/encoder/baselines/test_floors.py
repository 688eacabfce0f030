"""Each rule against the same rule written with dictionaries, and against figures known for real data."""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from spoor.activity.history import EVENT_DTYPE, Histories
from spoor.base.errors import UsageError
from spoor.encoder.baselines import item_knn
from spoor.encoder.baselines.by_name import BASELINES, FLOORS, make_baselines
from spoor.encoder.baselines.item_knn import REACH, ItemKnn, KnnSetting
from spoor.encoder.baselines.markov import Markov
from spoor.encoder.baselines.popularity import Popularity
from spoor.encoder.baselines.recent import Recent
from spoor.encoder.data.split import TEST, TRAIN, VALIDATION
from spoor.encoder.evaluation.metrics import leave_out_seen, per_question, target_places
from spoor.encoder.evaluation.questions import Inputs, Seen
from spoor.encoder.evaluation.scoring import Scorer, Training

DATA = Path(__file__).parents[4] / "shared" / "data"


def inputs_of(sequences: Sequence[Sequence[int]]) -> Inputs:
    histories = Histories.of([np.zeros(len(sequence), EVENT_DTYPE) for sequence in sequences])
    return Inputs(histories, np.array([item for sequence in sequences for item in sequence], np.int64))


def training_of(sequences: Sequence[Sequence[int]], *, items: int, seen: Seen = "kept") -> Training:
    """The last event of everybody with two validates."""
    offsets = np.cumsum([0, *(len(sequence) for sequence in sequences)])
    roles = np.full(offsets[-1], TRAIN, np.uint8)
    roles[offsets[1:][np.diff(offsets) >= 2] - 1] = VALIDATION
    flat = np.array([item for sequence in sequences for item in sequence], np.int32)
    return Training(flat, offsets, roles, items, seen)


def random_sequences(users: int, items: int, *, seed: int) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, items + 1, rng.integers(0, 15)).tolist() for _ in range(users)]


def prepared(scorer: Scorer, sequences: Sequence[Sequence[int]], *, items: int) -> Scorer:
    scorer.prepare(training_of(sequences, items=items))
    return scorer


def order(scores: np.ndarray) -> list[int]:
    return [int(item) + 1 for item in np.argsort(-scores, kind="stable")]


def test_popularity_counts_events() -> None:
    scorer = prepared(Popularity(), [[1, 2, 2], [], [2, 0, 3]], items=4)
    scores = scorer.scores(inputs_of([[1], [4, 0]]))
    assert scores.tolist() == [[1, 3, 1, 0]] * 2


def test_recent_lists_own_items_newest_first_then_popular_ones() -> None:
    scorer = prepared(Recent(), [[5, 5, 5, 4, 4, 3]], items=6)
    first, second = scorer.scores(inputs_of([[1, 2, 1, 6, 0], [3]]))
    assert order(first) == [6, 1, 2, 5, 4, 3]
    assert order(second) == [3, 5, 4, 1, 2, 6]


def test_markov_counts_what_came_next_and_breaks_ties_by_popularity() -> None:
    sequences = random_sequences(60, 8, seed=1)
    scorer = prepared(Markov(), sequences, items=8)
    popularity = Counter(item for sequence in sequences for item in sequence if item)
    following: dict[int, Counter[int]] = defaultdict(Counter)
    for sequence in sequences:
        for earlier, later in pairwise(sequence):
            following[earlier][later] += 1
    scores = scorer.scores(inputs_of([[7, last] for last in range(9)]))
    for last in range(9):
        expected = [following[last][item] + popularity[item] / (max(popularity.values()) + 1) for item in range(1, 9)]
        assert scores[last] == pytest.approx(expected)


@pytest.mark.parametrize(
    "setting", [KnnSetting(p, d, o) for p in ("users", "near", "after") for d in (1, 0.5) for o in (False, True)]
)
def test_item_knn_is_its_formula(setting: KnnSetting) -> None:
    sequences = [*random_sequences(30, 8, seed=2), list(range(1, 9)) * 2]
    scorer = prepared(ItemKnn(setting), sequences, items=8)
    counts: Counter[tuple[int, int]] = Counter()
    events: Counter[int] = Counter()
    for sequence in sequences:
        if setting.pairs == "users":
            owned = set(sequence) - {0}
            events.update(owned)
            counts.update({(a, b): 1 for a in owned for b in owned})
        else:
            events.update(sequence)
            for place, a in enumerate(sequence):
                for distance, b in enumerate(sequence[place + 1 : place + 1 + REACH], 1):
                    counts[a, b] += 1 / distance  # type: ignore[assignment]
                    if setting.pairs == "near":
                        counts[b, a] += 1 / distance  # type: ignore[assignment]
    histories = [[3], [1, 2, 0, 1], [8, 7, 6, 5, 4, 3]]
    found = scorer.scores(inputs_of(histories))
    for history, scores in zip(histories, found, strict=True):
        expected = [
            sum(
                setting.decay**back * counts[a, b] / np.sqrt(max(events[a], 1) * max(events[b], 1))
                for back, a in enumerate(reversed(history))
                if a and (setting.own or a != b)
            )
            for b in range(1, 9)
        ]
        assert scores == pytest.approx(expected, rel=1e-5)


def test_item_knn_keeps_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    sequences = random_sequences(80, 20, seed=3)
    every = prepared(ItemKnn(KnnSetting("users", 1, False)), sequences, items=20).scores(inputs_of([[4]]))[0]
    monkeypatch.setattr(item_knn, "NEIGHBOURS", 3)
    few = prepared(ItemKnn(KnnSetting("users", 1, False)), sequences, items=20).scores(inputs_of([[4]]))[0]
    assert (few > 0).sum() == 3
    assert sorted(few[few > 0]) == pytest.approx(sorted(every)[-3:])


def test_item_knn_picks_its_pairs_on_the_validation_events() -> None:
    rng = np.random.default_rng(4)
    starts = rng.integers(0, 20, 300)
    one_way = [[int(start + step) % 20 + 1 for step in range(6)] for start in starts]
    scorer = prepared(ItemKnn(), one_way, items=20)
    assert "forwards" in scorer.describe()
    assert order(scorer.scores(inputs_of([[4, 5, 6]]))[0])[0] == 7


def test_choosing_looks_at_no_validation_event_as_training(monkeypatch: pytest.MonkeyPatch) -> None:
    fitted: list[Training] = []
    similarity = item_knn._similarity

    def spy(training: Training, setting: KnnSetting):
        fitted.append(training)
        return similarity(training, setting)

    monkeypatch.setattr(item_knn, "_similarity", spy)
    training = training_of(random_sequences(30, 8, seed=5), items=8)
    ItemKnn().prepare(training)
    assert all(set(used.roles.tolist()) == {TRAIN} for used in fitted[:-1])
    assert fitted[-1] is training


@pytest.mark.parametrize("name", FLOORS)
@pytest.mark.parametrize("sequences", [[], [[]], [[1]], [[0, 0, 0]]], ids=str)
def test_next_to_no_data_gives_scores_without_nan(name: str, sequences: list[list[int]]) -> None:
    [scorer] = make_baselines([name]).values()
    scores = prepared(scorer, sequences, items=2).scores(inputs_of([[1], [0, 2]]))
    assert scores.shape == (2, 2)
    assert np.isfinite(scores).all()


def test_baselines_are_made_by_name() -> None:
    assert tuple(make_baselines(BASELINES)) == BASELINES
    with pytest.raises(UsageError, match="no baseline `itemknn`"):
        make_baselines(["itemknn"])


def real(name: str, seen: Seen) -> tuple[Training, np.ndarray]:
    """Leave one out in the published order: all events, and the rows of the tests."""
    path = DATA / name / "events.parquet"
    if not path.exists():
        pytest.skip(f"{path} is not here")
    table = pq.read_table(path).to_pandas()
    table = table.sort_values(["user_id", "pos" if "pos" in table else "timestamp"], kind="stable")
    lengths = np.unique(table["user_id"], return_counts=True)[1]
    items, indexes = np.unique(table["item_id"], return_inverse=True)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    roles = np.full(len(table), TRAIN, np.uint8)
    tested = offsets[1:][lengths >= 3] - 1
    roles[tested] = TEST
    roles[tested - 1] = VALIDATION
    shuffled = np.random.default_rng(0).permutation(len(items)) + 1  # an item's number must not help
    return Training(shuffled[indexes].astype(np.int32), offsets, roles, len(items), seen), tested


@pytest.mark.parametrize(
    ("name", "seen", "make", "recall", "ndcg"),
    [
        ("amazon_beauty", "filtered", Popularity, 0.0120, 0.0056),
        ("amazon_beauty", "filtered", lambda: ItemKnn(KnnSetting("near", 0.6, False)), 0.0707, 0.0444),
        ("ml1m_order", "filtered", Popularity, 0.0394, 0.0194),
        ("ml1m_order", "filtered", lambda: ItemKnn(KnnSetting("near", 0.7, False)), 0.2421, 0.1353),
        ("deskdrop", "kept", Recent, 0.3425, None),
        ("deskdrop", "kept", Markov, 0.4294, None),
        ("tmall2014", "kept", Recent, 0.4703, None),
        ("tmall2014", "kept", lambda: ItemKnn(KnnSetting("near", 0.8, True)), 0.4354, None),
    ],
)
def test_floors_of_real_data_are_as_known(
    name: str, seen: Seen, make: Callable[[], Scorer], recall: float, ndcg: float | None
) -> None:
    """Known from another implementation that counts the training events alone, breaks ties in its own way, and was
    published as R@10 and N@10 on the same files: equal to within .001 without repeats, .005 with them."""
    events, tested = real(name, seen)
    scorer = make()
    scorer.prepare(events.before_validation())
    found = []
    for start in range(0, len(tested), 256):
        items, offsets = events.inputs_before(tested[start : start + 256])
        histories = Histories(np.zeros(len(items), EVENT_DTYPE), offsets)
        scores = torch.from_numpy(scorer.scores(Inputs(histories, items)))
        if seen == "filtered":
            leave_out_seen(scores, items, offsets)
        found.append(target_places(scores, events.items[tested[start : start + 256]].astype(np.int64)))
    measured = per_question(np.concatenate(found)).mean(0)
    assert measured[2] == pytest.approx(recall, abs=0.001 if seen == "filtered" else 0.005)
    if ndcg is not None:
        assert measured[3] == pytest.approx(ndcg, abs=0.001)
