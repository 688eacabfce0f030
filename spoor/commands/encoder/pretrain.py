"""`spoor pretrain`: trains an encoder and writes a release."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import click

from spoor.base.errors import UsageError
from spoor.base.numbers import number_text
from spoor.commands import options
from spoor.commands.invocation import Invocation, pass_invocation, release_folder
from spoor.commands.release.show import release_json
from spoor.console import say


@click.command()
@click.option("--data", type=options.EXISTING, metavar="FILE", help="Train on this event file. Default: the lake.")
@click.option(
    "--out",
    type=options.LocalPath(file_okay=False),
    metavar="FOLDER",
    help="Folder of the new release; its last part is the name.",
)
@click.option("--release", metavar="NAME", help="Name of the new release, e.g. base-1, in features.releases_folder.")
@click.option(
    "--protocol",
    type=click.Choice(["leave-one-out", "global-time", "newest"]),
    default="newest",
    show_default=True,
    help="What is held out; newest holds out nothing for tests.",
)
@click.option("--seed", type=options.SEED, help="In place of pretrain.seed.")
@click.option("--shuffle-ties", type=options.SEED, metavar="SEED", help="Shuffle a user's equal times, with this seed.")
@click.option("--max-minutes", type=options.NOT_NEGATIVE, help="In place of pretrain.max_minutes.")
@click.option("--from", "warm_start", metavar="RELEASE", help="Begin with the weights of an earlier release.")
@click.option("--until", "until_ms", type=options.TIME, help="Train on events before this only. Default: on all.")
@click.option("--resume", is_flag=True, help="Go on from the checkpoint of a killed run.")
@click.option("--overwrite", is_flag=True, help="Replace a release of the same name.")
@options.dry_run
@options.json
@pass_invocation
def pretrain(
    invocation: Invocation,
    data: Path | None,
    out: Path | None,
    release: str | None,
    protocol: Any,
    seed: int | None,
    shuffle_ties: int | None,
    max_minutes: float | None,
    warm_start: str | None,
    until_ms: int | None,
    resume: bool,
    overwrite: bool,
    dry_run: bool,
) -> None:
    """Train an encoder and write a release.

    It reads the lake's events, or a file of events; the result is a folder. Several processes share the work when
    torchrun starts them.
    """
    if (out is None) == (release is None):
        raise UsageError("give either --out or --release", hint="--out FOLDER, or --release NAME for the usual folder")
    if shuffle_ties is not None and data is None:
        raise UsageError("--shuffle-ties needs --data", hint="the order of the lake's events stands")
    from spoor.activity.lake import open_lake
    from spoor.base.release_names import check_release_name
    from spoor.encoder.release.info import short_histories
    from spoor.encoder.training.plan import PretrainRequest
    from spoor.encoder.training.run import run_pretrain

    if release is not None:
        check_release_name(release)
    settings = invocation.settings()
    flags = {"seed": seed, "max_minutes": max_minutes}
    given = {name: value for name, value in flags.items() if value is not None}
    releases = settings.features.releases_folder
    result = run_pretrain(
        PretrainRequest(
            data or open_lake(settings.lake),
            out=out or releases / str(release),
            settings=dataclasses.replace(settings.pretrain, **given),
            events=settings.events,
            protocol=protocol,
            shuffle_ties=shuffle_ties,
            until_ms=until_ms,
            warm_start=release_folder(warm_start, releases) if warm_start else None,
            fixed=settings.given("pretrain"),
        ),
        resume=resume,
        dry_run=dry_run,
        overwrite=overwrite,
    )
    if result.release is None:
        invocation.emit({"plan": result.plan, "dry_run": dry_run}, "nothing was done")
        return
    if warning := short_histories([result.release], kept=settings.history.max_events):
        say(warning)
    metrics = ", ".join(f"{name} {number_text(value)}" for name, value in result.metrics.items())
    shown = {"release": release_json(result.release), "metrics": result.metrics}
    invocation.emit(shown, f"{result.release.folder}: {metrics}")
