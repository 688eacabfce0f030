"""Initial weights from item links or an earlier release, instead of random ones."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from spoor.base.errors import UsageError
from spoor.encoder.data.corpus import Corpus
from spoor.encoder.data.item_links import count_links
from spoor.encoder.data.split import TRAIN, Split
from spoor.encoder.model.user_encoder import UserEncoder
from spoor.encoder.model.vocabulary import Indexes, Vocabulary, name_indexes
from spoor.encoder.release.folder import Release


def start_from_links(
    model: UserEncoder, corpus: Corpus, split: Split, vocabulary: Vocabulary, *, seed: int, role: int = TRAIN
) -> None:
    """Sets item embeddings to the leading factors of the item links (which item follows which) in the events up to
    `role`, scaled to the mean norm of the random table. Raises UsageError for hashed items, whose rows are shared."""
    if not model.items.direct:
        raise UsageError(
            "pretrain.item_start is links, which needs a model whose items have rows of their own",
            hint='set pretrain.item_start to "random", or take a model with direct items',
        )
    links = count_links(corpus, split, vocabulary, upto=role)
    table = model.items.weight
    factors = torch.from_numpy(links.factors(table.shape[1], seed=seed))
    with torch.no_grad():
        table.copy_(factors * table.norm(dim=1).mean())


def start_from_release(model: UserEncoder, vocabulary: Vocabulary, release: Release) -> dict[str, int]:
    """Copies the weights of an earlier release. Items, actions and surfaces that it does not know keep their random
    weights. Returns the number of known ones of each. Raises UsageError if the release has another shape or packed
    tables."""
    differing = [
        name
        for name, value in model.config.to_json().items()
        if name not in _FREE and release.info.model.to_json()[name] != value
    ]
    if differing:
        raise UsageError(
            f"release `{release.info.name}` has another shape: {', '.join(differing)} differ",
            hint="train with that release's configuration, or without --from",
        )
    weights = {name: torch.from_numpy(np.array(value)) for name, value in release.trainable_weights().items()}
    known = {
        "items": release.vocabulary.item_indexes(vocabulary.items),
        "actions": name_indexes(vocabulary.actions, release.vocabulary.actions),
        "surfaces": name_indexes(vocabulary.surfaces, release.vocabulary.surfaces),
    }
    own = model.state_dict()
    if model.rotation is None:
        weights.pop("rotation", None)  # no score depends on the rotation, so dropping it does not change training
    for name, places in known.items():
        if name != "items" or model.items.direct:
            weights[f"{name}.weight"] = _rows(own[f"{name}.weight"], weights[f"{name}.weight"], places)
    model.load_state_dict(weights)
    return {name: int((places > 0).sum()) for name, places in known.items()}


_FREE = ("segment_length", "served_length", "input_dropout", "dropout", "temperature", "temperature_floor", "rotated")


def _rows(drawn: Tensor, taken: Tensor, places: Indexes) -> Tensor:
    """`drawn` with row 0 of `taken`, and with the rows of `taken` that have a known place."""
    rows = drawn.clone()
    rows[0] = taken[0]
    found = np.flatnonzero(places)
    rows[torch.from_numpy(found + 1)] = taken[torch.from_numpy(places[found])]
    return rows
