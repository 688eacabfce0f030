"""`spoor simulate`: realistic load into Kafka."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from spoor.base.errors import UsageError
from spoor.commands import options
from spoor.commands.invocation import Invocation, pass_invocation, time_text

_DAY_MS = 86_400_000


@click.command()
@click.option(
    "--data",
    type=options.LocalPath(),
    metavar="FILE",
    help="Send these events instead: a file or folder of Parquet, CSV or JSON lines.",
)
@click.option("--from", "from_ms", type=options.TIME, help="Event times from here. Default: the file's, or a day ago.")
@click.option("--to", "to_ms", type=options.TIME, help="Event times before this. Default: the file's, or now.")
@click.option(
    "--rate", type=options.POSITIVE, metavar="EVENTS_PER_SECOND", help="At most so many a second. Default: full speed."
)
@click.option("--events", type=int, help="How many to make up.  [default: 10000]")
@click.option("--users", type=int, help="Of so many users.  [default: 1000]")
@click.option("--items", type=int, help="Over so many items.  [default: 2000]")
@click.option("--seed", type=int, help="The same seed gives the same events.  [default: 0]")
@options.dry_run
@options.json
@pass_invocation
def simulate(
    invocation: Invocation,
    data: Path | None,
    from_ms: int | None,
    to_ms: int | None,
    rate: float | None,
    dry_run: bool,
    **sizes: int | None,
) -> int:
    """Send events to Kafka, from a file or made up."""
    from spoor.activity.simulator import SimulatorSettings
    from spoor.operations.simulate import run_simulate

    settings = invocation.settings()
    given = {name: size for name, size in sizes.items() if size is not None}
    if data is not None and given:
        raise UsageError(
            f"--{next(iter(given))} shapes made-up events, and --data sends those of a file",
            hint="leave one of them out",
        )
    synthetic = None
    if data is None:
        now_ms = time.time_ns() // 1_000_000
        end_ms = now_ms if to_ms is None else to_ms
        start_ms = end_ms - _DAY_MS if from_ms is None else from_ms
        names = {"actions": settings.events.actions, "surfaces": settings.events.surfaces}
        shape: dict[str, Any] = {"events": 10_000} | given | {name: known for name, known in names.items() if known}
        synthetic = SimulatorSettings(from_ms=start_ms, to_ms=end_ms, **shape)
    result = run_simulate(
        settings, data=data, synthetic=synthetic, from_ms=from_ms, to_ms=to_ms, rate=rate, dry_run=dry_run
    )
    text = (
        f"{result.topic}: {result.events:,} events of {result.users:,} users, "
        f"{time_text(result.first_ms)} to {time_text(result.last_ms)}"
    )
    sent = f", confirmed in {result.seconds:.1f} s ({result.events_per_second:,.0f} events/s)"
    invocation.emit(result, text + (", not sent" if dry_run else sent))
    if result.refused:
        click.echo(f"error: {len(result.refused):,} rows were left out: {result.refused[0]}", err=True)
        click.echo("hint: Feast's entities want integers here; correct the rows, or the types of [events]", err=True)
    return 2 if result.refused else 0
