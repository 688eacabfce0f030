"""How many targets a second does a whole training step learn from, beside a padded SASRec?

    python -m benchmarks.pretrain --set amazon_beauty [--rounds 5] [--seconds 20] [--threads 2] --json [--keep]

Three contenders train on the same events (leave one out, training events alone) with the same dimensions (width,
blocks, heads, feed-forward, length, dropout), the full softmax over the same items, and about as many events a step:

    jagged    Spoor: no padding, AdamW, averaged weights, clipped gradients, finite check
    padded    SASRec as people usually write it: every history padded to the same length, Adam (baselines/sasrec.py)
    sorted    the same with users of similar length in a batch, which is padded to its longest history

A target is an event whose item is asked for; padding counts for nothing. Time is that of the whole step, the making of
its batch included. Contenders take turns, one piece of `seconds` each per round; `ratio` is the median over rounds of
jagged over padded, `ratio_sorted` of jagged over sorted. Data are read from ../shared/data and never committed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.shared.rows import circumstances, finish
from spoor.encoder.baselines.sasrec import SasrecModel, SasrecSettings, newest, next_item_loss, user_batches
from spoor.encoder.data.corpus import Corpus
from spoor.encoder.data.split import TRAIN, Split
from spoor.encoder.evaluation.scoring import Training
from spoor.encoder.model.vocabulary import Vocabulary
from spoor.encoder.training.parallel import ALONE
from spoor.encoder.training.plan import Plan, PretrainRequest, make_plan
from spoor.encoder.training.run import fresh_state
from spoor.encoder.training.settings import PretrainSettings
from spoor.encoder.training.step import take_step

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
RESULTS = Path(__file__).parent / "results" / "pretrain.jsonl"
GOALS = {"padded": 2.0, "sorted": 1.1}
_WARM_UP_STEPS = 3
Steps = Iterator[int]  # each next() is one step, and says how many targets it had


def jagged_steps(plan: Plan) -> Steps:
    state, stage = fresh_state(plan), plan.schedule.stages[0]
    state.model.train()
    while True:
        for batch in stage.reader.epoch(state.epoch):
            shares, rate = stage.answer_shares, plan.settings.learning_rate
            take_step(state, batch, settings=plan.settings, answer_shares=shares, rate=rate, processes=ALONE)
            state.step += 1
            yield int((batch.targets > 0).sum())
        state.epoch += 1


def sasrec_steps(training: Training, settings: SasrecSettings, *, by_length: bool) -> Steps:
    torch.manual_seed(0)
    model = SasrecModel(settings, items=training.vocabulary_size).train()
    optimiser = torch.optim.Adam(model.parameters(), lr=settings.learning_rate)
    lengths = np.minimum(np.diff(training.offsets), settings.length + 1)
    epoch = 0
    while True:
        batches = list(user_batches(training, settings.batch_users, seed=[epoch]))
        if by_length:
            batches = _sorted_batches(np.concatenate(batches), lengths, settings.batch_users, seed=epoch)
        for users in batches:
            length = int(lengths[users].max()) if by_length else settings.length + 1
            padded = newest(training, users, length=length)
            loss = next_item_loss(model, padded)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            yield int(((padded[:, :-1] > 0) & (padded[:, 1:] > 0)).sum())
        epoch += 1


def _sorted_batches(users: np.ndarray, lengths: np.ndarray, batch_users: int, *, seed: int) -> list[np.ndarray]:
    """Users of one length in random order, batches in random order."""
    users = users[np.argsort(lengths[users], kind="stable")]
    batches = [users[start : start + batch_users] for start in range(0, len(users), batch_users)]
    return [batches[place] for place in np.random.default_rng(seed).permutation(len(batches))]


def measure(name: str, *, rounds: int, seconds: float, layers: int | None) -> dict[str, Any]:
    data = DATA / name / "events.parquet"
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        auto = make_plan(
            PretrainRequest(data, out=folder / "auto-1", settings=PretrainSettings(), protocol="leave-one-out"),
            folder=folder,
        )
        recipe, counts = auto.model, auto.corpus.counts
        settings = SasrecSettings(
            length=recipe.segment_length,
            width=recipe.width,
            blocks=layers or SasrecSettings.blocks,
            heads=recipe.heads,
            dropout=recipe.dropout,
        )
        training = _training(auto.corpus, auto.split, auto.vocabulary)
        clipped = np.minimum(np.diff(training.offsets), settings.length + 1)
        shape = {"layers": settings.blocks, "feed_forward_width": settings.width}  # SASRec's own
        model, chosen = folder / "model.json", auto.settings
        model.write_text(json.dumps(recipe.to_json() | shape))
        plan = make_plan(
            PretrainRequest(
                data,
                out=folder / "jagged-1",
                settings=PretrainSettings(
                    model=str(model),
                    negatives="full",
                    token_budget=int(settings.batch_users * clipped[clipped > 1].mean()),
                    learning_rate=settings.learning_rate,
                    average_decay=chosen.average_decay,
                    item_start="links",
                    refit_epochs=0,
                ),
                protocol="leave-one-out",
            ),
            folder=folder,
        )
        contenders = {
            "jagged": jagged_steps(plan),
            "padded": sasrec_steps(training, settings, by_length=False),
            "sorted": sasrec_steps(training, settings, by_length=True),
        }
        rates = _take_turns(contenders, rounds=rounds, seconds=seconds)
    ratios = {peer: float(np.median(np.array(rates["jagged"]) / rates[peer])) for peer in GOALS}
    return {
        "benchmark": "pretrain",
        "set": name,
        "ratio": ratios["padded"],
        "goal": GOALS["padded"],
        "ratio_sorted": ratios["sorted"],
        "goal_sorted": GOALS["sorted"],
        "targets_per_second": {contender: [round(rate, 1) for rate in found] for contender, found in rates.items()},
        "items": counts.items,
        "dimensions": {name: getattr(settings, name) for name in ("length", "width", "blocks", "heads", "dropout")},
        "events_a_step": {"jagged": plan.settings.token_budget, "padded": int(settings.batch_users * clipped.mean())},
        "threads": torch.get_num_threads(),
        "rounds": rounds,
        "seconds": seconds,
    } | circumstances()


def _training(corpus: Corpus, split: Split, vocabulary: Vocabulary) -> Training:
    """The training events of every user, for the padded contenders."""
    blocks = list(split.allowed_histories(corpus, upto=TRAIN))
    items = np.concatenate([vocabulary.item_indexes(block.values["item"]) for block in blocks]).astype(np.int32)
    offsets = np.concatenate([[0], *(block.lengths for block in blocks)]).cumsum().astype(np.int64)
    return Training(items, offsets, np.full(len(items), TRAIN, np.uint8), len(vocabulary.items), "filtered")


def _take_turns(contenders: dict[str, Steps], *, rounds: int, seconds: float) -> dict[str, list[float]]:
    """Targets a second of each contender in each round."""
    for steps in contenders.values():
        for _ in range(_WARM_UP_STEPS):
            next(steps)
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(rounds):
        for name, steps in contenders.items():
            started, targets = time.perf_counter(), 0
            while time.perf_counter() - started < seconds:
                targets += next(steps)
            rates[name].append(targets / (time.perf_counter() - started))
        print(f"round {turn + 1}: " + ", ".join(f"{name} {rates[name][-1]:,.0f}/s" for name in rates), file=sys.stderr)
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", required=True, dest="name")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each contender in each round")
    parser.add_argument("--threads", type=int, help="of every contender; default: all cores")
    parser.add_argument("--layers", type=int, help="of every contender; default: SASRec's two")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--keep", action="store_true", help=f"append the object to {RESULTS.name}")
    options = parser.parse_args()
    if not (DATA / options.name / "events.parquet").exists():
        sys.exit(f"skipped: {DATA / options.name / 'events.parquet'} is not there")
    torch.set_num_threads(options.threads or len(os.sched_getaffinity(0)))
    found = measure(options.name, rounds=options.rounds, seconds=options.seconds, layers=options.layers)
    finish(found, options, RESULTS, module="benchmarks.pretrain")


if __name__ == "__main__":
    main()
