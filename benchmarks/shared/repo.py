"""A Feast repo of its own for a benchmark, with one release that nobody has trained."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from spoor.activity.hashing import hash_items, hash_names
from spoor.encoder.model.config import MODEL_CONFIGS
from spoor.encoder.model.vocabulary import Vocabulary
from spoor.encoder.release.folder import save_release
from spoor.encoder.release.inference import new_model
from spoor.feature_repo.settings import FeatureSettings
from spoor.store.repo import apply, create_repo

NOW_MS = 1_750_000_000_000  # after all that the release may have seen


def applied_repo(folder: Path, *, release: str, items: int, redis: str | None) -> tuple[FeatureSettings, Vocabulary]:
    """Online in SQLite, or in an empty Redis at HOST:PORT. The release has the model `base` with random weights, the
    items item-0, item-1, …, the action view and the surface home."""
    features = FeatureSettings(
        feature_repo=folder / "feature_repo", releases_folder=folder / "releases", offline_folder=folder / "offline"
    )
    ids = [f"item-{number}" for number in range(items)]
    hashes = hash_items(ids)
    order = np.argsort(hashes)
    vocabulary = Vocabulary(hashes[order], hash_names(["view"]), hash_names(["home"]), tuple(ids[k] for k in order))
    model = new_model(MODEL_CONFIGS["base"], vocabulary)
    model.initialise(0)
    save_release(
        features.releases_folder / release,
        model=MODEL_CONFIGS["base"],
        weights={name: value.numpy() for name, value in model.state_dict().items()},
        vocabulary=vocabulary,
        trained_through_ms=NOW_MS - 1,
        data_fingerprint="0" * 64,
        metrics={},
        training={},
        curve_png=b"\x89PNG",
    )
    online_store = {"type": "sqlite"} if redis is None else {"type": "redis", "connection_string": redis}
    create_repo(features.feature_repo, online_store=online_store, state_folder=folder / "state")
    apply(features)
    return features, vocabulary
