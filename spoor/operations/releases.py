"""`spoor release promote` and `spoor release retire`: decide which release is served, and which are written.

Promoting has two steps: a note in the releases folder, and its registration in Feast. Retiring has five (see `retire`);
the first marks release.json, which every writer checks. All steps are idempotent, so a killed command is completed by
running it again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from spoor.base.errors import ProblemsFound, UsageError
from spoor.base.locks import exclusive
from spoor.config import Settings
from spoor.encoder.release.folder import known_items, mark_retired
from spoor.encoder.release.info import ReleaseInfo, read_info
from spoor.feature_repo.names import aligned_ranker, item_embedding_view, ranker_service, user_embedding_view
from spoor.feature_repo.releases import (
    LiveRelease,
    aligned_releases,
    live_releases,
    promoted_release,
    promotion,
)
from spoor.operations.orders import unwritten, way_to_write

if TYPE_CHECKING:
    from spoor.store.promotion import Coverage

_WORKER_SECONDS = 10.0  # for a worker to encode a user after the rate limit has passed


@dataclass(frozen=True)
class Promoted:
    """`changed`: whether `ranker` served another release before. `aligned_service`: the service of the release's space,
    which served `previous_aligned` before."""

    release: str
    previous: str | None
    aligned_service: str
    previous_aligned: str | None
    dimension: int
    previous_dimension: int | None
    coverage: Coverage
    cache_seconds: int | None  # how long readers may use their cached registry; None: until they restart
    changed: bool
    dry_run: bool


@dataclass(frozen=True)
class RetirePlan:
    release: str
    views: tuple[str, str]
    services: tuple[str, ...]
    topic: str | None  # None: the topic is kept
    resumed: bool  # whether an earlier run has marked the release
    live: tuple[str, ...]  # remaining live releases
    breaks: tuple[str, ...]  # services and views of others that use the release's views

    def text(self) -> str:
        topic = (
            "its topic stays" if self.topic is None else f"the topic {self.topic} goes once it is in the offline log"
        )
        again = "goes on with what an earlier run began: " if self.resumed else ""
        breaks = (
            f"; {', '.join(self.breaks)}: registered on its views, stay registered and fail at every read from then on"
            if self.breaks
            else ""
        )
        return (
            f"{again}{' and '.join(self.services)} and the views {' and '.join(self.views)} go with their online rows, "
            f"{topic}; the folder of {self.release} and its offline rows stay; live: {', '.join(self.live)}{breaks}"
        )


@dataclass(frozen=True)
class Retired:
    plan: RetirePlan
    removed: tuple[str, ...]  # names in Feast that this run removed
    landed_rows: int  # rows of the topic that this run wrote to the offline log
    topic_deleted: bool  # whether this run deleted the topic
    dry_run: bool = False


def promote(
    settings: Settings,
    name: str,
    *,
    workers: Literal["ask", "none"] = "ask",
    dry_run: bool = False,
    progress: Callable[[int], None] = lambda users: None,
) -> Promoted:
    """Makes the services `ranker` and `aligned_ranker_<space>` serve release `name`. Their earlier releases stay live.
    `workers`: "ask" checks in Kafka that the group's workers write the release; "none" skips this without a stream.

    Raises UsageError for a release that is unknown, retired or not registered; ProblemsFound, with counts, if a worker
    does not write it, or users or items lack current vectors online; DataError for a damaged release;
    InfrastructureError.
    """
    from spoor.store.online import open_online
    from spoor.store.promotion import cache_seconds, check_aliases_are_ours, coverage
    from spoor.store.promotion import promote as switch

    folder = settings.features.releases_folder
    with _alone(settings, "spoor release promote"):
        info = _not_retired(read_info(folder / name))
        if settings.stream.releases and name not in settings.stream.releases:
            raise UsageError(
                f"workers do not write `{name}`: stream.releases names {', '.join(settings.stream.releases)}",
                hint=f"add `{name}` to stream.releases, start the workers again, and backfill it",
            )
        before = promotion(folder)
        previous = None if before is None else before.release
        dimensions = {release.name: release.dimension for release in live_releases(folder)}
        online = open_online(settings.features)
        online.check([name])
        check_aliases_are_ours(settings.features, info.space)
        # Before the pass: if all workers write the release, embeddings found fresh stay so, but for the rate limit.
        if workers == "ask" and unwritten(settings, [name]):
            raise ProblemsFound(
                f"release `{name}` cannot be promoted: not every worker of group `{settings.stream.group}` writes it",
                hint=f"{way_to_write(settings, [name])}; `spoor stream status` shows what each writes",
            )
        floor = settings.stream.encode_seconds
        wait_seconds = floor + _WORKER_SECONDS if floor else 0.0
        found = coverage(online, name, known_items(info), wait_seconds=wait_seconds, progress=progress)
        if not found.complete:
            raise _incomplete(name, found)
        if not dry_run:
            switch(settings.features, name, now_ms=time.time_ns() // 1_000_000)
    return Promoted(
        release=name,
        previous=previous,
        aligned_service=settings.features.named(aligned_ranker(info.space)),
        previous_aligned=None if before is None else before.aligned.get(info.space),
        dimension=info.dimension,
        previous_dimension=None if previous is None else dimensions.get(previous),
        coverage=found,
        cache_seconds=cache_seconds(online.feast),
        changed=previous != name,
        dry_run=dry_run,
    )


def plan_retirement(
    settings: Settings, name: str, *, keep_topic: bool = False, dependents: Literal["refuse", "break"] = "refuse"
) -> RetirePlan:
    """Plans the retirement. `dependents`: "break" allows services and views of others that use the release's views.

    Raises UsageError for a release that is unknown, promoted, the last live one or named by stream.releases;
    ProblemsFound while readers may still be served by it, or if it has dependents; DataError for a damaged folder."""
    from spoor.store.feast_store import open_feature_store
    from spoor.store.promotion import cache_seconds, used_by

    folder = settings.features.releases_folder
    info = read_info(folder / name)
    live = live_releases(folder)
    others = tuple(release.name for release in live if release.name != name)
    promoted = promoted_release(folder, live)
    if promoted is not None and promoted.name == name:
        raise UsageError(
            f"release `{name}` is promoted: the service `ranker` serves it",
            hint="promote another one first with `spoor release promote NAME`",
        )
    aligned = [settings.features.named(service) for service in _aligned_service(folder, info, live)]
    if not others:
        raise UsageError(
            f"release `{name}` is the only live one: without it no user would have an embedding",
            hint="bring the next release in, backfill and promote it first",
        )
    if name in settings.stream.releases:
        raise UsageError(
            f"stream.releases names `{name}`: workers would no longer start",
            hint=f"take `{name}` out of stream.releases, and start the workers again",
        )
    store, _ = open_feature_store(settings.features)
    if not info.retired:
        _check_readers_have_moved(folder, name, cache_seconds(store))
    named = settings.features.named
    views = (named(user_embedding_view(name)), named(item_embedding_view(name)))
    services = (named(ranker_service(name)), *aligned)
    breaks = used_by(store, views, except_for=services)
    if breaks and dependents == "refuse" and not info.retired:
        raise ProblemsFound(
            f"release `{name}` is used by {', '.join(breaks)}",
            hint="take its views out of them and run `feast apply`; or break them with `--force`",
        )
    return RetirePlan(
        release=name,
        views=views,
        services=services,
        topic=None if keep_topic else settings.kafka.embedding_topic(name),
        resumed=info.retired,
        live=others,
        breaks=breaks,
    )


def retire(
    settings: Settings, name: str, *, keep_topic: bool = False, dependents: Literal["refuse", "break"] = "refuse"
) -> Retired:
    """Takes a release out of service:

    1. marks it retired: workers skip it from their next try on, batch jobs do not choose it;
    2. lands the remaining rows of its topic in the offline log;
    3. removes its service and views from Feast's registry;
    4. deletes its topic;
    5. removes its online rows, including those that a batch in flight wrote after step 1.

    Raises as `plan_retirement`, and InfrastructureError if a server does not answer or another job is running; the next
    run continues.
    """
    from spoor.activity.lake import open_lake
    from spoor.batch.forget.forget import alone
    from spoor.batch.kafka.archive_embeddings import land_release
    from spoor.broker.create_topics import delete_topic
    from spoor.broker.reach import require_broker
    from spoor.store.online import open_online
    from spoor.store.repo import apply

    # No other job may run: a backfill or a repair would keep writing the loaded release, an export would miss some of
    # its rows, a verify would report all of them stale.
    with _alone(settings, "spoor release retire"), alone(settings, open_lake(settings.lake)):
        plan = plan_retirement(settings, name, keep_topic=keep_topic, dependents=dependents)
        if plan.topic is not None:
            require_broker(settings.kafka)
        mark_retired(settings.features.releases_folder / name)
        landed = 0 if plan.topic is None else land_release(settings, name)
        applied = apply(settings.features, "keep")
        deleted = plan.topic is not None and delete_topic(settings.kafka, plan.topic)
        open_online(settings.features).remove_release(name)
    return Retired(plan, applied.removed, landed, deleted)


def _alone(settings: Settings, job: str) -> AbstractContextManager[None]:
    return exclusive(settings.state_folder / "jobs" / "release.lock", job=job)


def _not_retired(info: ReleaseInfo) -> ReleaseInfo:
    if info.retired:
        raise UsageError(
            f"release `{info.name}` is retired: its rows are deleted and no worker writes it",
            hint="`spoor release list` shows the live ones; train it again under a new name to bring it back",
        )
    return info


def _incomplete(name: str, found: Coverage) -> ProblemsFound:
    example = f", for example {found.examples[0]!r}" if found.examples else ""
    return ProblemsFound(
        f"release `{name}` cannot be promoted: of {found.users:,} users with a history {found.missing:,} have no "
        f"embedding and {found.behind:,} one of an earlier history{example}; of {found.items:,} items "
        f"{found.items_missing:,} have no vector",
        hint=f"run `spoor backfill --release {name}`, then `spoor verify --repair` for what is left",
    )


def _aligned_service(folder: Path, info: ReleaseInfo, live: Sequence[LiveRelease]) -> list[str]:
    """The service of the release's space, if it serves the release and so is removed with it. Raises UsageError if
    another live release of the space could be served instead."""
    if aligned_releases(folder, live).get(info.space) != info.name:
        return []
    service = aligned_ranker(info.space)
    if rest := [release.name for release in live if release.space == info.space and release.name != info.name]:
        raise UsageError(
            f"the service `{service}` serves release `{info.name}`, and `{rest[0]}` is in the same space",
            hint=f"promote it first with `spoor release promote {rest[0]}`, or retire it first",
        )
    return [service]


def _check_readers_have_moved(folder: Path, name: str, seconds: int | None) -> None:
    """Raises ProblemsFound while readers with a cached registry may still be served by the release."""
    switched = promotion(folder)
    if switched is None or name not in (switched.previous, switched.previous_aligned) or not seconds:
        return
    until_ms = switched.promoted_at_ms + seconds * 1000
    if time.time_ns() // 1_000_000 < until_ms:
        moment = datetime.fromtimestamp(until_ms / 1000, UTC).isoformat(timespec="seconds")
        raise ProblemsFound(
            f"readers may be served by release `{name}` until {moment}: they cache Feast's registry for {seconds} s",
            hint="run it again after that time",
        )
