"""`spoor release promote`: serves a release as `ranker`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from spoor.commands import options
from spoor.commands.invocation import Invocation, pass_invocation
from spoor.console import say

if TYPE_CHECKING:
    from spoor.operations.releases import Promoted


@click.command()
@click.argument("name")
@click.option("--without-workers", is_flag=True, help="There is no stream: do not ask Kafka whether workers write it.")
@options.dry_run
@options.json
@pass_invocation
def promote(invocation: Invocation, name: str, without_workers: bool, dry_run: bool) -> None:
    """Serve a release as the service `ranker`.

    And as `aligned_ranker_SPACE`, which only ever serves releases whose vectors mean the same. Refused, with exit code
    1, while a running worker does not write it, or an embedding of it is missing or stale in the online store.
    The release that was served stays live and written: promoting it again is the way back.
    """
    from spoor.base.terminal import progress_bar
    from spoor.operations.releases import promote as run_promote

    settings = invocation.settings()
    say(f"comparing all embeddings of {name} with their users' histories in the online store")
    with progress_bar("users read", total=None) as show:
        asked = "none" if without_workers else "ask"
        result = run_promote(settings, name, workers=asked, dry_run=dry_run, progress=lambda users: show(advance=users))
    invocation.emit(result, _promoted_text(result))


def _promoted_text(result: Promoted) -> str:
    found = result.coverage
    complete = f"{found.users:,} users and {found.items:,} items, none missing or behind"
    if result.dry_run:
        return f"{result.release} could be promoted: {complete}"
    lines = [
        f"ranker is {result.release}" + ("" if result.changed else ", as before") + f": {complete}",
        f"{result.aligned_service} is {result.release}"
        + (f", {result.previous_aligned} before" if result.previous_aligned not in (None, result.release) else ""),
        *([f"{result.previous} stays live: promote it to go back"] if result.changed and result.previous else []),
    ]
    if result.previous_dimension not in (None, result.dimension):
        lines.append(f"vectors have {result.dimension} floats now, {result.previous_dimension} before")
    if result.cache_seconds is None:
        lines.append("readers see it when they restart: their registry cache never expires")
    elif result.cache_seconds:
        lines.append(f"readers may see the previous release for {result.cache_seconds} s: they cache Feast's registry")
    return "\n".join(lines)
