from dataclasses import replace

import numpy as np
import pytest
import torch

from spoor.activity.hashing import hash_items
from spoor.base.errors import DataError
from spoor.encoder.model.config import MODEL_CONFIGS
from spoor.encoder.release.folder import Release
from spoor.encoder.release.inference import new_model
from spoor.encoder.release.info import ReleaseInfo
from spoor.encoder.release.tuning import extended, trainable
from tests.releases import vocabulary_of

TINY = MODEL_CONFIGS["tiny"]
DIRECT = replace(TINY, items="direct", hash_functions=1, table_rows=0, table_width=16)
ITEMS = [f"i{k}" for k in range(9)]
NEW = ["n0", "i3", "n1", "n0"]


def release_of(tmp_path, config) -> Release:
    vocabulary = vocabulary_of(ITEMS, ["like"], ["app"])
    model = new_model(config, vocabulary)
    model.initialise(0)
    info = ReleaseInfo(
        name="tiny-1",
        folder=tmp_path,
        dimension=config.dimension,
        max_events=config.max_events,
        trained_through_ms=0,
        hash_version=1,
        created_at="",
        data_fingerprint="",
        model=config,
    )
    weights = {name: value.numpy().copy() for name, value in model.state_dict().items()}
    return Release(info=info, vocabulary=vocabulary, weights=weights, metrics={})


@pytest.mark.parametrize("config", [TINY, DIRECT], ids=["hashed", "direct"])
def test_known_items_keep_their_vectors_and_new_ones_get_places(tmp_path, config) -> None:
    release = release_of(tmp_path, config)
    before, _ = trainable(release)
    after, vocabulary = trainable(release, new_items=NEW)
    assert sorted(vocabulary.item_ids) == sorted([*ITEMS, "n0", "n1"])
    assert list(hash_items(list(vocabulary.item_ids))) == list(vocabulary.items)

    def vectors(model, of, items):
        return model.targets(torch.from_numpy(of.item_indexes(hash_items(items))))

    torch.testing.assert_close(vectors(after, vocabulary, ITEMS), vectors(before, release.vocabulary, ITEMS))
    assert (vocabulary.item_indexes(hash_items(["n0", "n1"])) > 0).all()
    unknown = vectors(after, vocabulary, ["?"])
    torch.testing.assert_close(unknown, vectors(before, release.vocabulary, ["?"]))
    if config.items == "direct":  # a row of its own, which starts as the unknown item's
        torch.testing.assert_close(vectors(after, vocabulary, ["n0"]), unknown)
    assert all(parameter.requires_grad for parameter in after.parameters())


def test_the_release_itself_does_not_change(tmp_path) -> None:
    release = release_of(tmp_path, DIRECT)
    kept = {name: value.copy() for name, value in release.weights.items()}
    model, _ = trainable(release, new_items=NEW)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    for name, value in kept.items():
        np.testing.assert_array_equal(release.weights[name], value)


def test_nothing_new_changes_nothing(tmp_path) -> None:
    vocabulary = release_of(tmp_path, TINY).vocabulary
    same = extended(vocabulary, ["i1", "i2"])
    np.testing.assert_array_equal(same.items, vocabulary.items)
    assert same.item_ids == vocabulary.item_ids


def test_weights_of_another_shape_are_refused(tmp_path) -> None:
    release = release_of(tmp_path, TINY)
    release.weights["final_norm.weight"] = np.ones(3, np.float32)
    with pytest.raises(DataError, match="do not fit"):
        trainable(release)
