"""A small untrained release, and histories over its items and a few that it does not know."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from spoor.activity.hashing import hash_items, hash_names
from spoor.activity.history import EVENT_DTYPE, Histories
from spoor.encoder.model.config import MODEL_CONFIGS, ModelConfig
from spoor.encoder.model.vocabulary import Vocabulary
from spoor.encoder.release.folder import save_release
from spoor.encoder.release.inference import new_model
from spoor.encoder.release.info import ReleaseInfo
from tests.releases import vocabulary_of

ITEM_IDS = [f"item-{n}" for n in range(50)]
ACTIONS = ["view", "save", "hide"]
SURFACES = ["home", "search"]


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Models this small only wait for one another's threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@dataclass(frozen=True)
class ReleaseParts:
    """What `save_release` needs besides the folder."""

    vocabulary: Vocabulary
    config: ModelConfig

    def save(self, folder: Path, *, seed: int = 0, overwrite: bool = False) -> ReleaseInfo:
        model = new_model(self.config, self.vocabulary)
        model.initialise(seed)
        return save_release(
            folder,
            model=self.config,
            weights={name: value.numpy() for name, value in model.state_dict().items()},
            vocabulary=self.vocabulary,
            trained_through_ms=1_700_000_000_000,
            data_fingerprint="0" * 64,
            metrics={"recall_at_10": 0.25},
            training={"epochs": 0},
            curve_png=b"\x89PNG",
            overwrite=overwrite,
        )


@pytest.fixture
def parts() -> ReleaseParts:
    return ReleaseParts(vocabulary_of(ITEM_IDS, ACTIONS, SURFACES), MODEL_CONFIGS["tiny"])


@pytest.fixture
def make_histories() -> Callable[..., Histories]:
    """make_histories(lengths, seed=0): random events; one item, action and surface in ten is unknown to the release."""

    def make(lengths: list[int], *, seed: int = 0) -> Histories:
        rng = np.random.default_rng(seed)
        items = hash_items([*ITEM_IDS, *(f"new-{n}" for n in range(5))])
        actions, surfaces = hash_names([*ACTIONS, "new"]), hash_names([*SURFACES, "new"])
        users = []
        for length in lengths:
            events = np.empty(length, EVENT_DTYPE)
            events["timestamp"] = 1_600_000_000_000 + np.sort(rng.choice(10**9, length, replace=False))
            events["item"] = rng.choice(items, length)
            events["action"] = rng.choice(actions, length)
            events["surface"] = rng.choice(surfaces, length)
            users.append(events)
        return Histories.of(users)

    return make
