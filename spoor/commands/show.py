"""`spoor show`: what the store holds of one user."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from spoor.commands import options
from spoor.commands.invocation import Invocation, pass_invocation, time_text

if TYPE_CHECKING:
    from spoor.operations.show import ShownUser


@click.command("user")
@click.argument("user_id", metavar="ID")
@click.option("--events", "count", type=options.COUNT, default=20, show_default=True, help="Newest events shown.")
@click.option("--nearest", type=options.COUNT, default=5, show_default=True, help="Items nearest to each vector.")
@options.json
@pass_invocation
def user(invocation: Invocation, user_id: str, count: int, nearest: int) -> int:
    """Show a user's history and embeddings.

    The newest events, and each release's vector norm, version, age and nearest items (by the cosine with the item
    vectors in the store); --json prints every event. Exit code 1 for a user without history.
    """
    from spoor.operations.show import show_user

    shown = show_user(invocation.settings(), user_id, nearest=nearest)
    invocation.emit(shown, _text(shown, count))
    return 0 if shown.found else 1


def _text(shown: ShownUser, count: int) -> str:
    through = shown.forgotten_through_ms
    forgotten = "" if through is None else f", forgotten through {time_text(through)}"
    if not shown.found:
        return f"user {shown.user_id}: no history{forgotten}; a ranker reads nulls, `user_vectors` zeros"
    lines = [f"user {shown.user_id}: {len(shown.events)} events, revision {shown.revision}{forgotten}"]
    lines += [
        f"  {time_text(event.timestamp)}  {event.action:<12}  {event.item}  ({event.surface})"
        for event in shown.events[:count]
    ]
    if len(shown.events) > count:
        lines.append(f"  … and {len(shown.events) - count} older")
    for row in shown.embeddings:
        behind = f", {row.behind} revisions behind" if row.behind else ""
        lines.append(
            f"{row.release}: {row.dimension} dimensions, norm {row.norm:.4f}, {row.events_used} events used{behind}, "
            f"computed {time_text(row.computed_at_ms)} ({row.age_seconds:,.0f} s ago)"
        )
        if row.nearest:
            lines.append("  nearest: " + ", ".join(f"{near.item} ({near.cosine:.3f})" for near in row.nearest))
    if not shown.embeddings:
        lines.append("no embedding")
    if shown.unknown_names:
        lines.append(
            f"{shown.unknown_names} names are shown as `#` and their hash: neither the settings, nor a release, nor "
            "the user's events in the lake have them (`spoor archive` brings the events there)"
        )
    return "\n".join(lines)
