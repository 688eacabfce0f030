"""The user encoder: shapes, norms, causality, positions, gradients, the temperature's floor."""

import copy
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spoor.encoder.model.block import Block
from spoor.encoder.model.config import MODEL_CONFIGS
from spoor.encoder.model.events import Events
from spoor.encoder.model.hashing import vocabulary_rows
from spoor.encoder.model.user_encoder import UserEncoder
from spoor.encoder.release.inference import new_model


@pytest.fixture
def model(parts) -> UserEncoder:
    model = new_model(MODEL_CONFIGS["tiny"], parts.vocabulary)
    model.initialise(0)
    return model.eval()


def batch(lengths: list[int], *, seed: int = 0) -> Events:
    generator = torch.Generator().manual_seed(seed)
    events = sum(lengths)
    items, actions, surfaces = (torch.randint(0, known + 1, (events,), generator=generator) for known in (50, 3, 2))
    return Events(items, actions, surfaces, torch.tensor([0, *lengths]).cumsum(0))


def test_every_event_gets_a_vector_of_norm_1(model: UserEncoder) -> None:
    vectors = model(batch([5, 0, 1, 32]))
    assert vectors.shape == (38, 16)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(38))


def test_no_events_give_no_vectors(model: UserEncoder) -> None:
    assert model(batch([])).shape == (0, 16)
    assert model(batch([0, 0])).shape == (0, 16)


def test_last_is_the_last_row_of_each_user(model: UserEncoder) -> None:
    inputs = batch([5, 1, 32])
    torch.testing.assert_close(model.last(inputs), model(inputs)[[4, 5, 37]])


def test_last_stops_where_a_history_is_said_to_end(model: UserEncoder) -> None:
    inputs = batch([9, 9, 9])
    expected = model(inputs)[[4, 9, 26]]
    torch.testing.assert_close(model.last(inputs, lengths=torch.tensor([5, 1, 9])), expected)


def test_a_vector_does_not_feel_later_events(model: UserEncoder) -> None:
    events = batch([20])
    whole, start = model(events), model(events.take(torch.arange(12), torch.tensor([0, 12])))
    torch.testing.assert_close(whole[:12], start, atol=1e-5, rtol=0)


def test_rotary_positions_turn_the_halves_of_a_head_against_each_other(model: UserEncoder) -> None:
    """As they always did: a release's weights mean what they meant when it was trained."""
    block, positions, x = model.every_block[0], torch.tensor([0, 1, 7, 200]), torch.randn(4, model.config.width)
    torch.nn.init.normal_(block.qkv.bias)
    half = model.config.width // model.config.heads // 2
    angles = positions[:, None, None] * 10_000.0 ** (-torch.arange(half) / half)

    def halves(of_heads: Tensor) -> Tensor:
        first, second = of_heads.chunk(2, dim=-1)
        cos, sin = angles.cos(), angles.sin()
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)

    q, k, v = block.qkv(block.attention_norm(x)).unflatten(-1, (3, block.heads, -1)).unbind(1)
    expected = torch.einsum("nhd,mhd->hnm", halves(q), halves(k))
    turn = model.rotary(positions)
    found_q, found_k, found_v = block.queries_keys_values(x, turn)
    torch.testing.assert_close(torch.einsum("nhd,mhd->hnm", found_q, found_k), expected)
    torch.testing.assert_close(found_v, v)
    torch.testing.assert_close(block.queries(x, turn), found_q)
    for some, every in zip(block.keys_values(x, turn), (found_k, found_v), strict=True):
        torch.testing.assert_close(some, every)


