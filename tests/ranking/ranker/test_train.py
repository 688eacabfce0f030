import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import save_file

from spoor.base.errors import DataError, UsageError
from spoor.encoder.evaluation.auc import auc
from spoor.ranking.features.attributes import AttributeLayout
from spoor.ranking.ranker.host import HostConfig
from spoor.ranking.ranker.train import fine_tune
from spoor.ranking.ranker.tuned import _digest, load_ranker, save_ranker
from spoor.ranking.settings import FinetuneSettings
from tests.ranking.shop import DAY, DIMENSION, END, START, T1, Shop, before, make_shop

QUICK = FinetuneSettings(
    positive_actions=("like", "save"), shown_actions=("view",), epochs=2, batch_rows=64, uniform_negatives=16
)
VARIANTS = {
    "none": replace(QUICK, fusion="none"),
    "frozen late": replace(QUICK, fusion="late-last", module="frozen"),
    "late-mean": replace(QUICK, fusion="late-mean"),
    "late-last": replace(QUICK, fusion="late-last"),
    "early": QUICK,
    "early frozen": replace(QUICK, module="frozen"),
    "early + GSLT": replace(
        QUICK, learnable_token="before candidate", content="added", cold_start="cir+idd", window=12
    ),
}


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    return make_shop(tmp_path_factory.mktemp("shop"))


@pytest.fixture(scope="module")
def train(shop: Shop):
    return shop.data()


@pytest.fixture(scope="module")
def test(shop: Shop):
    return shop.data(T1, END)


def tune(shop: Shop, train, settings: FinetuneSettings, events=None):
    return fine_tune(
        shop.release,
        train,
        before(shop.events, T1) if events is None else events,
        settings=settings,
        progress=lambda _: None,
    )


@pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS.keys())
def test_every_variant_trains_and_is_the_same_from_its_file(shop, train, test, settings, tmp_path):
    tuned = tune(shop, train, settings)
    assert len(tuned.losses) == 2 and np.isfinite(tuned.losses).all() and tuned.epoch in (1, 2)
    scores = tuned.ranker.score(test)
    assert scores.shape == (len(test.impressions.item_ids), 3) and np.isfinite(scores).all()
    path = tmp_path / "ranker.safetensors"
    save_ranker(path, tuned.ranker)
    loaded = load_ranker(path)
    np.testing.assert_array_equal(loaded.score(test), scores)
    assert loaded.tasks == ("engaged", "like", "save")
    assert loaded.about["release"] == "shop-1"


def test_the_module_learns_what_no_feature_tells(shop, test):
    """Users like their own kind of item: only their histories tell which."""
    long = shop.data(START + 8 * DAY, T1)
    eager = replace(QUICK, epochs=24, patience=0, learning_rate=1e-2, module_rate_share=0.5)
    labels = test.impressions.labels[:, 0]
    without, early = (
        auc(tune(shop, long, replace(eager, fusion=fusion)).ranker.score(test)[:, 0], labels)
        for fusion in ("none", "early")
    )
    assert without < 0.6 and early > 0.9


def test_the_same_seed_gives_the_same_ranker_and_leaves_the_random_state_alone(shop, train, test):
    settings = VARIANTS["early + GSLT"]
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    first = tune(shop, train, settings)
    assert torch.equal(torch.rand(1), expected)
    second = tune(shop, train, settings)
    assert first.losses == second.losses
    np.testing.assert_array_equal(first.ranker.score(test), second.ranker.score(test))
    assert tune(shop, train, replace(settings, seed=1)).losses != first.losses


def test_the_module_learns_at_a_tenth_of_the_rate(shop, train):
    from spoor.ranking.ranker.train import _optimiser
    from spoor.ranking.ranker.tuned import build_model

    encoder = tune(shop, train, replace(QUICK, epochs=1)).ranker.model.fusion.encoder
    model = build_model(encoder, QUICK.fusion_config, HostConfig(), features=11, attributes=7, tasks=3)
    fast, slow = _optimiser(model, QUICK).param_groups
    assert slow["lr"] == pytest.approx(fast["lr"] / 10)
    assert {id(p) for p in slow["params"]} == {id(p) for p in encoder.parameters()}
    assert len(fast["params"]) + len(slow["params"]) == len(list(model.parameters()))


def test_a_frozen_module_keeps_the_releases_weights(shop, train):
    tuned = tune(shop, train, VARIANTS["early frozen"])
    for name, value in tuned.ranker.model.fusion.encoder.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), shop.release.weights[name])
    moved = tune(shop, train, QUICK).ranker.model.fusion.encoder.state_dict()
    assert any(not np.array_equal(value.numpy(), shop.release.weights[name]) for name, value in moved.items())


