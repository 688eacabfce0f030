"""`spoor dlq list`: the records that the workers refused."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from spoor.commands import options
from spoor.commands.invocation import Invocation, pass_invocation, time_text

if TYPE_CHECKING:
    from spoor.streaming.records.dead_letters import DeadLetter


_SHOWN_BYTES = 60  # of a dead letter's original value


@click.command("list")
@click.option("--reason", help="Only those with this reason, e.g. not-json.")
@click.option("--limit", type=options.COUNT, help="Only the newest N.")
@options.json
@pass_invocation
def list_letters(invocation: Invocation, reason: str | None, limit: int | None) -> None:
    """List refused records with their reasons."""
    from spoor.broker.reach import require_broker
    from spoor.streaming.orders.replay import list_dead_letters

    settings = invocation.settings()
    require_broker(settings.kafka)
    letters = list_dead_letters(settings, limit=limit, reason=reason)
    lines = [_line(letter) for letter in letters]
    invocation.emit({"dead_letters": [_json(letter) for letter in letters]}, "\n".join(lines) or "no dead letters")


def _line(letter: DeadLetter) -> str:
    value = "record deleted" if letter.is_gone else repr((letter.value or b"")[:_SHOWN_BYTES])
    if letter.is_reference:
        value += f" ({letter.size:,} bytes, by reference)"
    return (
        f"{letter.origin}  {time_text(letter.append_time_ms)}  {letter.reason}  "
        f"{letter.field}: found {letter.found}, expected {letter.expected}  {value}"
    )


def _json(letter: DeadLetter) -> dict[str, Any]:
    """The dead letter with the original bytes in base64, those of a reference too if they are still there."""

    from spoor.streaming.records.dead_letters import encode_dead_letter

    shown = json.loads(encode_dead_letter(replace(letter, size=None, sha256=None))[1])
    if letter.is_reference:
        shown |= {"size": letter.size, "sha256": letter.sha256, "gone": letter.is_gone}
    return shown
