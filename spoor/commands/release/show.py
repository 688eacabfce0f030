"""`spoor release show`: checks one release and shows it."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from spoor.base.numbers import number_text
from spoor.commands import options
from spoor.commands.invocation import Invocation, pass_invocation, time_text

if TYPE_CHECKING:
    from spoor.encoder.release.info import ReleaseInfo


@click.command("show")
@click.argument("name")
@options.json
@pass_invocation
def show_release(invocation: Invocation, name: str) -> None:
    """Check and show one release.

    Every file is compared with its checksum first.
    """
    from spoor.encoder.release.alignment import load_alignment
    from spoor.encoder.release.folder import load_release

    loaded = load_release(invocation.settings().features.releases_folder / name)
    info = loaded.info
    aligned = load_alignment(info.folder)
    if info.packed is not None:
        from spoor.encoder.release.packed_tables import open_packed

        open_packed(info, known_items=len(loaded.vocabulary.items)).verify()
    numbers = {key: value for key, value in loaded.metrics.items() if isinstance(value, int | float)}
    lines = [
        f"{info.name}  ({info.folder})",
        f"dimension           {info.dimension}",
        f"events per user     {info.max_events}",
        f"items known         {len(loaded.vocabulary.item_ids):,}",
        *([f"item tables         {info.packed['layout']}, of {info.packed['of']}"] if info.packed else []),
        *([f"vectors             of {info.aligned['of']}, in the space of {info.space}"] if info.aligned else []),
        *([f"rotation            into the space of {aligned.to}"] if aligned else []),
        f"trained through     {time_text(info.trained_through_ms)}",
        f"created             {info.created_at}",
        f"data fingerprint    {info.data_fingerprint}",
        *([f"training            {info.ended.note}"] if info.ended and info.ended.note else []),
        *(f"{key:<19} {number_text(value, digits=6)}" for key, value in numbers.items()),
        "files               whole (checksums match)",
    ]
    shown = {
        "release": release_json(info),
        "items": len(loaded.vocabulary.item_ids),
        "metrics": loaded.metrics,
        "alignment": None if aligned is None else aligned.report,
    }
    invocation.emit(shown, "\n".join(lines))


def release_json(info: ReleaseInfo) -> dict[str, Any]:
    trained_through = datetime.fromtimestamp(info.trained_through_ms / 1000, UTC).isoformat(timespec="milliseconds")
    described = {"folder": str(info.folder), "trained_through": trained_through, "space": info.space}
    return dataclasses.asdict(info) | described
