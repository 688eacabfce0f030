"""Plans a backfill: its options, its work items, and which of them are left.

A job's id is a hash of everything that decides its result: the lake's contents, the releases, the times, the stores. So
a resumed run finds only its own work.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from spoor.activity.lake import Lake
from spoor.base.errors import UsageError
from spoor.base.files import Manifest
from spoor.batch.jobs import Failures, fingerprint
from spoor.batch.kafka.kafka_source import gaps
from spoor.batch.kafka.retention import iso_time
from spoor.batch.releases import Releases
from spoor.batch.settings import BatchSettings
from spoor.batch.users.histories import PLACES, Span, bucket_groups, snapshot_times
from spoor.encoder.release.info import read_info

Into = Literal["both", "online", "offline"]  # the online store, the offline log


@dataclass(frozen=True)
class BackfillOptions:
    """What a job computes and the stores it writes; part of its id."""

    releases: tuple[str, ...]  # for offline rows and item vectors; online, every live release is written
    as_of_ms: int | None  # events before this; None = every event of the lake
    snapshots: tuple[int, ...]  # times in ms, ascending; empty = one row per user
    into: Into
    publish: bool

    @property
    def online(self) -> bool:
        return self.into != "offline"

    @property
    def offline(self) -> bool:
        return self.into != "online"

    @property
    def last_ms(self) -> int | None:
        """The newest snapshot or as-of time; None if the job computes the present."""
        return self.snapshots[-1] if self.snapshots else self.as_of_ms


@dataclass(frozen=True)
class BackfillPlan:
    """`groups` of user buckets are left to do; `finished` items were done by an earlier run of this job."""

    job: str
    folder: Path
    options: BackfillOptions
    written: tuple[str, ...]  # releases to encode with; online, a history changes with every live release's embedding
    lake_items: frozenset[str]  # the lake's items at the start; every try reads these, without items archived later
    groups: tuple[tuple[int, ...], ...]
    item_releases: tuple[str, ...]
    finished: int

    @property
    def manifest(self) -> Manifest:
        return Manifest(self.folder / "manifest")

    @property
    def failures(self) -> Failures:
        return Failures(self.folder)

    @property
    def left(self) -> int:
        """Number of work items to do."""
        return len(self.groups) + len(self.item_releases)

    @property
    def offline_key(self) -> str:
        """Prefix of the names of the job's offline files. Given times are part of the prefix, so a later job with the
        same times replaces the rows; a backfill of the present adds rows to those of earlier days."""
        times = self.options.snapshots
        if times:
            return f"snapshots-{times[0]}-{times[-1]}-{len(times)}"
        return self.job if self.options.as_of_ms is None else f"as-of-{self.options.as_of_ms}"

    def finished_items(self) -> set[str]:
        """This run's finished work items, for the progress display."""
        noted = self.manifest.keys()
        groups = {f"buckets {group_key(group)}" for group in self.groups if not spans_left(group, self.options, noted)}
        return groups | {key for key in map(items_key, self.item_releases) if key in noted}


def backfill_options(
    chosen: Sequence[str], as_of_ms: int | None, snapshots: tuple[int, int, int] | None, into: Into, *, publish: bool
) -> BackfillOptions:
    """`snapshots`: (from, to, every) in ms. Raises UsageError for options that contradict each other."""
    times: list[int] = []
    if snapshots is not None:
        first, last, every = snapshots
        if into == "online":
            raise UsageError(
                "snapshots go to the offline log, and only the online store is to be written",
                hint="leave out --into, or the snapshots",
            )
        if into == "both" or as_of_ms is not None:
            raise UsageError(
                "snapshots go to the offline log alone, each with its own as-of time",
                hint="use `--into offline` and leave --as-of out",
            )
        if every <= 0:
            raise UsageError(f"snapshots {every} ms apart", hint="set --every to an hour or more")
        times = snapshot_times(first, last, every)
        if not times:
            raise UsageError(
                f"snapshots from {iso_time(first)} to {iso_time(last)}: the end lies before the start",
                hint="exchange --from and --to",
            )
    return BackfillOptions(tuple(chosen), as_of_ms, tuple(times), into, publish and into != "offline")


def plan_backfill(
    settings: BatchSettings, lake: Lake, options: BackfillOptions, releases: Releases, *, resume: bool
) -> BackfillPlan:
    """The job's work items; with `resume`, without those that the manifest holds."""
    written = tuple(sorted({*options.releases, *(releases.live if options.online else ())}))
    groups, archived = bucket_groups(lake), lake.manifest.records()
    stores = settings.features.feature_repo / "feature_store.yaml"
    identity = (
        groups,
        archived,
        [asdict(read_info(settings.features.releases_folder / name)) for name in written],
        asdict(options),
        asdict(settings.history),
        asdict(settings.features),
        stores.read_text(encoding="utf-8", errors="replace") if stores.is_file() else "",
        settings.stream.as_of,
        "slices by hash",  # prevents resuming a job of an earlier version, which cut slices differently
    )
    job = f"backfill-{fingerprint(*identity)}"
    folder = settings.state_folder / "jobs" / job
    noted = set(Manifest(folder / "manifest").records()) if resume else set()
    todo = tuple(group for group in groups if spans_left(group, options, noted))
    todo_items = tuple(release for release in options.releases if items_key(release) not in noted)
    finished = len(groups) - len(todo) + len(options.releases) - len(todo_items)
    return BackfillPlan(job, folder, options, written, frozenset(archived), todo, todo_items, finished)


def items_key(release: str) -> str:
    """Key of the work item of a release's item vectors."""
    return f"items-{release}"


def group_key(buckets: Sequence[int]) -> str:
    """Key of the work item of a group of user buckets."""
    return f"b{buckets[0]:02d}"


def slice_key(buckets: Sequence[int], span: Span) -> str:
    """Manifest key of a slice of a group."""
    return f"{group_key(buckets)}-{span[0]:012x}-{span[1]:012x}"


def spans_left(buckets: Sequence[int], options: BackfillOptions, noted: Collection[str]) -> list[Span]:
    """The group's spans of places that no slice in the manifest's keys covers; empty if the group is finished."""
    prefix = f"{group_key(buckets)}-"
    covered = [key.removeprefix(prefix).split("-") for key in noted if key.startswith(prefix)]
    spans = sorted((int(start, 16), int(end, 16)) for start, end in covered)
    return gaps(spans, begin=0, high=PLACES * max(len(options.snapshots), 1))
