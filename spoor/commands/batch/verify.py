"""`spoor verify`: what is online, compared with what the lake gives."""

from __future__ import annotations

import click

from spoor.commands import options
from spoor.commands.invocation import Invocation, pass_invocation


@click.command()
@click.option("--repair", is_flag=True, help="Repair differences through the guarded write.")
@options.runner
@options.json
@pass_invocation
def verify(invocation: Invocation, repair: bool, runner: str, runner_options: tuple[str, ...]) -> int:
    """Recompute what is online and compare.

    Histories and embeddings of every user and live release come from the lake. Exit code 1 if anything differs; with
    --repair, if anything still does.
    """
    from spoor.batch.users.verify import run_verify
    from spoor.services.flink import batch_runner

    settings = invocation.settings()
    with batch_runner(settings, runner, runner_options) as started:
        result = run_verify(settings, repair=repair, runner=started)
    invocation.emit(result, result.text())
    return 1 if result.remaining else 0
