"""`spoor release compare`: neighbours in common, and the rotation between two releases."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from spoor.commands import options
from spoor.commands.invocation import Invocation, pass_invocation
from spoor.console import say

if TYPE_CHECKING:
    from spoor.operations.compare import Comparison


@click.command()
@click.argument("old")
@click.argument("new")
@click.option(
    "--sample", type=click.IntRange(min=2, max=10_000), default=2_000, show_default=True, help="Most users, and items."
)
@click.option(
    "--neighbours", type=click.IntRange(min=1, max=10_000), default=10, show_default=True, help="Nearest of each."
)
@click.option("--aligned", metavar="NAME", help="Also write a new release: NEW, turned into OLD's space.")
@click.option("--dry-run", is_flag=True, help="Compare, but store nothing.")
@options.json
@pass_invocation
def compare(
    invocation: Invocation, old: str, new: str, sample: int, neighbours: int, aligned: str | None, dry_run: bool
) -> None:
    """Compare two releases.

    On a sample of the online histories and of the items that both know: how many nearest neighbours are the same, and
    how near a rotation brings NEW's vectors to OLD's. That rotation is stored in NEW's folder.
    """
    from spoor.operations.compare import compare_releases

    settings = invocation.settings()
    say(f"{old} and {new} on at most {sample:,} users of the online store and {sample:,} items")
    result = compare_releases(
        settings, old, new, sample=sample, neighbours=neighbours, aligned=aligned, dry_run=dry_run
    )
    invocation.emit(result, _comparison_text(result))


def _comparison_text(result: Comparison) -> str:
    report = result.report
    lines = []
    for what, overlap, fit in (("users", report.users, report.user_fit), ("items", report.items, report.item_fit)):
        if overlap is None:
            lines.append(f"{what}: too few for neighbours")
        else:
            lines.append(
                f"{overlap.vectors:,} {what}: {overlap.share:.1%} of {overlap.neighbours} neighbours in common "
                f"({overlap.by_chance:.1%} by chance)"
            )
        if fit is not None:
            lines.append(
                f"  of {fit.vectors:,} held out: cosine with the old vector {fit.cosine_before:.3f}, after the "
                f"rotation {fit.cosine_after:.3f}; residual {fit.residual:.3f}"
            )
    if report.user_fit is None and report.item_fit is None:
        lines.append("no rotation: the dimensions differ, or there is too little to hold out")
    lines.append(f"the rotation is in the folder of {report.new}" if result.stored else "nothing was stored")
    if result.aligned is not None:
        lines.append(f"{result.aligned} is {report.new} in the space of {report.old}: apply, backfill and promote it")
    return "\n".join(lines)