def test_own_positives_are_no_negatives_and_only_training_events_count(shop, train, monkeypatch):
    from spoor.ranking.ranker import train as train_module

    seen = []
    real = train_module.own_positives

    def watched(candidates, own_items, own_offsets):
        mask = real(candidates, own_items, own_offsets)
        seen.append((candidates.items.numpy(), own_items, own_offsets, mask.numpy()))
        return mask

    monkeypatch.setattr(train_module, "own_positives", watched)
    tune(shop, train, replace(QUICK, epochs=1))
    assert seen
    for items, own_items, own_offsets, mask in seen:
        for segment, row in enumerate(mask):
            own = set(own_items[own_offsets[segment] : own_offsets[segment + 1]].tolist())
            assert set(items[row].tolist()) == own & set(items.tolist())
    # Every item that any user ever acted on before T1, and none that appeared later.
    _, vocabulary = train_module.trainable(shop.release, new_items=before(shop.events, T1)["item_id"].to_pylist())
    positives = train_module._positives(before(shop.events, T1), vocabulary)
    frame = before(shop.events, T1).to_pandas()
    for user, own in positives.by_user.items():
        mine = set(frame.loc[frame["user_id"] == user, "item_id"])
        assert {vocabulary.item_ids[k - 1] for k in own} == mine


def test_the_loss_is_its_formula_and_the_module_does_not_teach_the_ranker(shop, train):
    """BCE(ranker) + a BCE(module) + b |module - ranker|^2 + c L_ntl + d alignment."""
    from spoor.encoder.release.tuning import trainable
    from spoor.ranking.features.dataset import Scale
    from spoor.ranking.ranker.rows import BatchMaker
    from spoor.ranking.ranker.train import _loss, _positives, _sequence_loss
    from spoor.ranking.ranker.tuned import Predictions, build_model

    events = before(shop.events, T1)
    encoder, vocabulary = trainable(shop.release, new_items=events["item_id"].to_pylist())
    model = build_model(encoder, QUICK.fusion_config, HostConfig(), features=11, attributes=7, tasks=3)
    batch, of_batch = BatchMaker(train, vocabulary, Scale.of(train.features), window=12).batch(np.arange(9))
    positives = _positives(events, vocabulary)
    known = [positives.by_user[train.context_users[k]] for k in of_batch]
    logits, own = (torch.randn(batch.labels.shape, requires_grad=True) for _ in range(2))
    vectors = torch.nn.functional.normalize(torch.randn(len(batch.items), DIMENSION), dim=-1)
    settings = replace(QUICK, module_weight=0.3, agreement_weight=0.7, sequence_weight=0.2, alignment_weight=0.4)

    def loss(own: torch.Tensor | None) -> torch.Tensor:
        predicted = Predictions(logits, own, vectors, torch.tensor(1.5))
        return _loss(predicted, batch, model, known, positives.shares, settings, np.random.default_rng(3))

    def bce(logits: torch.Tensor) -> torch.Tensor:
        p = logits.sigmoid()
        return -(batch.labels * p.log() + (1 - batch.labels) * (1 - p).log()).mean()

    sequence = _sequence_loss(vectors, batch, model, known, positives.shares, settings, np.random.default_rng(3))
    taught = (own.sigmoid() - logits.sigmoid()).square().mean()
    expected = bce(logits) + 0.3 * bce(own) + 0.7 * taught + 0.2 * sequence + 0.4 * 1.5
    torch.testing.assert_close(loss(own), expected)
    torch.testing.assert_close(loss(None), bce(logits) + 0.4 * 1.5)  # a frozen module
    torch.testing.assert_close(
        torch.autograd.grad(loss(own), logits)[0], torch.autograd.grad(bce(logits), logits)[0], atol=1e-7, rtol=1e-5
    )


