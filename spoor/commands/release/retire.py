"""`spoor release retire`: removes a release's rows, views and topic."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from spoor.commands import options
from spoor.commands.invocation import Invocation, confirm, pass_invocation
from spoor.console import say

if TYPE_CHECKING:
    from spoor.operations.releases import Retired


@click.command()
@click.argument("name")
@click.option("--keep-topic", is_flag=True, help="Leave the embedding topic; then no broker is needed.")
@click.option("--force", is_flag=True, help="Break the services and views of others that use its views.")
@options.yes
@options.dry_run
@options.json
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


def _retired_text(result: Retired) -> str:
    plan = result.plan
    topic = f", topic {plan.topic}" if result.topic_deleted else ""
    landed = f"; {result.landed_rows:,} rows of it are in the offline log now" if result.landed_rows else ""
    return f"{plan.release} is retired: removed {', '.join(result.removed) or 'no view'}{topic}, online rows{landed}"