def test_a_frozen_model_gives_and_stores_the_same_without_arranging_its_weights_again(
    model: UserEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = batch([5, 1, 32])
    for block in model.every_block:
        torch.nn.init.normal_(block.qkv.bias)
    expected, stored = (model(inputs), model.last(inputs)), {**model.state_dict()}
    model.freeze()
    monkeypatch.setattr(Block, "_before", None)
    for found, before in zip((model(inputs), model.last(inputs)), expected, strict=True):
        torch.testing.assert_close(found, before)
    assert model.state_dict().keys() == stored.keys()
    assert not any(weight.requires_grad for weight in model.parameters())


def test_what_is_frozen_follows_its_model_to_another_type(model: UserEncoder) -> None:
    inputs = batch([5, 1, 32])
    expected = copy.deepcopy(model).double()(inputs)
    found = model.freeze().double()(inputs)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected)


def test_order_matters(model: UserEncoder) -> None:
    events = batch([20])
    swapped = torch.arange(20)
    swapped[[3, 4]] = swapped[[4, 3]]
    moved = model.last(events.take(swapped, events.offsets))
    assert not torch.allclose(model.last(events), moved, atol=1e-4)


@pytest.mark.parametrize("column", ["items", "actions", "surfaces"])
def test_each_field_of_an_event_matters(model: UserEncoder, column: str) -> None:
    inputs = batch([9])
    changed = getattr(inputs, column).clone()
    changed[4] = (changed[4] + 1) % 3
    assert not torch.allclose(model.last(inputs), model.last(replace(inputs, **{column: changed})), atol=1e-4)


def test_unknown_items_share_one_vector_of_norm_1(model: UserEncoder) -> None:
    vectors = model.targets(torch.tensor([0, 0, 7]))
    assert torch.equal(vectors[0], vectors[1])
    assert not torch.allclose(vectors[0], vectors[2])
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(3))


def test_every_parameter_learns(model: UserEncoder) -> None:
    inputs = batch([9, 1, 17])
    scores = model(inputs) @ model.targets(torch.arange(51)).T / model.temperature
    scores.logsumexp(1).sum().backward()
    silent = [name for name, value in model.named_parameters() if value.grad is None or not value.grad.any()]
    assert silent == []


def test_temperature_stays_above_its_floor(model: UserEncoder) -> None:
    assert model.temperature.item() == pytest.approx(0.05)
    with torch.no_grad():
        model.log_temperature.fill_(math.log(1e-6))
    assert model.temperature.item() == pytest.approx(0.01)


def test_the_seed_alone_decides_the_parameters(model: UserEncoder, parts) -> None:
    torch.manual_seed(99)
    again = new_model(MODEL_CONFIGS["tiny"], parts.vocabulary)
    again.initialise(0)
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def build(parts, seed: int = 0, **changes: Any) -> UserEncoder:
    model = new_model(replace(MODEL_CONFIGS["tiny"], **changes), parts.vocabulary)
    model.initialise(seed)
    return model.eval()


DIRECT = {"items": "direct", "hash_functions": 1, "table_rows": 0, "table_width": 16}
RESIDUAL = DIRECT | {"projections": "residual", "projection_width": 0}


def test_direct_items_have_a_row_each(parts) -> None:
    model = build(parts, **DIRECT)
    assert model.items.weight.shape == (51, 16)
    assert torch.equal(model.items(torch.tensor([0, 7, 50])), model.items.weight[[0, 7, 50]])


def test_hashed_items_are_the_rows_of_their_tables_side_by_side(parts) -> None:
    """Against a dictionary of vectors, by item."""
    model = build(parts)
    rows = vocabulary_rows(parts.vocabulary.items, functions=2, rows=256)
    tables = model.items.weight.view(2, 256, 8)
    expected = {item: torch.cat([tables[0, first], tables[1, second]]) for item, (first, second) in enumerate(rows)}
    found = model.items(torch.arange(51))
    assert all(torch.equal(found[item], vector) for item, vector in expected.items())


@pytest.mark.parametrize("changes", [{}, DIRECT, RESIDUAL, RESIDUAL | {"score": "dot"}], ids=str)
def test_every_target_holds_the_targets_of_all_known_items(parts, changes: dict[str, Any]) -> None:
    model = build(parts, **changes)
    assert torch.equal(model.every_target(), model.targets(torch.arange(1, 51)))


