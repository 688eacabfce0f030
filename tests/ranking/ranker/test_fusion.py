from dataclasses import replace

import numpy as np
import pytest
import torch

from spoor.base.errors import UsageError
from spoor.encoder.model.dcat import context, cross
from spoor.encoder.model.events import Candidates
from spoor.encoder.release.inference import new_model
from spoor.encoder.release.tuning import trainable
from spoor.ranking.features.dataset import Scale
from spoor.ranking.ranker.fusion import Fusion, RankingBatch
from spoor.ranking.ranker.rows import BatchMaker
from spoor.ranking.settings import FusionConfig
from tests.ranking.shop import DIMENSION, Shop, make_shop


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    return make_shop(tmp_path_factory.mktemp("shop"), users=7)


@pytest.fixture(scope="module")
def batch(shop: Shop) -> RankingBatch:
    data = shop.data()
    _, vocabulary = trainable(shop.release, new_items=shop.items["item_id"].to_pylist())
    return BatchMaker(data, vocabulary, Scale.of(data.features), window=32).batch(np.arange(12))[0]


def fusion_of(shop: Shop, config: FusionConfig) -> Fusion:
    encoder, _ = trainable(shop.release, new_items=shop.items["item_id"].to_pylist())
    fusion = Fusion(config, encoder, attributes=7)
    fusion.initialise(0)
    return fusion.eval()


