"""`spoor evaluate`: how well a release ranks what it has never seen, beside plain rules."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from spoor.commands import options
from spoor.commands.invocation import Invocation, pass_invocation, release_folder

if TYPE_CHECKING:
    from spoor.encoder.data.split import Protocol

_FLOORS = "popularity,recent,markov,item-knn"


@click.command()
@click.option("--release", metavar="NAME", help="A release's folder, or its name. Default: the baselines alone.")
@click.option(
    "--data",
    type=options.LocalPath(),
    required=True,
    metavar="FILE",
    help="Events: a file or folder of Parquet, CSV or JSON lines.",
)
@click.option(
    "--protocol",
    type=click.Choice(["leave-one-out", "global-time"]),
    required=True,
    help="What is held out; must be that of the release.",
)
@click.option("--keep-seen", is_flag=True, help="A user's earlier items stay candidates. Default: filtered.")
@click.option(
    "--shuffle-ties",
    type=options.SEED,
    metavar="SEED",
    help="Order of a user's equal times. Default: as the release.",
)
@click.option(
    "--baselines", default=_FLOORS, show_default=True, metavar="NAMES", help="Also sasrec, sasrec-refit; or none."
)
@click.option(
    "--max-minutes", type=options.POSITIVE, default=60.0, show_default=True, help="Bounds the training of sasrec."
)
@click.option("--picture", type=options.LocalPath(), metavar="FILE", help="Write a PNG of Recall@10 by slice to FILE.")
@options.dry_run
@options.json
@pass_invocation
def evaluate(
    invocation: Invocation,
    release: str | None,
    data: Path,
    protocol: Protocol,
    keep_seen: bool,
    shuffle_ties: int | None,
    baselines: str,
    max_minutes: float,
    picture: Path | None,
    dry_run: bool,
) -> None:
    """Rank all items for held-out events.

    One table of Recall, NDCG and their 95 % intervals: the release, and rules that need no training. A release that was
    trained on other events or under another protocol is refused.
    """
    from spoor.base.files import atomic_write, refuse_foreign_file
    from spoor.encoder.baselines.evaluate_file import evaluate_file

    if picture is not None:
        refuse_foreign_file(picture, ours=lambda head: head.startswith(b"\x89PNG"), what="picture (PNG)")
    settings = invocation.settings()
    done = evaluate_file(
        data,
        protocol=protocol,
        events=settings.events,
        release=None if release is None else release_folder(release, settings.features.releases_folder),
        baselines=[] if baselines == "none" else [name.strip() for name in baselines.split(",")],
        seen="kept" if keep_seen else "filtered",
        shuffle_ties=shuffle_ties,
        max_minutes=max_minutes,
        dry_run=dry_run,
    )
    if done.report is not None and picture is not None:
        atomic_write(picture, done.report.picture())
    invocation.emit(done.to_json(), "nothing was done" if done.report is None else done.report.text())
