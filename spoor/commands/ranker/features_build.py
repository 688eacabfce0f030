"""`spoor features build`: counts and rates per user and item, the features that a company has before Spoor."""

from __future__ import annotations

from datetime import UTC, datetime

import click

from spoor.commands import options
from spoor.commands.invocation import Invocation, pass_invocation


@click.command("build")
@options.positive
@options.json
@pass_invocation
def build_features(invocation: Invocation, positive: tuple[str, ...]) -> None:
    """Build activity features from the lake.

    Counts and rates of each user and item at each midnight, written to the offline log as user_activity and
    item_activity. Materialize both with Feast to serve them.
    """
    from spoor.activity.lake import open_lake
    from spoor.ranking.features.existing_features import write_existing_features

    settings = invocation.settings()
    written = write_existing_features(open_lake(settings.lake), settings.features, positive_actions=positive)
    as_of = datetime.fromtimestamp(written.as_of_ms / 1000, UTC).date()
    text = (
        f"{written.user_rows} rows of {written.users} users, {written.item_rows} of {written.items} items, to {as_of}"
    )
    invocation.emit(written, text)
