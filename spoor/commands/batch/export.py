"""`spoor export`: vectors by raw id, as Parquet."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from spoor.commands import options
from spoor.commands.invocation import Invocation, pass_invocation


@click.command()
@options.release
@click.option("--users", "what", flag_value="users", help="Users alone. Default: users and items.")
@click.option("--items", "what", flag_value="items", help="Items alone.")
@click.option("--to", required=True, type=options.LocalPath(), metavar="FOLDER", help="Where to write.")
@click.option("--overwrite", is_flag=True, help="Replace an earlier export in that folder.")
@options.dry_run
@options.json
@pass_invocation
def export(
    invocation: Invocation,
    releases: tuple[str, ...],
    what: Literal["users", "items"] | None,
    to: Path,
    overwrite: bool,
    dry_run: bool,
) -> None:
    """Write vectors by raw id to Parquet.

    Everybody's embedding as the store holds it, with revision and model version, and every item's vector: Parquet with
    fixed-size lists of float32, ready for an index of nearest neighbours.
    """
    from spoor.batch.users.export import run_export

    result = run_export(
        invocation.settings(), to, releases=releases, what=what or "both", overwrite=overwrite, dry_run=dry_run
    )
    counts = "; ".join(f"{r.release}: {r.users:,} users, {r.items:,} items" for r in result.releases)
    names = ", ".join(r.release for r in result.releases)
    text = (
        f"{names}: {result.listed:,} users listed, {sum(r.items for r in result.releases):,} item vectors to write"
        if dry_run
        else f"{counts} to {to} in {result.seconds:.1f} s, {result.files:,} files"
    )
    if result.without_embedding:
        text += f"; {result.without_embedding:,} times a listed user has no embedding"
    invocation.emit(result, text)
