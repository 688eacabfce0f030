"""`spoor lift`: the same ranker trained with and without a release's embedding, and the table of differences."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from spoor.commands import options
from spoor.commands.invocation import Invocation, pass_invocation
from spoor.console import say

if TYPE_CHECKING:
    from spoor.ranking.ranker.lift import LiftTable


@click.command()
@click.option("--data", type=options.EXISTING, required=True, metavar="FILE", help="Events: who acted on what.")
@click.option("--release", required=True, metavar="NAME", help="The release whose service the ranker reads.")
@click.option("--train-from", "train_from_ms", type=options.TIME, required=True, help="Start of the training requests.")
@click.option(
    "--test-from", "test_from_ms", type=options.TIME, required=True, help="End of training, start of the test."
)
@options.positive
@options.json
@pass_invocation
def lift(
    invocation: Invocation,
    data: Path,
    release: str,
    train_from_ms: int,
    test_from_ms: int,
    positive: tuple[str, ...],
) -> None:
    """Measure a ranker with and without embeddings.

    Both rankers read Feast as of each request. The table has each metric's means and the paired difference with its
    95 % interval.
    """
    import pyarrow.compute as pc

    from spoor.activity.sources.event_files import read_events
    from spoor.ranking.features.online import feast_reader
    from spoor.ranking.ranker.lift import measure_lift

    settings = invocation.settings()
    events = read_events(data, settings.events, now_ms=time.time_ns() // 1_000_000)
    found = measure_lift(
        events,
        sorted(set(events.filter(pc.less(events["timestamp"], test_from_ms))["item_id"].to_pylist())),
        feast_reader(settings.features, release),
        train_ms=(train_from_ms, test_from_ms),
        test_ms=(test_from_ms, int(pc.max(events["timestamp"]).as_py()) + 1),
        positive_actions=positive,
        progress=say,
    )
    invocation.emit(found.table, _text(found.table))


def _text(table: LiftTable) -> str:
    lines = [f"{'requests':<22} {'metric':<10} {'without':>8} {'with':>8} {'difference [95 %]':>28}"]
    for row in table.rows:
        difference = f"{row.difference.mean:+.4f} [{row.difference.low:+.4f}, {row.difference.high:+.4f}]"
        means = f"{row.without_embedding.mean:>8.4f} {row.with_embedding.mean:>8.4f}"
        lines.append(f"{row.subset:<22} {row.metric:<10} {means} {difference:>28}  {row.verdict}")
    return "\n".join(lines)
