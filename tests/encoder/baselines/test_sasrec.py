"""The padded SASRec: causal, deaf to padding, able to learn, stopped by validation or the clock."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from spoor.activity.history import EVENT_DTYPE, Histories
from spoor.base.errors import UsageError
from spoor.encoder.baselines.sasrec import Sasrec, SasrecModel, SasrecSettings, next_item_loss, pad
from spoor.encoder.data.split import TRAIN, VALIDATION
from spoor.encoder.evaluation.questions import Inputs
from spoor.encoder.evaluation.scoring import Training

ITEMS = 12
SETTINGS = SasrecSettings(
    length=8, width=16, dropout=0.1, heads=2, learning_rate=5e-3, batch_users=16, max_epochs=15, patience=4
)


def circles(users: int = 150) -> Training:
    """Everybody walks 1, 2, ..., 12, 1, ... from a place of their own; the last step validates."""
    rng = np.random.default_rng(0)
    walks = [(rng.integers(ITEMS) + np.arange(rng.integers(2, 12))) % ITEMS + 1 for _ in range(users)]
    offsets = np.cumsum([0, *map(len, walks)])
    roles = np.full(offsets[-1], TRAIN, np.uint8)
    roles[offsets[1:] - 1] = VALIDATION
    return Training(np.concatenate(walks).astype(np.int32), offsets, roles, ITEMS, "kept")


def inputs_of(*sequences: list[int]) -> Inputs:
    histories = Histories.of([np.zeros(len(sequence), EVENT_DTYPE) for sequence in sequences])
    return Inputs(histories, np.concatenate([np.array(sequence, np.int64) for sequence in sequences]))


def model() -> SasrecModel:
    torch.manual_seed(0)
    return SasrecModel(SETTINGS, items=ITEMS).eval()


def test_padding_is_left_and_the_oldest_events_go() -> None:
    items, offsets = np.arange(1, 7), np.array([0, 1, 1, 6])
    assert pad(items, offsets, length=3).tolist() == [[0, 0, 1], [0, 0, 0], [4, 5, 6]]


def test_later_events_change_nothing_before_them_and_padding_changes_nothing() -> None:
    network = model()
    x = network(torch.tensor([[0, 0, 3, 4, 5], [0, 0, 3, 4, 9], [7, 8, 3, 4, 5]]))
    assert torch.equal(x[0, :4], x[1, :4])
    assert not torch.allclose(x[0, 4], x[1, 4])
    assert not torch.allclose(x[0, 4], x[2, 4])
    torch.testing.assert_close(network(torch.tensor([[3, 4, 5]]))[0, -1], x[0, -1])
    assert torch.isfinite(network(torch.zeros(2, 5, dtype=torch.int64))).all()


def test_the_loss_is_the_mean_over_positions_with_a_target() -> None:
    network = model()
    padded = torch.tensor([[0, 0, 3, 4, 5], [1, 0, 2, 6, 7]])
    expected = []
    for row in padded:
        for place in range(4):
            if row[place] and row[place + 1]:
                logits = network.scores(network(row[None, :4])[0, place])
                expected.append(-torch.log_softmax(logits, 0)[row[place + 1] - 1])
    assert len(expected) == 4
    torch.testing.assert_close(next_item_loss(network, padded), torch.stack(expected).mean())


def test_it_learns_to_walk_and_repeats_itself() -> None:
    first, again = (Sasrec(SETTINGS, seed=3) for _ in range(2))
    training = circles()
    for scorer in (first, again):
        scorer.prepare(training)
    assert first.history == again.history
    assert max(first.history) > 0.9
    inputs = inputs_of([1, 2, 3], [11, 12], [5])
    assert (first.scores(inputs).argmax(1) + 1).tolist() == [4, 1, 6]
    assert np.array_equal(first.scores(inputs), again.scores(inputs))
    assert f"best of {len(first.history)} epochs" in first.describe()


def test_the_clock_ends_training_and_the_process_keeps_its_random_state() -> None:
    """After one step at least, and it says so: an untrained model's scores would pass for a baseline."""
    before = torch.get_rng_state()
    settings = SasrecSettings(length=8, width=16, dropout=0.1, max_minutes=0.0)
    scorer = Sasrec(settings)
    scorer.prepare(circles())
    assert (len(scorer.history), scorer.steps) == (1, 1)
    assert "the time was over after step 1, while still rising" in scorer.describe()
    assert torch.equal(torch.get_rng_state(), before)


def test_the_same_steps_give_the_same_scores_however_long_they_took() -> None:
    timed = Sasrec(replace(SETTINGS, max_minutes=0.01, patience=200, max_epochs=10_000))
    timed.prepare(circles())
    assert timed.steps and (not timed.planned or timed.steps <= timed.planned)
    given = Sasrec(replace(SETTINGS, steps=timed.steps, patience=200, max_epochs=10_000))
    given.prepare(circles())
    assert given.history == timed.history
    assert np.array_equal(given.scores(inputs_of([1, 2, 3])), timed.scores(inputs_of([1, 2, 3])))
    assert f"ended after its {timed.steps:,} planned steps" in given.describe()


def test_without_validation_events_there_is_nothing_to_stop_by() -> None:
    with pytest.raises(UsageError, match="validation events"):
        Sasrec(SETTINGS).prepare(circles().before_validation())


def test_the_usual_settings_follow_from_lengths_and_items() -> None:
    short = SasrecSettings.usual(mean_length=8.9, items=12_101)
    long = SasrecSettings.usual(mean_length=166, items=1_682)
    assert (short.length, short.width, short.dropout) == (50, 128, 0.5)
    assert (long.length, long.width, long.dropout) == (200, 64, 0.2)
