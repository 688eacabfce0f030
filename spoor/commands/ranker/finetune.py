"""`spoor finetune`: the encoder of a release inside a ranker."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from spoor.commands import options
from spoor.commands.invocation import Invocation, pass_invocation

if TYPE_CHECKING:
    import pyarrow as pa

    from spoor.config import Settings


@click.command()
@click.option("--release", required=True, metavar="NAME", help="The release to begin with.")
@click.option("--out", required=True, type=options.LocalPath(), metavar="FILE", help="The ranker's file.")
@click.option("--data", type=options.EXISTING, metavar="FILE", help="Events of this file. Default: the lake.")
@click.option("--items", type=options.EXISTING, metavar="FILE", help="Item attributes, with a column item_id.")
@click.option(
    "--from", "from_ms", type=options.TIME, help="Learn from requests since then. Default: the release's end."
)
@click.option(
    "--until", "until_ms", type=options.TIME, help="Learn up to then, measure after it. Default: learn from all."
)
@click.option("--seed", type=options.SEED, help="In place of finetune.seed.")
@click.option("--overwrite", is_flag=True, help="Replace a file of the same name.")
@options.dry_run
@options.json
@pass_invocation
def finetune(
    invocation: Invocation,
    release: str,
    out: Path,
    data: Path | None,
    items: Path | None,
    from_ms: int | None,
    until_ms: int | None,
    seed: int | None,
    overwrite: bool,
    dry_run: bool,
) -> None:
    """Train a ranker with a release inside.

    Features, vectors and histories are read from Feast as they were known at each request; section [finetune] of the
    settings says which actions count and how the ranker uses the encoder.
    """
    import dataclasses

    import pyarrow as pa
    import pyarrow.compute as pc

    from spoor.activity.sources.event_files import read_table
    from spoor.encoder.release.folder import load_release
    from spoor.ranking.features.online import feast_reader, history_reader
    from spoor.ranking.ranker.finetune import Source, Windows, run_finetune

    settings = invocation.settings()
    loaded = load_release(settings.features.releases_folder / release)
    events = _events(settings, data)
    newest = pc.max(events["timestamp"]).as_py() or 0
    windows = Windows(
        tune_from=loaded.info.trained_through_ms + 1 if from_ms is None else from_ms,
        test_from=newest + 1 if until_ms is None else until_ms,
        test_to=newest + 1,
    )
    result = run_finetune(
        Source(
            events=events,
            items=read_table(items, settings.events) if items else pa.table({"item_id": pa.array([], pa.string())}),
            release=loaded,
            read=feast_reader(settings.features, release),
            read_histories=history_reader(settings.features),
        ),
        windows,
        out=out,
        settings=settings.finetune if seed is None else dataclasses.replace(settings.finetune, seed=seed),
        dry_run=dry_run,
        overwrite=overwrite,
    )
    if result.ranker is None:
        invocation.emit({"plan": result.plan, "dry_run": True}, "nothing was done")
        return
    shown = {"ranker": str(result.ranker), "plan": result.plan, "metrics": result.metrics}
    invocation.emit(shown, f"{result.ranker}: {_text(result.metrics)}")


def _events(settings: Settings, data: Path | None) -> pa.Table:
    """Each event once where they come from the lake, in one order whatever the order of its files."""
    import time

    from spoor.activity.events import FIELDS
    from spoor.activity.lake import open_lake
    from spoor.activity.sources.event_files import read_events

    if data is not None:
        return read_events(data, settings.events, now_ms=time.time_ns() // 1_000_000)
    table = open_lake(settings.lake).read(columns=list(FIELDS)).group_by(list(FIELDS)).aggregate([])
    return table.sort_by([("timestamp", "ascending"), *((name, "ascending") for name in FIELDS if name != "timestamp")])


def _text(metrics: dict[str, Any]) -> str:
    found = [f"{metrics['training_rows']:,} rows, {metrics['candidates_per_history']:.1f} candidates per history"]
    for window, counts in metrics["histories"].items():
        if counts["without_history"]:
            found.append(f"{counts['without_history']:,} of {counts['requests']:,} {window} requests without a history")
    for row in metrics.get("test", []):
        if row["slice"] == "all items" and row["mean"] is not None:
            found.append(f"{row['metric']} {row['mean']:.4f} [{row['low']:.4f}, {row['high']:.4f}]")
    return ", ".join(found)
