"""What a model's weights are before its first step, if not drawn: item links, or an earlier release."""

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
    """Item embeddings become the leading factors of who follows whom in the events up to `role`, at the length that a
    drawn table would have. Raises UsageError for hashed items, whose rows are shared."""
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
    """Takes over the weights of an earlier release; items, actions and surfaces that it did not know keep what they
    were drawn. Returns how many of each it knew. Raises UsageError when the release has another shape, or
    packed tables."""
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
        weights.pop("rotation", None)  # no score depends on it, so training goes on as from the release before it
    for name, places in known.items():
        if name != "items" or model.items.direct:
            weights[f"{name}.weight"] = _rows(own[f"{name}.weight"], weights[f"{name}.weight"], places)
    model.load_state_dict(weights)
    return {name: int((places > 0).sum()) for name, places in known.items()}


_FREE = ("segment_length", "served_length", "input_dropout", "dropout", "temperature", "temperature_floor", "rotated")


def _rows(drawn: Tensor, taken: Tensor, places: Indexes) -> Tensor:
    """`drawn` with the rows of `taken` where a place is known, and its row 0."""
    rows = drawn.clone()
    rows[0] = taken[0]
    found = np.flatnonzero(places)
    rows[torch.from_numpy(found + 1)] = taken[torch.from_numpy(places[found])]
    return rows
