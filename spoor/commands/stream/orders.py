"""`spoor stream pause`, `resume`, `reload` and `status`: orders to running workers, and their reports."""

from __future__ import annotations

from collections.abc import Callable

import click

from spoor.commands import options
from spoor.commands.invocation import Invocation, pass_invocation


def _order(described: Callable[[], None]) -> click.Command:
    """The command that gives the workers the order of this name (orders.py) and waits for their reports;
    the function's docstring is its help."""
    order = described.__name__

    @click.command(order, help=described.__doc__)
    @click.option(
        "--timeout-seconds",
        type=options.NOT_NEGATIVE,
        default=120.0,
        show_default=True,
        help="How long to wait for the workers' reports.",
    )
    @options.json
    @pass_invocation
    def give(invocation: Invocation, timeout_seconds: float) -> None:
        from spoor.operations import orders as stream_orders

        result = getattr(stream_orders, order)(invocation.settings(), timeout_seconds=timeout_seconds)
        invocation.emit(result, result.text())

    return give


@_order
def pause() -> None:
    """Pause all workers.

    They finish what they have taken, stay in their group and stay healthy; workers that start later are paused too. The
    command ends when all of them report it. Repeating it changes nothing.
    """


@_order
def resume() -> None:
    """Resume paused workers."""


@_order
def reload() -> None:
    """Load new releases into running workers.

    Each worker loads the releases that are live now while it works, and from then on writes all of them with every
    batch. Exit code 1 if a worker could not and keeps the releases that it had, or was started for certain releases.
    """


@click.command("status")
@options.json
@pass_invocation
def show_workers(invocation: Invocation) -> None:
    """Show what each worker does and writes."""
    from spoor.operations.orders import status

    result = status(invocation.settings())
    invocation.emit(result, result.text())
