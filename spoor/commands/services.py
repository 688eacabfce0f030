"""`spoor services`: the local Kafka broker."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from spoor.commands import options
from spoor.commands.invocation import Invocation, pass_invocation
from spoor.console import say

if TYPE_CHECKING:
    from spoor.services.local import KafkaStatus


@click.command("up")
@options.json
@pass_invocation
def start_services(invocation: Invocation) -> None:
    """Start an embedded Kafka on 127.0.0.1.

    It keeps running after the command, until `spoor services down`.
    """
    from spoor.services import local

    settings = invocation.settings()
    say(f"starting Kafka {local.KAFKA_VERSION} on {settings.kafka.address}, data under {settings.state_folder}")
    status = local.up(settings)
    invocation.emit({"kafka": status}, _describe(status))


@click.command("down")
@options.json
@pass_invocation
def stop_services(invocation: Invocation) -> None:
    """Stop the embedded Kafka; its data stay."""
    from spoor.services import local

    stopped = local.down(invocation.settings())
    invocation.emit({"stopped": stopped}, "kafka: stopped" if stopped else "kafka: was not running")


@click.command("status")
@options.json
@pass_invocation
def show_services(invocation: Invocation) -> int:
    """Tell whether Kafka answers.

    Exit code 1 if it does not.
    """
    from spoor.services import local

    found = local.status(invocation.settings())
    invocation.emit({"kafka": found}, _describe(found))
    return 0 if found.answering else 1


def _describe(status: KafkaStatus) -> str:
    if not status.embedded:
        return f"kafka: {status.address} (configured), {'answers' if status.answering else 'does not answer'}"
    if not status.running:
        return f"kafka: not running (start it with `spoor services up`){'; ' + status.other if status.other else ''}"
    answers = "answers" if status.answering else status.other or f"does not answer, see {status.log}"
    if status.pid is None:
        return f"kafka: {status.address}, {answers}; folder {status.folder}; its process is not to be seen from here"
    return (
        f"kafka: {status.address}, {answers}; version {status.version}, process {status.pid}, "
        f"since {status.started_at}, folder {status.folder}"
    )
