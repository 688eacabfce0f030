"""A release's network for further training in a ranker, extended by new items.

Hashed tables already have rows for any item. With direct tables a new item gets its own row, which starts as a copy of
the unknown item's row.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from spoor.activity.hashing import hash_items
from spoor.encoder.model.user_encoder import UserEncoder
from spoor.encoder.model.vocabulary import Vocabulary
from spoor.encoder.release.folder import Release
from spoor.encoder.release.inference import new_model, take_weights

_TABLE = "items.weight"


def trainable(release: Release, *, new_items: Sequence[str] = ()) -> tuple[UserEncoder, Vocabulary]:
    """The release's network and its vocabulary, extended by `new_items` (raw ids; known ones are ignored).

    Other unknown items, actions and surfaces stay index 0. Raises DataError if the weights do not fit the release's
    configuration, UsageError if its tables are packed.
    """
    vocabulary = extended(release.vocabulary, new_items)
    model = new_model(release.info.model, vocabulary)
    weights = {name: torch.from_numpy(np.array(array)) for name, array in release.trainable_weights().items()}
    if release.info.model.items == "direct" and _TABLE in weights:
        place = release.vocabulary.item_indexes(vocabulary.items)  # 0, the unknown item, for new items
        weights[_TABLE] = weights[_TABLE][np.concatenate([[0], place])]
    take_weights(model, weights, release=release.info.name)
    return model, vocabulary


def extended(vocabulary: Vocabulary, new_items: Sequence[str]) -> Vocabulary:
    """The vocabulary with these items added."""
    ids = sorted(set(new_items))
    hashes, first = np.unique(hash_items(ids), return_index=True)
    unknown = vocabulary.item_indexes(hashes) == 0
    added = [ids[place] for place in first[unknown]]
    items = np.concatenate([vocabulary.items, hashes[unknown]])
    order = np.argsort(items)
    names = (*vocabulary.item_ids, *added)
    return Vocabulary(items[order], vocabulary.actions, vocabulary.surfaces, tuple(names[k] for k in order))
