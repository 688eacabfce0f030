"""Untrained releases: their vectors are as good as any where only the way of a vector is tested."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from spoor.activity.hashing import hash_items, hash_names
from spoor.encoder.model.config import MODEL_CONFIGS
from spoor.encoder.model.vocabulary import Vocabulary
from spoor.encoder.release.folder import Weights, load_release, save_release
from spoor.encoder.release.inference import new_model
from spoor.encoder.release.info import ReleaseInfo


def vocabulary_of(items: Sequence[str], actions: Sequence[str], surfaces: Sequence[str]) -> Vocabulary:
    hashes = hash_items(items)
    order = np.argsort(hashes)
    return Vocabulary(
        items=hashes[order],
        actions=np.sort(hash_names(actions)),
        surfaces=np.sort(hash_names(surfaces)),
        item_ids=tuple(items[place] for place in order),
    )


def save_untrained_release(
    folder: Path,
    *,
    items: Sequence[str],
    actions: Sequence[str],
    surfaces: Sequence[str],
    seed: int = 0,
    trained_through_ms: int = 1_700_000_000_000,
) -> ReleaseInfo:
    """A release of the `tiny` configuration that knows these names, with random weights."""
    vocabulary = vocabulary_of(items, actions, surfaces)
    model = new_model(MODEL_CONFIGS["tiny"], vocabulary)
    model.initialise(seed)
    weights = {name: value.numpy() for name, value in model.state_dict().items()}
    return _save(folder, weights, vocabulary, trained_through_ms)


def save_turned_release(folder: Path, of: Path, *, seed: int = 0) -> ReleaseInfo:
    """What training `of` further might give, seen from a space of its own: weights that differ a little, and a drawn
    rotation after the last layers."""
    release, chance = load_release(of), np.random.default_rng(seed)
    weights = {name: value * chance.normal(1, 0.02, value.shape) for name, value in release.weights.items()}
    turn, _ = np.linalg.qr(chance.normal(size=(release.info.dimension, release.info.dimension)))
    for name in ("phi_out.out", "psi.out"):
        weights[f"{name}.weight"] = turn.T @ weights[f"{name}.weight"]
        weights[f"{name}.bias"] = turn.T @ weights[f"{name}.bias"]
    weights = {name: value.astype(np.float32) for name, value in weights.items()}
    return _save(folder, weights, release.vocabulary, release.info.trained_through_ms)


def _save(folder: Path, weights: Weights, vocabulary: Vocabulary, trained_through_ms: int) -> ReleaseInfo:
    return save_release(
        folder,
        model=MODEL_CONFIGS["tiny"],
        weights=weights,
        vocabulary=vocabulary,
        trained_through_ms=trained_through_ms,
        data_fingerprint="0" * 64,
        metrics={},
        training={},
        curve_png=b"\x89PNG",
    )
