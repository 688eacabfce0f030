"""`spoor dlq replay`: dead letters through the stream again."""

from __future__ import annotations

import click

from spoor.commands import options
from spoor.commands.invocation import Invocation, pass_invocation


@click.command("replay")
@click.option("--reason", help="Only those with this reason, e.g. in-the-future.")
@options.dry_run
@options.json
@pass_invocation
def replay_letters(invocation: Invocation, reason: str | None, dry_run: bool) -> int:
    """Send dead letters through the stream again.

    Run it once their cause is fixed; each letter is closed when it has been sent. Closed without being sent: events of
    a deleted user from before the deletion, and a letter that refers to a record which retention has deleted. Exit
    code 1 if letters stay open because the topic refuses their size.
    """
    from spoor.activity.lake import open_lake
    from spoor.broker.reach import require_broker
    from spoor.streaming.orders.replay import replay_dead_letters

    settings = invocation.settings()
    require_broker(settings.kafka)
    forgotten = open_lake(settings.lake).forgotten
    result = replay_dead_letters(settings, reason=reason, dry_run=dry_run, forgotten=forgotten)
    reasons = ", ".join(f"{name} {count:,}" for name, count in result.by_reason.items())
    verb = "would be replayed" if dry_run else "replayed"
    text = f"{result.replayed:,} dead letters {verb}" + (f": {reasons}" if reasons else "")
    if result.gone:
        text += f"; {result.gone:,} {'to be ' if dry_run else ''}closed without being sent, their records are gone"
    if result.too_large:
        text += f"; {result.too_large:,} stay open, `{settings.kafka.topic}` refuses their size (max.message.bytes)"
    if result.forgotten:
        closed = "would be closed" if dry_run else "closed"
        text += f"; {result.forgotten:,} {closed} without being sent: events of deleted users"
    invocation.emit(result, text)
    return 1 if result.too_large else 0