def parts(outputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """h and z as unit vectors."""
    assert outputs.shape[1] == 3 * DIMENSION + 1
    return outputs[:, :DIMENSION] / DIMENSION**0.5, outputs[:, DIMENSION : 2 * DIMENSION] / DIMENSION**0.5


def test_late_last_is_the_vector_after_the_last_event(shop, batch):
    fusion = fusion_of(shop, FusionConfig(kind="late-last"))
    h, z = parts(fusion(batch).outputs)
    model = fusion.encoder
    events = model(batch)
    torch.testing.assert_close(h, events[batch.offsets[1:] - 1][batch.candidate_context])
    torch.testing.assert_close(z, model.targets(batch.candidates))


def test_late_mean_points_where_the_mean_of_the_outputs_does(shop, batch):
    fusion = fusion_of(shop, FusionConfig(kind="late-mean"))
    h, _ = parts(fusion(batch).outputs)
    events = fusion.encoder(batch)
    means = torch.stack([events[a:b].mean(0) for a, b in zip(batch.offsets[:-1], batch.offsets[1:], strict=True)])
    torch.testing.assert_close(h, torch.nn.functional.normalize(means, dim=-1)[batch.candidate_context])


@pytest.mark.parametrize("learnable_token", ["none", "before candidate"])
@pytest.mark.parametrize("content", ["none", "added"])
def test_early_fusion_is_the_crossing_pass_with_the_window_of_serving(shop, batch, learnable_token, content):
    config = FusionConfig(kind="early", learnable_token=learnable_token, content=content, window=8)
    fusion = fusion_of(shop, config)
    h, z = parts(fusion(batch).outputs)
    model = fusion.encoder
    history = context(model, batch, token=fusion.token)
    added = fusion.content(batch.attributes) if fusion.content is not None else None
    gaps = batch.candidate_gaps
    asked = Candidates(batch.candidates, batch.shown_on, batch.candidate_context, gaps, added)
    by_hand = cross(model, history, asked, window=8)
    torch.testing.assert_close(h, by_hand)
    torch.testing.assert_close(z, model.targets(batch.candidates))


def test_early_fusion_tells_the_model_how_long_ago_the_last_event_was(shop, batch):
    config = replace(shop.release.info.model, time_gaps=True)
    encoder = new_model(config, trainable(shop.release, new_items=shop.items["item_id"].to_pylist())[1])
    encoder.initialise(0)
    fusion = Fusion(FusionConfig(window=8), encoder, attributes=7).eval()
    soon, late = (fusion(replace(batch, candidate_gaps=batch.candidate_gaps * k)).outputs for k in (0, 1))
    assert not torch.allclose(soon, late)


def test_frozen_late_last_reads_feasts_vectors_and_no_events(shop, batch):
    fusion = fusion_of(shop, FusionConfig(kind="late-last", module="frozen"))
    found = fusion(replace(batch, items=batch.items[:0], offsets=batch.offsets * 0))
    assert found.events is None
    h, z = parts(found.outputs)
    torch.testing.assert_close(h, torch.nn.functional.normalize(batch.user_vectors, dim=-1))
    torch.testing.assert_close(z, torch.nn.functional.normalize(batch.item_vectors, dim=-1))
    assert not h.any(1).all() and h.any()


def test_without_a_module_nothing_is_added(shop, batch):
    fusion = fusion_of(shop, FusionConfig(kind="none"))
    assert fusion(batch).outputs.shape == (len(batch.candidates), 0) and fusion.width == 0


@pytest.mark.parametrize("kind", ["late-last", "late-mean", "early"])
def test_a_user_without_history_gives_finite_outputs(shop, batch, kind):
    empty = replace(
        batch,
        items=batch.items[:0],
        actions=batch.actions[:0],
        surfaces=batch.surfaces[:0],
        log_gaps=batch.log_gaps[:0],
        offsets=batch.offsets * 0,
    )
    assert torch.isfinite(fusion_of(shop, FusionConfig(kind=kind))(empty).outputs).all()


def test_a_tenth_of_the_candidates_get_a_random_known_id_in_training_only(shop, batch):
    fusion = fusion_of(shop, FusionConfig(cold_start="cir"))
    many = torch.full((20_000,), 3)
    generator = torch.Generator().manual_seed(0)
    assert torch.equal(fusion._randomised(many, generator), many)
    drawn = fusion.train()._randomised(many, generator)
    assert 0.09 < (drawn != many).float().mean() < 0.11
    assert drawn.min() == 1 and drawn.max() == len(fusion.encoder.items.flat_rows) - 1


def test_a_random_id_is_in_the_token_and_in_the_candidates_vector_and_content_stays_with_the_true_one(shop, batch):
    config = FusionConfig(cold_start="cir", content="added", module="frozen")
    fusion = fusion_of(shop, config).train()
    drawn = fusion._randomised(batch.candidates, torch.Generator().manual_seed(4))
    changed = drawn != batch.candidates
    assert changed.any() and not changed.all()
    found = fusion(batch, torch.Generator().manual_seed(4))
    plain = fusion.eval()(replace(batch, candidates=drawn))
    torch.testing.assert_close(found.outputs, plain.outputs)
    torch.testing.assert_close(found.alignment, fusion(batch).alignment)
    assert not torch.allclose(found.alignment, plain.alignment)


def test_outputs_of_young_items_are_dropped_by_age_in_training_only(shop, batch):
    fusion = fusion_of(shop, FusionConfig(cold_start="cir+idd"))
    ages = torch.tensor([0.0, 6.9, 7.0, 27.9, 28.0, 400.0])
    outputs, generator = torch.ones(6, 20_000), torch.Generator().manual_seed(0)
    assert torch.equal(fusion._dropped_by_age(outputs, ages, generator), outputs)
    dropped = fusion.train()._dropped_by_age(outputs, ages, generator)
    shares = (dropped == 0).float().mean(1)
    torch.testing.assert_close(shares, torch.tensor([0.7, 0.7, 0.5, 0.5, 0.0, 0.0]), atol=0.02, rtol=0)
    torch.testing.assert_close(dropped.mean(1), torch.ones(6), atol=0.05, rtol=0)
    assert torch.equal(
        fusion_of(shop, FusionConfig(cold_start="cir")).train()._dropped_by_age(outputs, ages, generator), outputs
    )


def test_alignment_is_zero_where_content_points_where_the_id_does(shop, batch):
    fusion = fusion_of(shop, FusionConfig(content="added"))
    assert fusion.content is not None
    found = fusion(batch).alignment
    ids = fusion.encoder.items(batch.candidates)
    content = fusion.content(batch.attributes)
    by_hand = [1 - torch.cosine_similarity(c, e, dim=0) for c, e in zip(content, ids, strict=True)]
    torch.testing.assert_close(found, torch.stack(by_hand).mean())
    found.backward()
    assert fusion.content.weight.grad is not None and fusion.content.weight.grad.any()


def test_a_frozen_encoder_learns_nothing_and_drops_nothing(shop, batch):
    fusion = fusion_of(shop, FusionConfig(kind="early", module="frozen")).train()
    first, second = fusion(batch).outputs, fusion(batch).outputs
    assert torch.equal(first, second) and not first.requires_grad
    tuned = fusion_of(shop, FusionConfig(kind="early")).train()
    assert not torch.equal(tuned(batch).outputs, tuned(batch).outputs)


def test_content_without_any_attribute_is_refused(shop):
    encoder, _ = trainable(shop.release)
    with pytest.raises(UsageError, match="no item attribute"):
        Fusion(FusionConfig(content="added"), encoder, attributes=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "middle"}, "kind must be one of"),
        ({"kind": "late-last", "learnable_token": "before candidate"}, "no candidate token"),
        ({"kind": "none", "content": "added"}, "no candidate token"),
        ({"window": -1}, "window"),
        ({"cold_start": "hot"}, "cold_start"),
        ({"module": "forzen"}, "module must be one of"),
        ({"learnable_token": "yes"}, "learnable_token must be one of"),
        ({"content": "yes"}, "content must be one of"),
        ({"kind": "none", "cold_start": "cir"}, "repairs nothing"),
        ({"kind": "late-last", "module": "frozen", "cold_start": "cir+idd"}, "repairs nothing"),
    ],
)
def test_what_does_not_go_together_is_refused(options, message):
    with pytest.raises(UsageError, match=message):
        FusionConfig(**options)
