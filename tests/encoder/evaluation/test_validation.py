"""The validator in training agrees with a plain loop over its questions, and tells a collapse."""

from pathlib import Path

import numpy as np
import pytest
import torch

from spoor.activity.events import Event, events_table
from spoor.activity.settings import EventSettings
from spoor.base.errors import DataError
from spoor.encoder.data.batches import build_vocabulary
from spoor.encoder.data.corpus import Corpus
from spoor.encoder.data.item_links import count_links
from spoor.encoder.data.split import TRAIN, VALIDATION, Protocol, make_split
from spoor.encoder.evaluation import questions
from spoor.encoder.evaluation.mixture import Mixture, MixtureWeights
from spoor.encoder.evaluation.validation import Validator
from spoor.encoder.model.config import MODEL_CONFIGS
from spoor.encoder.model.events import Events
from spoor.encoder.release.inference import new_model

RNG = np.random.default_rng(0)
EVENTS = [
    Event(f"u{user}", f"i{RNG.integers(30)}", "view", "home", int(RNG.integers(10**6)) * 1000)
    for user in range(30)
    for _ in range(int(RNG.integers(1, 60)))
]


def corpus_of(folder: Path) -> Corpus:
    return Corpus.build(events_table(EVENTS), folder / "corpus", events=EventSettings())


@pytest.mark.parametrize("protocol", ["leave-one-out", "newest"])
@pytest.mark.parametrize("seen", ["filtered", "kept"])
def test_it_agrees_with_a_plain_loop(tmp_path: Path, protocol: Protocol, seen) -> None:
    """Histories are shorter than half of served_length here, so that windows hold all that a question may see."""
    corpus = corpus_of(tmp_path)
    split = make_split(corpus, protocol)
    vocabulary = build_vocabulary(corpus, split)
    config = MODEL_CONFIGS["tiny"].to_json() | {"served_length": 128}
    model = new_model(type(MODEL_CONFIGS["tiny"]).from_json(config), vocabulary)
    model.initialise(0)
    model.eval()
    found = Validator(corpus, split, vocabulary, seen=seen).measure(model)

    histories = corpus.read(0, corpus.users)
    roles = split.roles(histories)
    places = []
    with torch.inference_mode():
        for user in range(corpus.users):
            start, end = histories.offsets[user], histories.offsets[user + 1]
            for row in range(start + 1, end):
                if roles[row] != VALIDATION:
                    continue
                past = histories.take([user]).oldest(np.array([row - start]))
                events = Events.of(vocabulary.event_indexes(past), past.values["timestamp"], past.offsets)
                target = int(vocabulary.item_indexes(histories.values["item"][row : row + 1])[0])
                vector = model.last(events)[0]
                scores = (model.every_target() @ vector).numpy()
                had = set(events.items.tolist())
                candidates = [v for v in range(1, 1 + len(vocabulary.items)) if seen == "kept" or v not in had]
                if target not in candidates:
                    places.append(np.inf)
                else:
                    places.append(sum(scores[v - 1] > scores[target - 1] for v in candidates))
    assert found["validation_events"] == len(places) > 20
    ranks = np.array(places)
    assert found["recall_at_10"] == pytest.approx((ranks < 10).mean())
    assert found["ndcg_at_10"] == pytest.approx(np.where(ranks < 10, 1 / np.log2(ranks + 2), 0).mean(), rel=1e-5)


def test_long_histories_are_seen_through_windows(tmp_path: Path) -> None:
    """Every question is answered from between half of served_length and served_length events, as far as there are."""
    corpus = corpus_of(tmp_path)
    split = make_split(corpus, "newest")
    validator = Validator(corpus, split, build_vocabulary(corpus, split))
    reached = 0
    for start, end, first, last in validator._windows(16):
        assert first == reached and last > first
        reached = last
        for row, owner in zip(validator._rows[first:last], validator._owners[first:last], strict=True):
            begin = validator._events.offsets[owner]
            assert begin <= start < row <= end
            assert row - start <= 16 and (start == begin or row - start >= 8)
    assert reached == validator.questions


def test_at_most_so_many_users_are_asked(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path)
    split = make_split(corpus, "leave-one-out")
    vocabulary = build_vocabulary(corpus, split)
    assert Validator(corpus, split, vocabulary, max_users=7).questions == 7


def test_chunks_hold_no_more_scores_the_larger_the_catalogue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = corpus_of(tmp_path)
    split = make_split(corpus, "newest")
    vocabulary = build_vocabulary(corpus, split)
    model = new_model(MODEL_CONFIGS["tiny"], vocabulary)
    model.initialise(0)
    whole = Validator(corpus, split, vocabulary).measure(model.eval())
    most = 3 * len(vocabulary.items)
    monkeypatch.setattr(questions, "_MOST_SCORES", most)
    validator = Validator(corpus, split, vocabulary)
    assert validator.measure(model) == pytest.approx(whole)
    sizes = [part.vector_scores.size for part in validator.asked(model)]
    assert len(sizes) > 5 and max(sizes) == most


def test_a_collapse_shows(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path)
    split = make_split(corpus, "leave-one-out")
    vocabulary = build_vocabulary(corpus, split)
    model = new_model(MODEL_CONFIGS["tiny"], vocabulary)
    model.initialise(0)
    validator = Validator(corpus, split, vocabulary)
    healthy = validator.measure(model.eval())
    with torch.no_grad():
        assert model.phi_out.out is not None
        model.phi_out.out.weight.zero_()
        model.phi_out.out.bias.fill_(1.0)
    collapsed = validator.measure(model)
    assert collapsed["mean_cosine"] == pytest.approx(1.0, abs=1e-5)
    assert collapsed["effective_rank"] == pytest.approx(1.0, abs=1e-3)
    assert healthy["mean_cosine"] < 0.9 and healthy["effective_rank"] > 2


def test_nobody_to_ask_is_a_data_error(tmp_path: Path) -> None:
    events = [Event(f"u{user}", "i1", "view", "home", 1000 * user) for user in range(20)]
    corpus = Corpus.build(
        events_table(events), tmp_path / "corpus", events=EventSettings(earliest="1960-01-01T00:00:00Z")
    )
    split = make_split(corpus, "leave-one-out")
    with pytest.raises(DataError, match="no validation event"):
        Validator(corpus, split, build_vocabulary(corpus, split, roles_upto=TRAIN))


def test_a_mixture_is_fitted_on_part_of_the_chunks_and_measured_on_all(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path)
    split = make_split(corpus, "leave-one-out")
    vocabulary = build_vocabulary(corpus, split)
    model = new_model(MODEL_CONFIGS["tiny"], vocabulary)
    model.initialise(0)
    validator = Validator(corpus, split, vocabulary)
    links = count_links(corpus, split, vocabulary, upto=TRAIN)
    chunks = validator.asked(model.eval())
    first = next(chunks)  # the rest is still to come: taking chunks must not put the taker in inference mode
    mixture = Mixture.fit(links, [first], seen="filtered")
    alone = Mixture(links, MixtureWeights())
    quality = validator.measure(model)
    unchanged = validator.measure_mixture(model, alone)
    assert unchanged["mixture_ndcg_at_10"] == pytest.approx(quality["ndcg_at_10"])
    assert validator.measure_mixture(model, mixture)["mixture_ndcg_at_10"] > unchanged["mixture_ndcg_at_10"]
