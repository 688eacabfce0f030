"""`spoor merge-users`: moves an anonymous id's events to a login."""

from __future__ import annotations

import click

from spoor.commands import options
from spoor.commands.batch.forget import say_kept
from spoor.commands.invocation import Invocation, confirm, pass_invocation, time_text


@click.command("merge-users")
@click.option("--from", "old", required=True, metavar="ID", help="The anonymous id; it is forgotten.")
@click.option("--to", "new", required=True, metavar="ID", help="The login, which gets its events.")
@options.yes
@options.dry_run
@options.json
@pass_invocation
def merge_users(invocation: Invocation, old: str, new: str, yes: bool, dry_run: bool) -> None:
    """Move one user's events to another id.

    For users who did something before they logged in: the histories merge, online and in the lake, and the old id is
    forgotten through the newest moved event. Run `spoor archive` first: what moves is what the lake holds.
    """
    from spoor.batch.forget.merge_users import run_merge_users

    settings = invocation.settings()
    if not (dry_run or yes):
        confirm("Move the events, and delete the first user permanently?")
    result = run_merge_users(settings, old, new, dry_run=dry_run)
    say_kept(result.kept)
    verb = "to move; the old id to be forgotten" if dry_run else "moved; the old id is forgotten"
    text = f"{result.job}: {result.events:,} events {verb} through {time_text(result.forgotten_through_ms)}"
    invocation.emit(result, text)