def test_the_sequence_loss_is_its_slow_version(shop, train):
    """Pair by pair: the next event of the same context, against what was drawn and its user never acted on."""
    from spoor.encoder.model.losses import draw_items
    from spoor.encoder.release.tuning import trainable
    from spoor.ranking.features.dataset import Scale
    from spoor.ranking.ranker.rows import BatchMaker
    from spoor.ranking.ranker.train import _positives, _sequence_loss
    from spoor.ranking.ranker.tuned import build_model

    events = before(shop.events, T1)
    # One item is unknown: events of it are no answers.
    lost = events["item_id"][0].as_py()
    encoder, vocabulary = trainable(shop.release)
    places = np.array([item != lost for item in vocabulary.item_ids])
    vocabulary = replace(
        vocabulary,
        items=vocabulary.items[places],
        item_ids=tuple(item for item in vocabulary.item_ids if item != lost),
    )
    model = build_model(encoder.eval(), QUICK.fusion_config, HostConfig(), features=11, attributes=7, tasks=3)
    positives = _positives(events, vocabulary)
    batch, of_batch = BatchMaker(train, vocabulary, Scale.of(train.features), window=12).batch(
        np.array([3, 50, 51, 90])
    )
    users = [train.context_users[k] for k in of_batch]
    with torch.no_grad():
        vectors = encoder(batch)
        found = _sequence_loss(
            vectors,
            batch,
            model,
            [positives.by_user[user] for user in users],
            positives.shares,
            QUICK,
            np.random.default_rng(5),
        )
        pairs = [
            (user, row, int(batch.items[row + 1]))
            for user, start, end in zip(users, batch.offsets.tolist(), batch.offsets.tolist()[1:], strict=False)
            for row in range(start, end - 1)
            if int(batch.items[row + 1])
        ]
        assert 0 in batch.items and 20 < len(pairs) < len(batch.items) - len(users)
        drawn = draw_items(
            np.array([target for *_, target in pairs]),
            answer_shares=positives.shares,
            uniform=QUICK.uniform_negatives,
            rng=np.random.default_rng(5),
        )
        acted = {user: set(mine["item_id"]) for user, mine in events.to_pandas().groupby("user_id")}
        items = list(zip(drawn.items.tolist(), drawn.log_weights.tolist(), strict=True))
        losses = []
        for user, row, target in pairs:
            score = {
                k: float(vectors[row] @ encoder.targets(torch.tensor([k]))[0] / encoder.temperature) for k, _ in items
            }
            others = [score[k] + w for k, w in items if k != target and vocabulary.item_ids[k - 1] not in acted[user]]
            losses.append(np.logaddexp.reduce([score[target], *others]) - score[target])
    assert float(found) == pytest.approx(np.mean(losses), rel=1e-4)


def test_each_context_is_trained_with_its_own_users_positives(shop, train, monkeypatch):
    from spoor.ranking.ranker import train as train_module

    real, seen = train_module._sequence_loss, []

    def watched(vectors, batch, model, own, *more):
        seen.append((batch, own))
        return real(vectors, batch, model, own, *more)

    monkeypatch.setattr(train_module, "_sequence_loss", watched)
    tune(shop, train, replace(QUICK, epochs=1))
    assert seen
    for batch, own in seen:
        for start, end, items in zip(batch.offsets, batch.offsets[1:], own, strict=False):
            assert set(batch.items[start:end].tolist()) <= set(items.tolist())


def test_the_best_epoch_is_kept_and_patience_ends_the_run(shop, train):
    settings = replace(QUICK, fusion="none", epochs=9, patience=0, learning_rate=0.02)
    long = tune(shop, train, settings)
    best = int(np.argmax(long.validation_auc)) + 1
    assert len(long.losses) == 9 and long.epoch == best < 9
    short = tune(shop, train, replace(settings, epochs=best))
    np.testing.assert_array_equal(long.ranker.score(train), short.ranker.score(train))
    impatient = tune(shop, train, replace(settings, patience=1))
    ended = next(k for k in range(1, 9) if long.validation_auc[k] <= max(long.validation_auc[:k])) + 1
    assert len(impatient.losses) == ended < 9 and impatient.losses == long.losses[:ended]


def test_labels_of_one_kind_and_a_loss_that_is_not_finite_are_errors(shop, train):
    impressions = replace(train.impressions, labels=np.zeros_like(train.impressions.labels))
    with pytest.raises(DataError, match="cannot train"):
        tune(shop, replace(train, impressions=impressions), QUICK)
    with pytest.raises(DataError, match="loss of epoch 1"):
        tune(shop, replace(train, attributes=np.full_like(train.attributes, np.nan)), QUICK)


def test_what_is_held_back_does_not_make_up_for_what_is_trained_on(shop, train):
    """Relevant rows among the newest tenth alone teach nothing."""
    labels = train.impressions.labels.copy()
    labels[: int(0.9 * len(labels)) + 8] = 0
    assert labels.any()
    with pytest.raises(DataError, match="with 0 relevant ones"):
        tune(shop, replace(train, impressions=replace(train.impressions, labels=labels)), QUICK)


