"""`spoor topics`: the topics that Spoor reads and writes."""

from __future__ import annotations

import click

from spoor.commands import options
from spoor.commands.invocation import Invocation, pass_invocation

_REFUSED = ("cleanup.policy", "message.timestamp.type")


@click.command("create")
@options.release
@options.dry_run
@options.json
@pass_invocation
def create(invocation: Invocation, releases: tuple[str, ...], dry_run: bool) -> int:
    """Create missing topics.

    The activity topic (append times, kafka.partitions, kafka.retention_hours, kafka.replication_factor), the dead
    letters and the embedding topic of each live release. Existing topics are compared with the settings and never
    changed. Exit code 1 if one has a cleanup policy or record time that workers and jobs refuse.
    """
    from spoor.broker.create_topics import create_topics
    from spoor.feature_repo.releases import live_releases

    settings = invocation.settings()
    names = list(releases) or [release.name for release in live_releases(settings.features.releases_folder)]
    found = create_topics(settings.kafka, releases=names, dry_run=dry_run)
    lines = []
    for topic in found:
        line = topic.describe()  # ends with "created" for a topic that was missing
        if not topic.created:
            line += ", exists"
        elif dry_run:
            line = line.removesuffix("created") + "to be created"
        lines += [line, *(f"  {difference}" for difference in topic.differs)]
    shown = [
        {
            "name": topic.name,
            "created": topic.created and not dry_run,
            "exists": not topic.created,
            "partitions": topic.partitions,
            "replication_factor": topic.copies,
            "cleanup_policy": topic.cleanup_policy,
            "timestamp_type": topic.timestamp_type,
            "retention_ms": topic.retention_ms,
            "differs": list(topic.differs),
        }
        for topic in found
    ]
    invocation.emit({"topics": shown, "dry_run": dry_run}, "\n".join(lines))
    refused = any(difference.startswith(_REFUSED) for topic in found for difference in topic.differs)
    return 1 if refused else 0
