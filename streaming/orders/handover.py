"""Where a group begins, when it is not where it stopped. Both ways are for a group without workers.

After a backfill, a group that has committed nothing yet may begin at the offsets up to which the lake was read, instead
of reading the whole topic again; reading it again would end the same, only later. The lake keeps no bad records, so a
partition begins at the first range that had any: the stream makes dead letters of them.

After a store lost its latest writes, a group goes back to where it stood before (`rewind`). Histories merge, so what
the store still has is merged again without effect.
"""

from __future__ import annotations

from collections.abc import Mapping

from spoor.activity.lake import Lake
from spoor.base.errors import UsageError
from spoor.base.numbers import number_text
from spoor.broker.reader import GroupReader
from spoor.streaming.settings import WorkerSettings


def start_after_backfill(settings: WorkerSettings, lake: Lake) -> dict[int, int]:
    """Commits, for partitions without a committed offset, up to where the last backfill read the lake, or where the
    first range with bad records begins. Returns these offsets by partition.

    Raises UsageError where there was no backfill, the lake has another topic or the group is at work,
    InfrastructureError without a broker."""
    topic = settings.kafka.topic
    begins = _begins(lake, topic)
    with GroupReader(settings.kafka, settings.stream.group) as reader:
        committed = reader.committed(topic)
        fresh = {partition: offset for partition, offset in sorted(begins.items()) if partition not in committed}
        _commit(settings, reader, fresh, why="from the lake", option="--from-lake")
    return fresh


def rewind(settings: WorkerSettings, *, to_ms: int, dry_run: bool = False) -> dict[int, tuple[int, int]]:
    """Moves the group's committed offsets back to the first records appended at or after `to_ms`, never forward.
    Returns (committed before, committed now) of the partitions that moved; with `dry_run` nothing is committed.

    A partition without a committed offset begins at its earliest record anyway. Raises UsageError while the group has
    workers, InfrastructureError without a broker."""
    topic = settings.kafka.topic
    with GroupReader(settings.kafka, settings.stream.group) as reader:
        then = reader.first_offsets(topic, to_ms)
        moved = {
            partition: (committed, then[partition])
            for partition, committed in reader.committed(topic).items()
            if partition in then and then[partition] < committed
        }
        if not dry_run:
            begins = {partition: offset for partition, (_, offset) in moved.items()}
            _commit(settings, reader, begins, why="rewound", option="--rewind")
    return moved


def _commit(
    settings: WorkerSettings, reader: GroupReader, offsets: Mapping[int, int], *, why: str, option: str
) -> None:
    """Raises UsageError while the group has members."""
    if offsets and not reader.commit(settings.kafka.topic, offsets, note=why):
        raise UsageError(
            f"group `{settings.stream.group}` has workers: its offsets are theirs",
            hint=f"start without {option}, or stop the group's workers first; one that was killed is a member for "
            f"{number_text(settings.kafka.session_timeout_seconds)} s more",
        )


def _begins(lake: Lake, topic: str) -> dict[int, int]:
    """The first offset by partition that the stream has to read."""
    entries = list(lake.ranges().values())
    begins = lake.backfilled()
    if not begins:
        raise UsageError(
            f"no backfill has read the lake `{lake.folder}`", hint="run `spoor archive` and `spoor backfill` first"
        )
    if others := {entry["topic"] for entry in entries} - {topic}:
        raise UsageError(
            f"the lake `{lake.folder}` holds topic `{others.pop()}`, not `{topic}`",
            hint="set kafka.topic back, or lake.folder to the lake of this topic",
        )
    for entry in entries:
        if entry.get("bad") and entry["partition"] in begins:
            begins[entry["partition"]] = min(begins[entry["partition"]], entry["start"])
    return begins
