"""`spoor pretrain` and `spoor release`: models and their folders."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from spoor.commands.invocation import Invocation, Time, dry_run_option, json_option, pass_invocation, time_text

if TYPE_CHECKING:
    from encoder.release import ReleaseInfo


@click.command()
@click.option("--release", required=True, metavar="NAME", help="Name of the new release, e.g. base-1.")
@click.option("--until", "until_ms", type=Time(), help="Train on events before this only. Default: all of the lake.")
@click.option("--resume", is_flag=True, help="Go on from the checkpoint of a killed run.")
@click.option("--overwrite", is_flag=True, help="Replace a release of the same name.")
@dry_run_option
@json_option
@pass_invocation
def pretrain(
    invocation: Invocation, release: str, until_ms: int | None, resume: bool, overwrite: bool, dry_run: bool
) -> None:
    """Train an encoder and write a release.

    It reads the lake's events; the result is a folder under features.releases_folder.
    """
    from activity.lake import Lake
    from encoder.pretrain import run_pretrain

    settings = invocation.settings()
    result = run_pretrain(
        Lake(settings.lake.folder, buckets=settings.lake.buckets),
        out=settings.features.releases_folder / release,
        settings=settings.pretrain,
        until_ms=until_ms,
        resume=resume,
        dry_run=dry_run,
        overwrite=overwrite,
    )
    if result.release is None:
        invocation.emit({"plan": result.plan, "dry_run": True}, "nothing was done")
        return
    metrics = ", ".join(f"{name} {value:.4g}" for name, value in result.metrics.items())
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
    from encoder.release import list_releases

    folder = invocation.settings().features.releases_folder
    found = list_releases(folder)
    lines = [
        f"{info.name}  {info.dimension} dimensions  newest {info.max_events} events  "
        f"trained through {time_text(info.trained_through_ms)}"
        for info in found
    ]
    invocation.emit({"releases": [_json(info) for info in found]}, "\n".join(lines) or f"no release in {folder}")


@release.command()
@click.argument("name")
@json_option
@pass_invocation
def show(invocation: Invocation, name: str) -> None:
    """Check and show one release.

    Every file is compared with its checksum first.
    """
    from encoder.release import load_release

    loaded = load_release(invocation.settings().features.releases_folder / name)
    info = loaded.info
    numbers = {key: value for key, value in loaded.metrics.items() if isinstance(value, int | float)}
    lines = [
        f"{info.name}  ({info.folder})",
        f"dimension           {info.dimension}",
        f"events per user     {info.max_events}",
        f"items known         {len(loaded.vocabulary.item_ids):,}",
        f"trained through     {time_text(info.trained_through_ms)}",
        f"created             {info.created_at}",
        f"data fingerprint    {info.data_fingerprint}",
        *(f"{key:<19} {value:.6g}" for key, value in numbers.items()),
        "files               whole (checksums match)",
    ]
    shown = {"release": _json(info), "items": len(loaded.vocabulary.item_ids), "metrics": loaded.metrics}
    invocation.emit(shown, "\n".join(lines))


def _json(info: ReleaseInfo) -> dict[str, Any]:
    trained_through = datetime.fromtimestamp(info.trained_through_ms / 1000, UTC).isoformat(timespec="milliseconds")
    return asdict(info) | {"folder": str(info.folder), "trained_through": trained_through}