def test_at_least_one_request_is_trained_on(shop, train):
    from spoor.ranking.ranker.rows import RankingData
    from spoor.ranking.ranker.train import _divided

    one: RankingData = replace(train, impressions=train.impressions.take(np.array([0])))
    assert [part.tolist() for part in _divided(one, 0.9)] == [[0], []]


def test_a_gradient_that_is_not_finite_is_an_error(shop, train):
    """The loss is finite, its gradient's norm overflows: a step would put zeros or NaN in place of every weight."""
    large = replace(train, attributes=np.full_like(train.attributes, 1e9))
    with pytest.raises(DataError, match=r"loss of epoch 1 is [0-9.]+e?.*norm of its gradient inf"):
        tune(shop, large, VARIANTS["none"])


def test_a_frozen_modules_content_is_tied_to_the_ids_too(shop, train):
    settings = replace(QUICK, module="frozen", content="added", epochs=1)

    def content(weight: float) -> torch.Tensor:
        found = tune(shop, train, replace(settings, alignment_weight=weight)).ranker.model.fusion.content
        assert found is not None
        return found.weight

    assert not torch.equal(content(1.0), content(0.0))


def test_data_of_another_layout_is_refused(shop, train, test):
    ranker = tune(shop, train, VARIANTS["none"]).ranker
    with pytest.raises(DataError, match="and 7 attributes, found 9 and 0"):
        ranker.score(replace(test, layout=AttributeLayout()))


def test_a_host_of_another_size_is_the_same_from_its_file(shop, train, test, tmp_path):
    host = HostConfig(crosses=1, hidden=8, dropout=0.0)
    ranker = fine_tune(
        shop.release, train, before(shop.events, T1), settings=VARIANTS["none"], host=host, progress=lambda _: None
    ).ranker
    save_ranker(tmp_path / "ranker.safetensors", ranker)
    loaded = load_ranker(tmp_path / "ranker.safetensors")
    assert loaded.model.host.config == host
    np.testing.assert_array_equal(loaded.score(test), ranker.score(test))


def test_a_ranker_with_names_of_hash_version_1_scores_the_same(shop, train, test, tmp_path):
    path = tmp_path / "ranker.safetensors"
    ranker = tune(shop, train, VARIANTS["late-last"]).ranker
    save_ranker(path, ranker)
    with safe_open(path, "numpy") as file:
        header = json.loads(file.metadata()["spoor"]) | {"hash_version": 1}
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    arrays |= {name: (arrays[name] >> np.uint64(48)).astype(np.uint16) for name in ("actions", "surfaces")}
    del header["sha256"]
    header["sha256"] = _digest(arrays, header)
    save_file(arrays, path, metadata={"spoor": json.dumps(header, sort_keys=True)})
    np.testing.assert_array_equal(load_ranker(path).score(test), ranker.score(test))
    save_file(arrays, path, metadata={"spoor": json.dumps(header | {"hash_version": 3})})
    with pytest.raises(DataError, match="hash versions"):
        load_ranker(path)


def test_a_damaged_or_foreign_file_is_refused(shop, train, tmp_path):
    path = tmp_path / "ranker.safetensors"
    with pytest.raises(UsageError, match="cannot read"):
        load_ranker(path)
    ranker = tune(shop, train, VARIANTS["none"]).ranker
    save_ranker(path, ranker)
    with pytest.raises(UsageError, match="exists already"):
        save_ranker(path, ranker)
    with pytest.raises(UsageError, match="is a folder"):
        save_ranker(tmp_path, ranker, overwrite=True)
    whole = bytearray(path.read_bytes())
    path.write_bytes(whole.replace(b'\\"like\\", \\"save\\"', b'\\"save\\", \\"like\\"'))
    assert path.read_bytes() != whole
    with pytest.raises(DataError, match="checksum"):
        load_ranker(path)
    whole[-20] ^= 1
    path.write_bytes(whole)
    with pytest.raises(DataError, match="checksum"):
        load_ranker(path)
    path.write_bytes(whole[:100])
    with pytest.raises(DataError, match="not a ranker"):
        load_ranker(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0"),
        ({"validation_share": 1.0}, "validation_share"),
        ({"sequence_weight": -1.0}, "sequence_weight"),
        ({"fusion": "late-last", "content": "added"}, "no candidate token"),
    ],
)
def test_settings_out_of_range_are_refused(change, message):
    with pytest.raises(UsageError, match=message):
        replace(QUICK, **change)
