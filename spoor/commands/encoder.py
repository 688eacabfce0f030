"""`spoor pretrain` and `spoor release`: models and their folders."""

from __future__ import annotations

import dataclasses
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from spoor.base.errors import UsageError
from spoor.base.numbers import number_text
from spoor.commands.invocation import (
    NOT_NEGATIVE,
    SEED,
    TIME,
    Invocation,
    LocalPath,
    dry_run_option,
    json_option,
    pass_invocation,
    release_folder,
    time_text,
)
from spoor.console import say

if TYPE_CHECKING:
    from spoor.encoder.release.folder import ReleaseInfo

_EXISTING = LocalPath(exists=True)  # a file, or a folder of them
_FOLDER = LocalPath(file_okay=False)


@click.command()
@click.option("--data", type=_EXISTING, metavar="FILE", help="Train on this event file. Default: the lake.")
@click.option("--out", type=_FOLDER, metavar="FOLDER", help="Folder of the new release; its last part is the name.")
@click.option("--release", metavar="NAME", help="Name of the new release, e.g. base-1, in features.releases_folder.")
@click.option(
    "--protocol",
    type=click.Choice(["leave-one-out", "global-time", "newest"]),
    default="newest",
    show_default=True,
    help="What is held out; newest holds out nothing for tests.",
)
@click.option("--seed", type=SEED, help="In place of pretrain.seed.")
@click.option("--shuffle-ties", type=SEED, metavar="SEED", help="Order a user's equal times anew, from this seed.")
@click.option("--max-minutes", type=NOT_NEGATIVE, help="In place of pretrain.max_minutes.")
@click.option("--from", "warm_start", metavar="RELEASE", help="Begin with the weights of an earlier release.")
@click.option("--until", "until_ms", type=TIME, help="Train on events before this only. Default: on all.")
@click.option("--resume", is_flag=True, help="Go on from the checkpoint of a killed run.")
@click.option("--overwrite", is_flag=True, help="Replace a release of the same name.")
@dry_run_option
@json_option
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
    from spoor.activity.lake import Lake
    from spoor.base.release_names import check_release_name
    from spoor.encoder.release.folder import short_histories
    from spoor.encoder.training.run import run_pretrain

    if release is not None:
        check_release_name(release)
    settings = invocation.settings()
    flags = {"seed": seed, "max_minutes": max_minutes}
    given = {name: value for name, value in flags.items() if value is not None}
    releases = settings.features.releases_folder
    result = run_pretrain(
        data or Lake(settings.lake.folder, buckets=settings.lake.buckets),
        out=out or releases / str(release),
        settings=dataclasses.replace(settings.pretrain, **given),
        events=settings.events,
        protocol=protocol,
        shuffle_ties=shuffle_ties,
        until_ms=until_ms,
        warm_start=release_folder(warm_start, releases) if warm_start else None,
        fixed=settings.given("pretrain"),
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
    shown = {"release": _json(result.release), "metrics": result.metrics}
    invocation.emit(shown, f"{result.release.folder}: {metrics}")


@click.group()
def release() -> None:
    """Releases: frozen models by name."""


@release.command("list")
@json_option
@pass_invocation
def list_all(invocation: Invocation) -> None:
    """Show the releases in the folder."""
    from spoor.encoder.release.folder import list_releases
    from spoor.feature_repo.releases import promotion

    folder = invocation.settings().features.releases_folder
    found, switched = list_releases(folder), promotion(folder)
    promoted = None if switched is None else switched.release
    lines = [
        f"{info.name}  {info.dimension} dimensions  newest {info.max_events} events  "
        f"trained through {time_text(info.trained_through_ms)}"
        + (f"  in the space of {info.space}" if info.space != info.name else "")
        + (f"  {info.ended.note}" if info.ended and info.ended.note else "")
        + ("  promoted" if info.name == promoted else "")
        + ("  retired" if info.retired else "")
        for info in found
    ]
    shown = [_json(info) | {"promoted": info.name == promoted} for info in found]
    invocation.emit({"releases": shown}, "\n".join(lines) or f"no release in {folder}")


@release.command()
@click.argument("name")
@json_option
@pass_invocation
def show(invocation: Invocation, name: str) -> None:
    """Check and show one release.

    Every file is compared with its checksum first.
    """
    from spoor.encoder.release.alignment import load_alignment
    from spoor.encoder.release.folder import load_release

    loaded = load_release(invocation.settings().features.releases_folder / name)
    info = loaded.info
    aligned = load_alignment(info.folder)
    if info.packed is not None:
        from spoor.encoder.release.packed_tables import open_packed

        open_packed(info, known_items=len(loaded.vocabulary.items)).verify()
    numbers = {key: value for key, value in loaded.metrics.items() if isinstance(value, int | float)}
    lines = [
        f"{info.name}  ({info.folder})",
        f"dimension           {info.dimension}",
        f"events per user     {info.max_events}",
        f"items known         {len(loaded.vocabulary.item_ids):,}",
        *([f"item tables         {info.packed['layout']}, of {info.packed['of']}"] if info.packed else []),
        *([f"vectors             of {info.aligned['of']}, in the space of {info.space}"] if info.aligned else []),
        *([f"rotation            into the space of {aligned.to}"] if aligned else []),
        f"trained through     {time_text(info.trained_through_ms)}",
        f"created             {info.created_at}",
        f"data fingerprint    {info.data_fingerprint}",
        *([f"training            {info.ended.note}"] if info.ended and info.ended.note else []),
        *(f"{key:<19} {number_text(value, digits=6)}" for key, value in numbers.items()),
        "files               whole (checksums match)",
    ]
    shown = {
        "release": _json(info),
        "items": len(loaded.vocabulary.item_ids),
        "metrics": loaded.metrics,
        "alignment": None if aligned is None else aligned.report,
    }
    invocation.emit(shown, "\n".join(lines))


@release.group()
def tables() -> None:
    """Item tables: pack them, look at them."""


@tables.command()
@click.argument("name")
@click.argument("out")
@click.option(
    "--layout", type=click.Choice(["int4", "int8", "fp16"]), default="int4", show_default=True, help="Of a row."
)
@click.option("--overwrite", is_flag=True, help="Replace a release of the name OUT.")
@dry_run_option
@json_option
@pass_invocation
def build(invocation: Invocation, name: str, out: str, layout: Any, overwrite: bool, dry_run: bool) -> None:
    """Pack the tables of a release.

    OUT is a new release: NAME with packed tables. They are served from a mapped file, so memory grows with the
    items that are asked for. NAME stays as it is; OUT cannot be trained further.
    """
    from spoor.encoder.release.pack import pack_release, plan_packing

    releases = invocation.settings().features.releases_folder
    plan = plan_packing(
        release_folder(name, releases), out=release_folder(out, releases), layout=layout, overwrite=overwrite
    )
    say(plan.text())
    shown: dict[str, Any] = {"row_bytes": plan.bytes_by_layout, "bytes": plan.bytes, "dry_run": dry_run}
    if dry_run:
        invocation.emit(shown, "nothing was done")
        return
    with click.progressbar(length=plan.rows, label="packing", file=sys.stderr, hidden=not sys.stderr.isatty()) as bar:
        info, record = pack_release(plan, progress=lambda rows: bar.update(rows - bar.pos))
    errors = ", ".join(f"{error:.3%}" for error in record.errors)
    invocation.emit(
        shown | {"release": _json(info), "errors": record.errors},
        f"{info.folder}: relative error of each table {errors}",
    )


@tables.command()
@click.argument("name")
@click.option("--data", type=_EXISTING, metavar="FILE", help="Also: how many of these events have an unknown item.")
@json_option
@pass_invocation
def report(invocation: Invocation, name: str, data: Path | None) -> None:
    """Show what a release's tables are like.

    Of each table: fill, collisions and packing error. Shares are of the items that the release knows. Items that
    collide in every table have one embedding.
    """
    from spoor.activity.sources.event_files import read_events
    from spoor.encoder.release.pack import report_tables

    settings = invocation.settings()
    items = None
    if data is not None:
        items = read_events(data, settings.events, now_ms=time.time_ns() // 1_000_000)["item_id"].to_pylist()
    found = report_tables(release_folder(name, settings.features.releases_folder), event_items=items)
    lines = [
        f"{found.release}: {found.items:,} items, {found.layout}, {found.row_bytes} bytes a row; "
        f"{found.confused:.3%} of the items collide in every table",
        f"{'table':>5} {'rows':>12} {'fill':>9} {'colliding':>10} {'error':>9}",
    ]
    if found.unseen is not None:
        lines.insert(1, f"{found.unseen:.3%} of the events have an item that the release does not know")
    for table in found.tables:
        error = "-" if table.error is None else f"{table.error:.3%}"
        lines.append(f"{table.table:>5} {table.rows:>12,} {table.fill:>9.3%} {table.colliding:>10.3%} {error:>9}")
    invocation.emit(found, "\n".join(lines))


def _json(info: ReleaseInfo) -> dict[str, Any]:
    trained_through = datetime.fromtimestamp(info.trained_through_ms / 1000, UTC).isoformat(timespec="milliseconds")
    described = {"folder": str(info.folder), "trained_through": trained_through, "space": info.space}
    return dataclasses.asdict(info) | described
