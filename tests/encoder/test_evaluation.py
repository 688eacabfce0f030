"""Full ranking over a held-out tail, against a plain count on small numbers."""

import numpy as np
import pytest
import torch

from activity.events import Event, events_table
from encoder.config import MODEL_CONFIGS
from encoder.data import Activity, build_vocabulary, read_activity, training_events
from encoder.evaluation import HeldOut, evaluate, hold_out
from encoder.inference import new_model
from encoder.model import UserEncoder
from encoder.vocabulary import Vocabulary

FROM_MS = 70


@pytest.fixture(scope="module")
def activity() -> Activity:
    rng = np.random.default_rng(0)
    return read_activity(
        events_table(
            Event(f"u{user}", f"i{rng.zipf(1.3) % 40}", "save", "home", int(time))
            for user, length in enumerate([90, 3, 1, 60, 17, 16, 15, 14, 0, 12])
            for time in np.sort(rng.choice(100, length, replace=False))
        ),
        until_ms=None,
    )


def prepared(activity: Activity) -> tuple[UserEncoder, HeldOut, Vocabulary]:
    vocabulary = build_vocabulary(activity)
    model = new_model(MODEL_CONFIGS["tiny"], vocabulary)
    model.initialise(0)
    events = training_events(activity.histories, vocabulary, positive_actions=[])
    times = activity.histories.values["timestamp"]
    return model, hold_out(events, times, from_ms=FROM_MS, vocabulary_size=len(vocabulary.items), seed=0), vocabulary


def test_every_later_event_with_a_past_is_predicted(activity: Activity) -> None:
    _, held_out, _ = prepared(activity)
    histories = activity.histories
    later = sum(int((histories[user]["timestamp"][1:] >= FROM_MS).sum()) for user in range(histories.count))
    assert len(held_out.predictions) == later > 20


def test_popularity_is_counted_before_the_held_out_time(activity: Activity) -> None:
    _, held_out, vocabulary = prepared(activity)
    trained = activity.histories.values[activity.histories.values["timestamp"] < FROM_MS]
    assert held_out.popularity.tolist() == [float((trained["item"] == item).sum()) for item in vocabulary.items]


def test_metrics_equal_a_plain_count(activity: Activity) -> None:
    """Each prediction alone, from the window that the docstring promises, ranked by sorting."""
    model, held_out, vocabulary = prepared(activity)
    model.eval()
    events = held_out.events
    items = model.targets(torch.arange(1, len(vocabulary.items) + 1))
    ranks: dict[str, list[int]] = {"recall_at_10": [], "recall_at_10_unseen": []}
    for row in held_out.predictions:
        context = _context(events.offsets, row)
        if context > 16:
            continue  # how much of a long history is read is a choice of the implementation; shorter ones are exact
        part = slice(row + 1 - context, row + 1)
        inputs = (torch.from_numpy(column[part]) for column in (events.items, events.actions, events.surfaces))
        scores = (items @ model.last(*inputs, offsets=torch.tensor([0, context]))[0]).detach().numpy()
        seen, target = set(events.items[part]), int(events.targets[row])
        order = [int(place) + 1 for place in np.argsort(-scores)]
        ranks["recall_at_10"].append(order.index(target))
        if target not in seen:
            ranks["recall_at_10_unseen"].append([item for item in order if item not in seen].index(target))
    short = np.array([row for row in held_out.predictions if _context(events.offsets, row) <= 16])
    found = evaluate(model, HeldOut(events, short, held_out.popularity))
    assert len(short) == len(ranks["recall_at_10"]) > 10
    for name, places in ranks.items():
        assert found[name] == pytest.approx(np.mean(np.array(places) < 10)), name
        ndcg = np.mean([1 / np.log2(place + 2) if place < 10 else 0 for place in places])
        assert found[name.replace("recall", "ndcg")] == pytest.approx(ndcg), name


def test_popularity_ranks_by_count(activity: Activity) -> None:
    model, held_out, _ = prepared(activity)
    distinct = held_out.popularity + np.arange(len(held_out.popularity)) / 1000  # no ties
    found = evaluate(model, HeldOut(held_out.events, held_out.predictions, distinct.astype(np.float32)))
    top = set(np.argsort(-distinct)[:10] + 1)
    hits = [int(target) in top for target in held_out.events.targets[held_out.predictions]]
    assert found["popularity_recall_at_10"] == pytest.approx(np.mean(hits))


def test_nothing_to_predict_gives_zeros(activity: Activity) -> None:
    model, held_out, _ = prepared(activity)
    found = evaluate(model, HeldOut(held_out.events, held_out.predictions[:0], held_out.popularity))
    assert set(found.values()) == {0}


def test_evaluation_leaves_the_mode_as_it_was(activity: Activity) -> None:
    model, held_out, _ = prepared(activity)
    for mode in (True, False):
        model.train(mode)
        evaluate(model, held_out)
        assert model.training is mode


def _context(offsets: np.ndarray, row: int) -> int:
    return int(row + 1 - offsets[np.searchsorted(offsets, row, side="right") - 1])
