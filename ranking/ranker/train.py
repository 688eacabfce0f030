"""Fine-tuning: the encoder of a release inside a ranker, both trained on impressions.

    loss = BCE(ranker) + a BCE(module alone) + b |module - ranker|^2 + c L_ntl + d alignment

over the tasks. The ranker's prediction is the target of the module's (no gradient to the ranker), L_ntl is the
next-token loss over the batch's histories, and `alignment` is the distance between content and ids. By default the
encoder's learning rate is a tenth of the ranker's, and the newest tenth of the training requests is held out to choose
the epoch.

Legend: n rows, C candidates of a batch, K tasks, N events of its contexts, P pairs of L_ntl, M negatives.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch
import torch.nn.functional as F
from torch import Tensor

from spoor.activity.hashing import hash_items
from spoor.base.errors import DataError
from spoor.encoder.evaluation.auc import auc
from spoor.encoder.model.losses import Targets, draw_items, own_positives, sampled_softmax_loss
from spoor.encoder.model.user_encoder import UserEncoder
from spoor.encoder.model.vocabulary import Vocabulary
from spoor.encoder.release.folder import Release
from spoor.encoder.release.tuning import trainable
from spoor.ranking.features.dataset import Scale
from spoor.ranking.ranker.fusion import RankingBatch
from spoor.ranking.ranker.host import HostConfig
from spoor.ranking.ranker.rows import BatchMaker, RankingData
from spoor.ranking.ranker.tuned import Predictions, RankingModel, TunedRanker, build_model
from spoor.ranking.settings import FinetuneSettings

_LONGEST_GRADIENT = 1.0
Int64s = npt.NDArray[np.int64]
Progress = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class Tuned:
    """`losses`: mean loss of each epoch; `validation_auc`: AUC of the newest requests after each epoch, NaN if they
    have only one kind of label; `epoch`: the epoch that was kept, counted from 1."""

    ranker: TunedRanker
    losses: list[float]
    validation_auc: list[float]
    epoch: int
    rows_per_context: float  # candidates per encoded history, over all batches


@dataclass(frozen=True, eq=False)
class Positives:
    """Items of the users' events before the end of the training window; a user's own items are not negatives.

    `by_user`: sorted distinct vocabulary indexes; `shares` float64 [V + 1]: share of each item among these events."""

    by_user: dict[str, Int64s]
    shares: npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Module:
    """A release's network to put into the ranker, and the users' own items."""

    encoder: UserEncoder | None
    vocabulary: Vocabulary
    positives: Positives

    @classmethod
    def of(cls, release: Release, events: pa.Table) -> Module:
        encoder, vocabulary = trainable(release, new_items=pc.unique(events["item_id"]).to_pylist())
        return cls(encoder, vocabulary, _positives(events, vocabulary))


_NOTHING = np.empty(0, np.uint64)
NO_MODULE = Module(None, Vocabulary(_NOTHING, _NOTHING, _NOTHING, ()), Positives({}, np.zeros(1)))


def fine_tune(
    release: Release,
    data: RankingData,
    events: pa.Table,
    *,
    settings: FinetuneSettings,
    host: HostConfig | None = None,
    progress: Progress = lambda line: print(line, file=sys.stderr),
) -> Tuned:
    """`train_ranker` with the release inside, if its fusion reads histories. `events`: all events before the end of the
    training window (EVENT_SCHEMA), and none later."""
    return train_ranker(
        data,
        lambda: Module.of(release, events),
        settings=settings,
        host=host,
        about={"release": release.info.name, "space": release.info.space, "settings": asdict(settings)},
        progress=progress,
    )


def train_ranker(
    data: RankingData,
    module: Callable[[], Module] | None = None,
    *,
    settings: FinetuneSettings,
    host: HostConfig | None = None,
    about: Mapping[str, Any] | None = None,
    progress: Progress = lambda _: None,
) -> Tuned:
    """`data`: the training window; `module` is called only if the fusion of `settings` reads histories.

    Equal arguments give equal rankers on one machine; the global random state is not changed. Raises DataError if the
    training rows lack one of the two labels, or a loss is not finite.
    """
    trained_on, _ = _divided(data, settings.validation_share)
    labels = data.impressions.labels[: _row_count(data, trained_on), 0]
    if not 0 < labels.sum() < len(labels):
        raise DataError(
            f"{len(labels)} rows to train on with {int(labels.sum())} relevant ones cannot train a ranker",
            hint="widen the training window, or check which actions count as positive",
        )
    torch.set_num_threads(settings.threads)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        inside = module() if module is not None and settings.fusion_config.reads_histories else NO_MODULE
        model = build_model(
            inside.encoder,
            settings.fusion_config,
            host or HostConfig(),
            features=data.features.values.shape[1] + len(data.features.groups),
            attributes=data.attributes.shape[1],
            tasks=len(data.impressions.tasks),
            dimension=data.user_vectors.shape[1],
        )
        model.initialise(settings.seed)
        ranker = TunedRanker(
            model=model,
            vocabulary=inside.vocabulary,
            scale=Scale.of(data.features),
            groups=data.features.groups,
            layout=data.layout,
            tasks=data.impressions.tasks,
            about=about or {},
        )
        return _train(ranker, data, inside.positives, settings, progress)


def _train(
    ranker: TunedRanker,
    data: RankingData,
    positives: Positives,
    settings: FinetuneSettings,
    progress: Progress,
) -> Tuned:
    model = ranker.model
    maker = BatchMaker(data, ranker.vocabulary, ranker.scale, window=model.fusion.window)
    trained_on, held_back = _divided(data, settings.validation_share)
    optimiser = _optimiser(model, settings)
    generator = torch.Generator().manual_seed(settings.seed)
    chance = np.random.default_rng(settings.seed)
    losses, aucs, best, contexts = [], [], (0, -np.inf, copy.deepcopy(model.state_dict())), 0
    for epoch in range(1, settings.epochs + 1):
        model.train()
        total = 0.0
        order = chance.permutation(trained_on)
        for requests in maker.batches(order, rows=settings.batch_rows):
            batch, of_batch = maker.batch(requests)
            own = [positives.by_user.get(data.context_users[k], np.empty(0, np.int64)) for k in of_batch]
            loss = _loss(model(batch, generator), batch, model, own, positives.shares, settings, chance)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), _LONGEST_GRADIENT)
            if not torch.isfinite(loss + norm):
                raise DataError(
                    f"the loss of epoch {epoch} is {loss.item()}, the norm of its gradient {norm.item()}",
                    hint="lower finetune.learning_rate and try again",
                )
            optimiser.step()
            total += loss.item() * len(batch.candidates)
            contexts += len(of_batch)
        losses.append(total / _row_count(data, trained_on))
        aucs.append(_validation_auc(ranker, maker, held_back))
        progress(f"epoch {epoch}/{settings.epochs}: loss {losses[-1]:.4f}, validation AUC {aucs[-1]:.4f}")
        # If the validation AUC is NaN, the last epoch is kept.
        if np.isnan(aucs[-1]) or aucs[-1] > best[1]:
            best = (epoch, aucs[-1], copy.deepcopy(model.state_dict()))
        elif settings.patience and epoch - best[0] >= settings.patience:
            break
    model.load_state_dict(best[2])
    model.eval()
    rows = len(losses) * _row_count(data, trained_on)
    return Tuned(ranker, losses, aucs, best[0], rows / max(contexts, 1))


def _loss(
    predicted: Predictions,
    batch: RankingBatch,
    model: RankingModel,
    own: Sequence[Int64s],
    shares: npt.NDArray[np.float64],
    settings: FinetuneSettings,
    chance: np.random.Generator,
) -> Tensor:
    """The weighted sum in the module docstring, a scalar. `own`: item indexes of each context's user."""
    loss = F.binary_cross_entropy_with_logits(predicted.logits, batch.labels)
    loss = loss + settings.alignment_weight * predicted.alignment
    if predicted.own is not None:
        taught = predicted.logits.detach().sigmoid()
        loss = loss + settings.module_weight * F.binary_cross_entropy_with_logits(predicted.own, batch.labels)
        loss = loss + settings.agreement_weight * F.mse_loss(predicted.own.sigmoid(), taught)
        if settings.sequence_weight and predicted.events is not None:
            sequence = _sequence_loss(predicted.events, batch, model, own, shares, settings, chance)
            loss = loss + settings.sequence_weight * sequence
    return loss


