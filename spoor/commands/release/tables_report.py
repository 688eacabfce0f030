"""`spoor release tables report`: fill, collisions and packing errors of a release's item tables."""

from __future__ import annotations

import time
from pathlib import Path

import click

from spoor.commands import options
from spoor.commands.invocation import Invocation, pass_invocation, release_folder


@click.command("report")
@click.argument("name")
@click.option(
    "--data", type=options.EXISTING, metavar="FILE", help="Also: how many of these events have an unknown item."
)
@options.json
@pass_invocation
def show_tables(invocation: Invocation, name: str, data: Path | None) -> None:
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
