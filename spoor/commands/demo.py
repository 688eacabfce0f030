"""`spoor demo`: everything, end to end."""

from __future__ import annotations

from pathlib import Path

import click

from spoor.commands import options
from spoor.commands.invocation import Invocation, pass_invocation


@click.command()
@click.option("--data", type=options.LocalPath(), metavar="FILE", help="Your events instead of MovieLens-100K.")
@click.option("--items", type=options.LocalPath(), metavar="FILE", help="Titles and attributes of your items.")
@click.option(
    "--folder", type=options.LocalPath(), default="runs/demo", show_default=True, help="Everything goes here."
)
@options.json
@pass_invocation
def demo(invocation: Invocation, data: Path | None, items: Path | None, folder: Path) -> None:
    """Run everything end to end on real data.

    From Kafka to a ranker's feature row, with embedded servers; each step prints the command that does it.
    """
    from spoor.demo.run import run_demo

    result = run_demo(invocation.settings(), folder=folder, data=data, items=items)
    invocation.emit(result, f"report: {folder / 'report.html'}")
