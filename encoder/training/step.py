"""One optimiser step: from a batch of segments to loss, gradients and new weights.

    batch -> pairs and candidates (of the whole batch, drawn from the step's own seed)
          -> for each part of its segments: vectors, loss, gradients -> sum -> finite check -> AdamW

A batch is divided into parts for several processes or to save memory; the loss is the sum over parts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from spoor.activity.history import slice_rows
from spoor.base.errors import DataError
from spoor.encoder.data.batches import Batch
from spoor.encoder.data.pairs import Pairs, future_token_pairs, multi_token_pairs, next_token_pairs
from spoor.encoder.model.config import ModelConfig
from spoor.encoder.model.losses import (
    Drawn,
    Targets,
    draw_items,
    full_softmax_loss,
    own_positives,
    sampled_softmax_loss,
)
from spoor.encoder.model.user_encoder import UserEncoder
from spoor.encoder.model.vocabulary import Indexes
from spoor.encoder.training.checkpoint import TrainState
from spoor.encoder.training.parallel import Processes
from spoor.encoder.training.settings import PretrainSettings

_LONGEST_GRADIENT = 1.0


@dataclass(frozen=True, eq=False)
class Questions:
    """The targets and candidates of a batch. `drawn` None: every item is a candidate. `future`: number of pairs of the
    future-token loss. `masked` bool[N]: events whose item is hidden."""

    pairs: Pairs
    drawn: Drawn | None
    left_out: Tensor | None  # bool [S, M]: drawn items that are not used as negatives for a segment
    masked: np.ndarray
    future: int


def take_step(
    state: TrainState,
    batch: Batch,
    *,
    settings: PretrainSettings,
    answer_shares: np.ndarray,
    rate: float,
    processes: Processes,
) -> float:
    """Updates the model, its average and the optimiser; returns the loss of the whole batch, 0 if it has no pair.

    `answer_shares` float64[V + 1]: share of each item among all targets of the stage; `rate`: the learning rate.
    Raises DataError, before any weight changes, when the loss or a gradient is not finite.
    """
    rng = np.random.default_rng([settings.seed, state.step])
    questions = ask(batch, config=state.model.config, settings=settings, answer_shares=answer_shares, rng=rng)
    state.future_pairs += questions.future
    if len(questions.pairs) == 0:
        return 0.0
    state.optimiser.zero_grad()
    loss = 0.0
    for number, part in _parts(batch.offsets.numpy(), settings.accumulation, processes):
        torch.manual_seed(int(np.random.default_rng([settings.seed, state.step, number]).integers(2**62)))  # dropout
        found = part_loss(state.model, batch, questions, part)
        if found is not None:
            found.backward()
            loss += found.item()
    processes.sum_gradients(state.model)
    loss = processes.sum(loss)
    norm = state.optimiser.clip(_LONGEST_GRADIENT)
    if not (math.isfinite(loss) and math.isfinite(norm)):
        raise DataError(
            f"training diverged at step {state.step}: loss {loss}, gradient norm {norm}",
            hint="lower pretrain.learning_rate; the last checkpoint is from before this step",
        )
    state.optimiser.step(rate)
    return loss


def ask(
    batch: Batch,
    *,
    config: ModelConfig,
    settings: PretrainSettings,
    answer_shares: np.ndarray,
    rng: np.random.Generator,
) -> Questions:
    """Draws pairs, candidates and masked items of the whole batch."""
    targets, items, positive = batch.targets.numpy(), batch.items.numpy(), batch.positive.numpy()
    offsets = batch.offsets.numpy()
    window = settings.target_window
    kinds: list[Pairs] = []
    if settings.next_token_weight:
        kinds.append(next_token_pairs(targets, weight=settings.next_token_weight))
    if weight := settings.multi_token_weight:
        most = max(int(settings.pairs_per_event * batch.tokens), 1)
        kinds.append(multi_token_pairs(items, positive, offsets, window=window, most=most, rng=rng, weight=weight))
    future = Pairs.join([])
    if weight := settings.future_token_weight:
        served = config.served_length
        future = future_token_pairs(
            items, positive, offsets, served_length=served, window=window, rng=rng, weight=weight
        )
    pairs = Pairs.join([*kinds, future])
    masked = rng.random(batch.tokens) < settings.unknown_item_share
    drawn = left_out = None
    if settings.negatives != "full" and len(pairs):
        uniform = settings.uniform_negatives if settings.negatives == "mixed" else 0
        drawn = draw_items(targets[targets > 0], answer_shares=answer_shares, uniform=uniform, rng=rng)
        if settings.own_positives == "masked":
            left_out = own_positives(drawn, batch.own_items.numpy(), batch.own_offsets.numpy())
    return Questions(pairs, drawn, left_out, masked, len(future))


def part_loss(model: UserEncoder, batch: Batch, questions: Questions, part: slice) -> Tensor | None:
    """The weighted loss over the pairs in the segments of `part`; None if they have no pair."""
    device = model.items.weight.device
    bounds = batch.offsets.numpy()[part.start : part.stop + 1]
    pairs = questions.pairs
    asked = slice(*np.searchsorted(pairs.rows, [bounds[0], bounds[-1]]))
    if asked.start == asked.stop:
        return None
    rows, offsets = _needed_rows(pairs.rows[asked], bounds)
    events = batch.take(rows, torch.from_numpy(offsets))
    events = replace(events, items=events.items.masked_fill(torch.from_numpy(questions.masked[rows]), 0)).to(device)
    targets = Targets(
        torch.from_numpy(np.searchsorted(rows, pairs.rows[asked])).to(device),
        torch.from_numpy(pairs.items[asked]).to(device),
        torch.from_numpy(pairs.weights[asked]).to(device),
    )
    drawn = questions.drawn and questions.drawn.to(device)
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
        vectors = model(events).float()
        items = (model.every_target() if drawn is None else model.targets(drawn.items)).float()
    if drawn is None:
        return full_softmax_loss(vectors, items, targets, temperature=model.temperature)
    left_out = None
    if questions.left_out is not None:
        segments = np.searchsorted(batch.offsets.numpy(), pairs.rows[asked], side="right") - 1
        left_out = questions.left_out[torch.from_numpy(segments)].to(device)
    return sampled_softmax_loss(vectors, items, drawn, targets, temperature=model.temperature, left_out=left_out)


def _needed_rows(asked: Indexes, bounds: Indexes) -> tuple[Indexes, Indexes]:
    """The ascending rows of the events that the pairs depend on, and the segments' offsets into them. Attention is
    causal: events after a segment's last pair change nothing."""
    last = np.searchsorted(asked, bounds[1:]) - 1
    ends = np.where(last >= 0, asked[np.maximum(last, 0)] + 1, 0)
    return slice_rows(bounds[:-1], np.maximum(ends - bounds[:-1], 0))


def _parts(offsets: Indexes, accumulation: int, processes: Processes) -> Iterator[tuple[int, slice]]:
    """This process's parts of the batch: number and segments of each, with about equally many events."""
    count = accumulation * processes.count
    wanted = offsets[-1] * np.arange(count + 1) // count
    cuts = np.searchsorted(offsets, wanted)
    for number in range(processes.rank * accumulation, (processes.rank + 1) * accumulation):
        yield number, slice(int(cuts[number]), int(cuts[number + 1]))