@pytest.mark.parametrize("hidden", [0, 8])
def test_residual_projections_start_as_the_identity(parts, hidden: int) -> None:
    model = build(parts, **RESIDUAL | {"projection_width": hidden})
    events = batch([9])
    unit = F.normalize(model.items.weight, dim=1)
    torch.testing.assert_close(model.targets(events.items), unit[events.items])
    entered = model.embed(events, torch.arange(9))
    torch.testing.assert_close(entered, unit[events.items] * math.sqrt(16))


def test_the_dot_score_has_neither_norms_nor_a_temperature(parts) -> None:
    model = build(parts, **RESIDUAL | {"score": "dot"})
    events = batch([9])
    assert torch.equal(model.targets(events.items), model.items.weight[events.items])
    entered = model.embed(events, torch.arange(9))
    torch.testing.assert_close(entered, model.items.weight[events.items] * math.sqrt(16))
    assert model(events).norm(dim=1).min() > 2
    assert model.temperature == 1
    assert "log_temperature" not in model.state_dict()


def test_a_time_gap_matters_except_before_the_first_event(parts) -> None:
    model = build(parts, time_gaps=True)
    inputs, gaps = batch([9, 3]), torch.arange(12.0)

    def last(gaps: Tensor) -> Tensor:
        return model.last(replace(inputs, log_gaps=gaps))

    found = last(gaps)
    assert torch.equal(found, last(gaps.index_fill(0, torch.tensor([0, 9]), 99.0)))
    later = last(gaps.index_fill(0, torch.tensor([10]), 99.0))
    assert torch.equal(found[0], later[0])
    assert not torch.allclose(found[1], later[1], atol=1e-4)
    with pytest.raises(ValueError, match="needs log_gaps"):
        model.last(inputs)


def test_recomputed_activations_give_the_same_gradients(parts) -> None:
    kept, recomputed = build(parts).train(), build(parts).train()
    recomputed.recompute = True
    for model in (kept, recomputed):
        torch.manual_seed(0)  # dropout is drawn again, alike
        model(batch([9, 1, 17])).square().cos().sum().backward()
    for (name, one), other in zip(kept.named_parameters(), recomputed.parameters(), strict=True):
        if one.grad is not None:
            assert other.grad is not None
            torch.testing.assert_close(one.grad, other.grad, msg=name)


def test_sparse_gradients_touch_only_the_rows_that_were_read(parts) -> None:
    dense, sparse = build(parts), build(parts)
    sparse.items.sparse = True
    for model in (dense, sparse):
        model.last(batch([5])).sum().backward()
    assert sparse.items.weight.grad is not None and sparse.items.weight.grad.is_sparse
    assert dense.items.weight.grad is not None
    torch.testing.assert_close(sparse.items.weight.grad.to_dense(), dense.items.weight.grad)


class Exported(nn.Module):
    def __init__(self, model: UserEncoder) -> None:
        super().__init__()
        self.model = model

    def forward(self, items: Tensor, actions: Tensor, surfaces: Tensor, offsets: Tensor) -> Tensor:
        return self.model(Events(items, actions, surfaces, offsets))


def test_it_can_be_exported_for_any_number_of_events_and_users(model: UserEncoder) -> None:
    def tensors(of: Events) -> tuple[Tensor, ...]:
        return of.items, of.actions, of.surfaces, of.offsets

    events, users = torch.export.Dim("n", min=2, max=4096), torch.export.Dim("u", min=3, max=4096)
    shapes = tuple({0: size} for size in (events, events, events, users))
    program = torch.export.export(Exported(model), tensors(batch([7, 13, 20])), dynamic_shapes=shapes)
    others = batch([5, 1, 0, 9], seed=1)
    torch.testing.assert_close(program.module()(*tensors(others)), model(others))