def _sequence_loss(
    events_NE: Tensor,
    batch: RankingBatch,
    model: RankingModel,
    own: Sequence[Int64s],
    shares: npt.NDArray[np.float64],
    settings: FinetuneSettings,
    chance: np.random.Generator,
) -> Tensor:
    """L_ntl: the mean over at most `max_pairs` events of the contexts whose next event has a known item."""
    items, bounds = batch.items.numpy(), batch.offsets.numpy()
    answers = np.zeros(len(items), np.int64)
    answers[:-1] = items[1:]
    answers[bounds[1:][np.diff(bounds) > 0] - 1] = 0
    rows = np.flatnonzero(answers)
    if not len(rows):
        return events_NE.new_zeros(())
    if len(rows) > settings.max_pairs:
        rows = np.sort(chance.choice(rows, settings.max_pairs, replace=False))
    targets = answers[rows]
    drawn = draw_items(targets, answer_shares=shares, uniform=settings.uniform_negatives, rng=chance)
    of_row = np.searchsorted(bounds, rows, side="right") - 1
    own_offsets = np.cumsum([0, *(len(items) for items in own)])
    encoder = model.fusion.encoder
    assert encoder is not None
    own_items = np.concatenate([np.empty(0, np.int64), *own])
    return sampled_softmax_loss(
        events_NE,
        encoder.targets(drawn.items),
        drawn,
        Targets(torch.from_numpy(rows), torch.from_numpy(targets), events_NE.new_full((len(rows),), 1 / len(rows))),
        temperature=encoder.temperature,
        left_out=own_positives(drawn, own_items, own_offsets)[torch.from_numpy(of_row)],
    )


