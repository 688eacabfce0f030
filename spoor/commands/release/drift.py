"""`spoor release drift`: whether a release's vectors have drifted between two days."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

import click

from spoor.base.numbers import number_text
from spoor.commands import options
from spoor.commands.invocation import Invocation, pass_invocation
from spoor.console import say

if TYPE_CHECKING:
    from spoor.batch.users.drift import Drift

_DAY = click.DateTime(["%Y-%m-%d"])


@click.command()
@click.argument("name")
@click.option("--from", "before", type=_DAY, required=True, metavar="DAY", help="The day to hold against, UTC.")
@click.option("--to", "after", type=_DAY, required=True, metavar="DAY", help="The day in question, UTC.")
@options.json
@pass_invocation
def drift(invocation: Invocation, name: str, before: datetime, after: datetime) -> int:
    """Check vectors for drift between two days.

    Of users' last rows on each day in the offline log: norms, means of coordinates, and how well a classifier tells the
    days apart. Exit code 1 if a figure is above its limit (settings: [drift]).
    """
    from spoor.batch.users.drift import read_drift
    from spoor.encoder.release.info import read_info

    settings = invocation.settings()
    read_info(settings.features.releases_folder / name)
    days = before.date(), after.date()
    say(f"{name}: rows of {days[0]} and {days[1]} in {settings.features.offline_folder}")
    result = read_drift(settings.features, name, days, settings.drift)
    invocation.emit(result, _text(result, settings.drift.max_users))
    return 1 if result.exceeded else 0


def _text(result: Drift, max_users: int) -> str:
    def line(name: str, value: str, limit: float) -> str:
        return f"{name:<18} {value}, limit {number_text(limit)}" + ("  EXCEEDED" if name in result.exceeded else "")

    norms, shift, auc = result.norm_change, result.mean_shift, result.auc
    moved = f"mean norm {result.mean_norms[0]:.4f} → {result.mean_norms[1]:.4f}"
    return "\n".join(
        [
            f"{result.release}: {result.users[0]:,} users on {result.days[0]}, {result.users[1]:,} on {result.days[1]}"
            + (f" (samples of {max_users:,}: drift.max_users)" if max_users in result.users else ""),
            line("norms", f"{norms.value:.4f} ({moved})", norms.limit),
            line(
                "coordinate means",
                f"{shift.value:.3f} standard deviations (coordinate {result.coordinate})",
                shift.limit,
            ),
            line("domain classifier", f"AUC {auc.value:.3f}", auc.limit),
        ]
    )
