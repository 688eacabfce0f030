"""`spoor services`: the local Kafka broker."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from spoor.commands.invocation import Invocation, json_option, pass_invocation

if TYPE_CHECKING:
    from spoor.services.local import KafkaStatus


@click.group()
def services() -> None:
    """Start, stop and look at the local Kafka."""


@services.command()
@json_option
@pass_invocation
def up(invocation: Invocation) -> None:
    """Start an embedded Kafka on 127.0.0.1.

    It goes on after the command, until `spoor services down`.
    """
    from spoor.console import say
    from spoor.services import local as services

    settings = invocation.settings()
    say(f"starting Kafka {services.KAFKA_VERSION} on {settings.kafka.address}, data under {settings.state_folder}")
    status = services.up(settings)
    invocation.emit({"kafka": status}, _describe(status))


@services.command()
@json_option
@pass_invocation
def down(invocation: Invocation) -> None:
    """Stop the embedded Kafka; its data stay."""
    from spoor.services import local as services

    stopped = services.down(invocation.settings())
    invocation.emit({"stopped": stopped}, "kafka: stopped" if stopped else "kafka: was not running")


@services.command()
@json_option
@click.pass_context
def status(ctx: click.Context) -> None:
    """Tell whether Kafka answers.

    Exit code 1 if it does not.
    """
    from spoor.services import local as services

    invocation = ctx.ensure_object(Invocation)
    found = services.status(invocation.settings())
    invocation.emit({"kafka": found}, _describe(found))
    ctx.exit(0 if found.answering else 1)


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
