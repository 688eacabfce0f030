"""One step: parts add up to the whole, own positives are no negatives, masked items are not shown."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from spoor.encoder.training.plan import PretrainRequest, make_plan
from spoor.encoder.training.run import fresh_state
from spoor.encoder.training.settings import PretrainSettings
from spoor.encoder.training.step import ask, part_loss
from tests.encoder.training.test_run import SETTINGS, circle

THREE = {"multi_token_weight": 0.7, "future_token_weight": 0.3, "target_window": 5}


def asked(tmp_path: Path, settings: PretrainSettings) -> tuple[Any, Any, Any]:
    plan = make_plan(PretrainRequest(circle(), out=tmp_path / "base-1", settings=settings))
    stage = plan.schedule.stages[0]
    batch = next(iter(stage.reader.epoch(0)))
    rng = np.random.default_rng(0)
    questions = ask(batch, config=plan.model, settings=settings, answer_shares=stage.answer_shares, rng=rng)
    return fresh_state(plan).model.eval(), batch, questions


@pytest.mark.parametrize("negatives", ["in-batch", "mixed", "full"])
@pytest.mark.parametrize("weights", [{}, THREE], ids=["next", "three"])
def test_parts_of_a_batch_add_up_to_its_loss_and_gradients(
    tmp_path: Path, negatives, weights: dict[str, float]
) -> None:
    model, batch, questions = asked(tmp_path, replace(SETTINGS, negatives=negatives, **weights))
    whole = part_loss(model, batch, questions, slice(0, len(batch.users)))
    assert whole is not None
    whole.backward()
    gradients = {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
    model.zero_grad()
    found = [
        part_loss(model, batch, questions, slice(*part)) for part in ((0, 1), (1, 1), (1, 4), (4, len(batch.users)))
    ]
    assert found[1] is None
    total = sum(part for part in found if part is not None)
    assert isinstance(total, torch.Tensor)
    total.backward()
    torch.testing.assert_close(total, whole)
    for name, value in model.named_parameters():
        if value.grad is not None:
            torch.testing.assert_close(value.grad, gradients[name], rtol=1e-4, atol=1e-4)


def test_the_loss_equals_a_plain_loop_over_pairs(tmp_path: Path) -> None:
    """All three losses over every item, from vectors of the whole batch, pair by pair."""
    model, batch, questions = asked(tmp_path, replace(SETTINGS, negatives="full", unknown_item_share=0.0, **THREE))
    found = part_loss(model, batch, questions, slice(0, len(batch.users)))
    vectors = model(batch)
    scores = (vectors @ model.every_target().T / model.temperature).log_softmax(1)
    pairs = questions.pairs
    expected = -sum(
        weight * scores[row, item - 1] for row, item, weight in zip(pairs.rows, pairs.items, pairs.weights, strict=True)
    )
    torch.testing.assert_close(found, expected)


def test_own_positives_are_never_negatives(tmp_path: Path) -> None:
    _, batch, questions = asked(tmp_path, SETTINGS)
    assert questions.drawn is not None and questions.left_out is not None
    for segment in range(len(batch.users)):
        own = set(batch.own_items[batch.own_offsets[segment] : batch.own_offsets[segment + 1]].tolist())
        left_out = questions.drawn.items[questions.left_out[segment]].tolist()
        assert set(left_out) == own & set(questions.drawn.items.tolist())
        assert len(left_out) > 0
    kept = asked(tmp_path, replace(SETTINGS, own_positives="kept"))[2]
    assert kept.left_out is None


def test_masked_items_are_not_shown(tmp_path: Path) -> None:
    model, batch, questions = asked(tmp_path, replace(SETTINGS, unknown_item_share=0.5))
    masked = torch.from_numpy(questions.masked)
    assert 0.3 < masked.float().mean() < 0.7
    everything = slice(0, len(batch.users))
    found = part_loss(model, batch, questions, everything)
    other = replace(batch, items=batch.items.masked_fill(masked, 1))
    assert torch.equal(found, part_loss(model, other, questions, everything))
