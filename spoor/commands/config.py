"""`spoor config`: the settings in force."""

from __future__ import annotations

import click

from spoor.commands import options
from spoor.commands.invocation import Invocation, pass_invocation


@click.command("show")
@options.json
@pass_invocation
def show_config(invocation: Invocation) -> None:
    """Print every setting and its origin."""
    rows = invocation.settings().shown()
    values = {key: {"value": value, "origin": origin} for key, value, origin in rows}
    width = max(len(key) for key, _, _ in rows)
    text = "\n".join(f"{key:<{width}}  {_text(value)}  ({origin})" for key, value, origin in rows)
    invocation.emit({"settings": values}, text)


def _text(value: object) -> str:
    if isinstance(value, tuple):
        return ",".join(value) or '""'
    return str(value) if str(value) else '""'
