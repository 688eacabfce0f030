"""`spoor release list`: the releases in the folder."""

from __future__ import annotations

import click

from spoor.commands import options
from spoor.commands.invocation import Invocation, pass_invocation, time_text
from spoor.commands.release.show import release_json


@click.command("list")
@options.json
@pass_invocation
def list_releases(invocation: Invocation) -> None:
    """Show the releases in the folder."""
    from spoor.encoder.release import info as release_infos
    from spoor.feature_repo.releases import promotion

    folder = invocation.settings().features.releases_folder
    found, switched = release_infos.list_releases(folder), promotion(folder)
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
    shown = [release_json(info) | {"promoted": info.name == promoted} for info in found]
    invocation.emit({"releases": shown}, "\n".join(lines) or f"no release in {folder}")
