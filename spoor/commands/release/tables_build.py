"""`spoor release tables build`: a new release with packed item tables."""

from __future__ import annotations

from typing import Any

import click

from spoor.commands import options
from spoor.commands.invocation import Invocation, pass_invocation, release_folder
from spoor.commands.release.show import release_json
from spoor.console import say


@click.command("build")
@click.argument("name")
@click.argument("out")
@click.option(
    "--layout", type=click.Choice(["int4", "int8", "fp16"]), default="int4", show_default=True, help="Of a row."
)
@click.option("--overwrite", is_flag=True, help="Replace a release of the name OUT.")
@options.dry_run
@options.json
@pass_invocation
def build_tables(invocation: Invocation, name: str, out: str, layout: Any, overwrite: bool, dry_run: bool) -> None:
    """Pack the tables of a release.

    OUT is a new release: NAME with packed tables. They are served from a mapped file, so memory grows with the
    items that are asked for. NAME stays as it is; OUT cannot be trained further.
    """
    from spoor.base.terminal import progress_bar
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
    with progress_bar("packing", total=plan.rows) as show:
        info, record = pack_release(plan, progress=lambda rows: show(completed=rows))
    errors = ", ".join(f"{error:.3%}" for error in record.errors)
    invocation.emit(
        shown | {"release": release_json(info), "errors": record.errors},
        f"{info.folder}: relative error of each table {errors}",
    )