def _optimiser(model: RankingModel, settings: FinetuneSettings) -> torch.optim.Optimizer:
    taken_over = list(model.fusion.encoder.parameters()) if model.fusion.encoder is not None else []
    slow = {id(p) for p in taken_over}
    groups = [
        {"params": [p for p in model.parameters() if id(p) not in slow], "lr": settings.learning_rate},
        {
            "params": [p for p in taken_over if p.requires_grad],
            "lr": settings.learning_rate * settings.module_rate_share,
        },
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], weight_decay=settings.weight_decay)


def _positives(events: pa.Table, vocabulary: Vocabulary) -> Positives:
    users = events["user_id"].combine_chunks().dictionary_encode()
    items = vocabulary.item_indexes(hash_items(events["item_id"].to_pylist()))
    numbers = users.indices.to_numpy()
    order = np.lexsort((items, numbers))
    bounds = np.searchsorted(numbers[order], np.arange(len(users.dictionary) + 1))
    own = [np.unique(items[order[start:end]]) for start, end in pairwise(bounds)]
    counts = np.bincount(items, minlength=len(vocabulary.items) + 1).astype(np.float64)
    counts[0] = 0.0
    return Positives(dict(zip(users.dictionary.to_pylist(), own, strict=True)), counts / max(counts.sum(), 1.0))


def _divided(data: RankingData, share: float) -> tuple[Int64s, Int64s]:
    """Requests to train on (at least one), and the newest requests, which choose the epoch. `data` is oldest first."""
    cut = max(round((1 - share) * data.impressions.requests), 1)
    return np.arange(cut), np.arange(cut, data.impressions.requests)


def _validation_auc(ranker: TunedRanker, maker: BatchMaker, requests: Int64s) -> float:
    scores, labels = [np.empty(0, np.float32)], [np.empty(0, np.float32)]
    ranker.model.eval()
    with torch.inference_mode():
        for some in maker.batches(requests, rows=2_048):
            batch, _ = maker.batch(some)
            scores.append(ranker.model(batch).logits[:, 0].numpy())
            labels.append(batch.labels[:, 0].numpy())
    return auc(np.concatenate(scores), np.concatenate(labels))


def _row_count(data: RankingData, requests: Int64s) -> int:
    return int(np.diff(data.impressions.offsets)[requests].sum())
