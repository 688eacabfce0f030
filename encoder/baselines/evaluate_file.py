"""Runs `spoor evaluate`: evaluates a release and baselines on an event file into one report."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spoor.activity.settings import EventSettings
from spoor.base.errors import DataError, UsageError
from spoor.encoder.baselines.by_name import make_baselines
from spoor.encoder.data.batches import build_vocabulary
from spoor.encoder.data.corpus import Corpus
from spoor.encoder.data.split import Protocol, Split, check_split, make_split
from spoor.encoder.evaluation.questions import Seen
from spoor.encoder.evaluation.release_scorer import TRANSFORMER, release_scorers
from spoor.encoder.evaluation.report import EvaluationReport
from spoor.encoder.evaluation.run import evaluate_scorers
from spoor.encoder.evaluation.scoring import Scorer
from spoor.encoder.release.folder import Release, load_release


@dataclass(frozen=True)
class FileEvaluation:
    """`report` is None after a dry run."""

    plan: list[str]
    report: EvaluationReport | None

    def to_json(self) -> dict[str, Any]:
        """The report; if the release has a mixture, also the row of the user vector alone under `transformer`."""
        if self.report is None:
            return {"plan": self.plan, "dry_run": True}
        shown = self.report.to_json()
        alone = {TRANSFORMER: shown["rows"][TRANSFORMER]} if TRANSFORMER in shown["rows"] else {}
        return shown | alone


def evaluate_file(
    data: Path,
    *,
    protocol: Protocol,
    events: EventSettings,
    release: Path | None = None,
    baselines: Sequence[str] = (),
    seen: Seen = "filtered",
    shuffle_ties: int | None = None,
    max_minutes: float = 60.0,
    seed: int = 0,
    dry_run: bool = False,
) -> FileEvaluation:
    """Evaluates on the test events of `data`: first the release's rows, then those of the baselines.

    `shuffle_ties`: None takes the release's value. `max_minutes` limits the training of SASRec. Prints its plan on
    stderr. Raises UsageError for unknown names and unreadable files, DataError if the release was trained on another
    split or other events, or there is no question.
    """
    loaded = load_release(release) if release is not None else None
    if loaded is not None:
        shuffle_ties = _shuffled_like(loaded, shuffle_ties)
    scorers: dict[str, Scorer] = release_scorers(loaded) if loaded is not None else {}
    scorers |= make_baselines(baselines, max_minutes=max_minutes, seed=seed)
    if not scorers:
        raise UsageError("there is nothing to evaluate", hint="give --release NAME, or leave --baselines out")
    with tempfile.TemporaryDirectory(prefix="spoor-evaluate-") as folder:
        corpus = Corpus.build(data, Path(folder) / "corpus", events=events, shuffle_ties=shuffle_ties)
        split = make_split(corpus, protocol)
        if loaded is not None:
            check_split(loaded.info.split or {}, split, release=loaded.info.name)
        plan = _plan(corpus, split, loaded, list(scorers), seen, shuffle_ties)
        for line in plan:
            print(line, file=sys.stderr)
        if dry_run:
            return FileEvaluation(plan, None)
        vocabulary = loaded.vocabulary if loaded is not None else build_vocabulary(corpus, split)
        return FileEvaluation(plan, evaluate_scorers(corpus, split, vocabulary, scorers, seen=seen, seed=seed))


def _shuffled_like(release: Release, shuffle_ties: int | None) -> int | None:
    if release.info.split is None:
        raise DataError(
            f"release `{release.info.name}` does not say which events it was trained on, so it may have seen the test",
            hint="train one with `spoor pretrain --data FILE --out FOLDER --protocol leave-one-out`",
        )
    return release.info.split["shuffle_ties"] if shuffle_ties is None else shuffle_ties


def _plan(
    corpus: Corpus, split: Split, release: Release | None, names: list[str], seen: Seen, shuffle_ties: int | None
) -> list[str]:
    ties = "in the published order" if shuffle_ties is None else f"shuffled by the seed {shuffle_ties}"
    trained = [f"release: {release.info.folder}, split {split.digest[:12]} as trained"] if release is not None else []
    return [
        f"events: {corpus.events:,} of {corpus.users:,} users over {len(corpus.item_ids):,} items, ties {ties}",
        f"protocol: {split.protocol}, seen items {seen}",
        *trained,
        f"rows: {', '.join(names)}",
    ]
