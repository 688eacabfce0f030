"""`spoor archive`: Kafka's events into the lake."""

from __future__ import annotations

import click

from spoor.commands import options
from spoor.commands.invocation import Invocation, pass_invocation


@click.command()
@click.option(
    "--resume/--again", default=True, help="Read what the lake lacks, or every range again.", show_default=True
)
@click.option("--accept-loss", is_flag=True, help="Continue despite records lost to retention.")
@options.runner
@options.dry_run
@options.json
@pass_invocation
def archive(
    invocation: Invocation,
    resume: bool,
    accept_loss: bool,
    runner: str,
    runner_options: tuple[str, ...],
    dry_run: bool,
) -> None:
    """Bring Kafka's events into the lake."""
    from spoor.batch.kafka.archive import run_archive
    from spoor.broker.reach import require_broker
    from spoor.services.flink import batch_runner

    settings = invocation.settings()
    require_broker(settings.kafka)
    with batch_runner(settings, runner, runner_options, start=not dry_run) as chosen:
        result = run_archive(settings, dry_run=dry_run, resume=resume, accept_loss=accept_loss, runner=chosen)
    invocation.emit(result, result.text(settings.lake.folder))
