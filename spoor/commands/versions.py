"""`spoor release promote`, `retire` and `compare`: which release is served, which are written, how two differ."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from spoor.commands.invocation import Invocation, confirm, dry_run_option, json_option, pass_invocation, yes_option
from spoor.console import say

if TYPE_CHECKING:
    from spoor.operations.compare import Comparison
    from spoor.operations.releases import Promoted, Retired


@click.command()
@click.argument("name")
@click.option("--without-workers", is_flag=True, help="There is no stream: do not ask Kafka whether workers write it.")
@dry_run_option
@json_option
@pass_invocation
def promote(invocation: Invocation, name: str, without_workers: bool, dry_run: bool) -> None:
    """Serve a release as the service `ranker`.

    And as `aligned_ranker_SPACE`, which only ever serves releases whose vectors mean the same. Refused, with exit code
    1, while a running worker does not write it, or somebody's embedding of it is missing or behind in the online store.
    The release that was served stays live and written: promoting it again is the way back.
    """
    from spoor.console import counter
    from spoor.operations.releases import promote as run_promote

    settings = invocation.settings()
    say(f"comparing all embeddings of {name} with their users' histories in the online store")
    with counter("users read") as advance:
        asked = "none" if without_workers else "ask"
        result = run_promote(settings, name, workers=asked, dry_run=dry_run, progress=advance)
    invocation.emit(result, _promoted_text(result))


@click.command()
@click.argument("name")
@click.option("--keep-topic", is_flag=True, help="Leave the embedding topic; then no broker is needed.")
@click.option("--force", is_flag=True, help="Break the services and views of others that use its views.")
@yes_option
@dry_run_option
@json_option
@pass_invocation
def retire(invocation: Invocation, name: str, keep_topic: bool, force: bool, yes: bool, dry_run: bool) -> None:
    """Remove a release's rows, views and topic.

    Its folder stays, marked as retired, and so do its rows in the offline log. Refused for the promoted release, for
    the last live one, and while other services or views of Feast's registry use its views: with --force they stay
    registered and fail at every read. Run again, it finishes what was interrupted.
    """
    from spoor.operations.releases import Retired, plan_retirement
    from spoor.operations.releases import retire as run_retire

    settings = invocation.settings()
    dependents = "break" if force else "refuse"
    plan = plan_retirement(settings, name, keep_topic=keep_topic, dependents=dependents)
    say(plan.text())
    if dry_run:
        invocation.emit(Retired(plan, (), 0, False, dry_run=True), "nothing was done")
        return
    if not yes:
        confirm(f"Retire {name} permanently?")
    result = run_retire(settings, name, keep_topic=keep_topic, dependents=dependents)
    invocation.emit(result, _retired_text(result))


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
@json_option
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
        lines.append(f"readers may go on as before for {result.cache_seconds} s: they cache Feast's registry")
    return "\n".join(lines)


def _retired_text(result: Retired) -> str:
    plan = result.plan
    topic = f", topic {plan.topic}" if result.topic_deleted else ""
    landed = f"; {result.landed_rows:,} rows of it are in the offline log now" if result.landed_rows else ""
    return f"{plan.release} is retired: removed {', '.join(result.removed) or 'no view'}{topic}, online rows{landed}"
