"""What a batch is written and published with: the encoders of the live releases, the online store and its writer, the
topics of embeddings and dead letters.

The heavy import (Feast) happens here, when a worker starts, and not when this module is imported.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence, Set
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from spoor.base.errors import UsageError
from spoor.encoder.release.info import read_info, short_histories
from spoor.feature_repo.releases import is_retired, live_releases
from spoor.store.publication import Rows
from spoor.streaming.kafka.broker import check_topics
from spoor.streaming.pipeline.daemon_threads import DaemonThreads
from spoor.streaming.pipeline.dead_letter_writer import DeadLetterWriter
from spoor.streaming.pipeline.encoder_process import EncoderProcess
from spoor.streaming.pipeline.publisher import Publisher, Send
from spoor.streaming.records.core import UserEvents
from spoor.streaming.settings import WorkerSettings

if TYPE_CHECKING:
    from spoor.store.online import OnlineStore
    from spoor.store.writer import GuardedWriter, UpdateResult

log = logging.getLogger(__name__)
_ENCODE_THREADS = 2  # one waits for the encoder, one has the next users ready for it


@dataclass(frozen=True)
class Stores:
    """As they were opened; others take their place at a reload. `in_thread` runs a call off the loop."""

    online: OnlineStore
    writer: GuardedWriter
    publisher: Publisher
    letters: DeadLetterWriter
    partitions: int  # of the activity topic
    releases_folder: Path
    in_thread: Callable[..., Awaitable[Any]]
    close: Callable[[], None]  # ends what encodes

    @property
    def releases(self) -> tuple[str, ...]:
        """Those that every batch writes."""
        return tuple(self.writer.encoders)

    def update(self, batch: UserEvents, *, postpone: npt.NDArray[np.bool_]) -> UpdateResult:
        """Merges, encodes and writes. Raises as `GuardedWriter.update`."""
        return self.writer.update(
            batch.user_ids, batch.events, as_of_ms=batch.as_of_ms, partitions=batch.partitions, postpone=postpone
        )

    async def publish(self, rows: Rows) -> int:
        """Publishes the rows of releases that are not retired. Returns how many had to be published again. Raises as
        `Publisher.publish`."""
        live = await self.in_thread(self._live, rows)
        return await self.publisher.publish({name: rows[name] for name in live})

    def read(self) -> None:
        """Any read, to see whether the store answers. Raises InfrastructureError."""
        self.online.read(["0"], [])

    def forget_partitions(self, partitions: Iterable[int]) -> None:
        """Other workers have these now: their users' histories leave the cache."""
        for partition in partitions:
            self.writer.cache.drop_partition(partition)

    def leave_retired(self) -> None:
        """Comes before every try of a write. `spoor release retire` marks a release first and then removes its views
        and its topic: from the mark on they are not touched any more, and a try that failed because they went succeeds
        without them. Raises UsageError where no release is left."""
        for release in set(self.releases) - set(self._live(self.releases)):
            log.warning("release %s is retired: this worker no longer writes it", release)
            self.writer.drop(release)
        if not self.writer.encoders:
            raise UsageError(
                "every release that this worker keeps fresh is retired",
                hint="correct stream.releases and start the worker again: nothing was lost",
            )

    def _live(self, releases: Iterable[str]) -> list[str]:
        """Those that are not retired, by their files: read before every try of a write or a publication."""
        return [release for release in releases if not is_retired(self.releases_folder / release)]


def releases_to_keep_fresh(settings: WorkerSettings) -> list[str]:
    """The configured releases, else every live one in the folder that Feast knows (store/feast_store.py). Raises
    UsageError for an unknown name or none. Slow: it opens the registry."""
    from spoor.store.feast_store import live_names

    folder = settings.features.releases_folder
    live = [release.name for release in live_releases(folder)]
    chosen = list(settings.stream.releases) or live
    unknown = [name for name in chosen if name not in live]
    if unknown or not chosen:
        found = f"found {', '.join(live)}" if live else "it holds no live release"
        wanted = f"release `{unknown[0]}` is not in" if unknown else "nothing to keep fresh in"
        raise UsageError(
            f"{wanted} {folder}: {found}",
            hint="train one with `spoor pretrain --release NAME`, or correct stream.releases",
        )
    return list(settings.stream.releases) or live_names(settings.features).usable


def open_stores(
    settings: WorkerSettings,
    *,
    send: Send,
    in_thread: Callable[..., Awaitable[Any]],
    coming: Callable[[], Set[str]],
    observe: Callable[[str], None],
) -> Stores:
    """`observe`: as in GuardedWriter; the others as in Publisher. Slow (seconds).

    Raises UsageError, DataError or InfrastructureError of the rooms below."""
    kafka = settings.kafka
    releases = releases_to_keep_fresh(settings)
    topics = check_topics(kafka, releases)
    writer, close = open_writer(settings, releases, observe=observe)
    publisher = Publisher(
        {release: kafka.embedding_topic(release) for release in releases},
        send=send,
        reads=writer.online,
        in_thread=in_thread,
        coming=coming,
        form=kafka.embedding_format,
    )
    letters = DeadLetterWriter(kafka.dead_letter_topic, send=send, in_thread=in_thread, most_bytes=topics.letter_bytes)
    folder, partitions = settings.features.releases_folder, topics.partitions[kafka.topic]
    return Stores(writer.online, writer, publisher, letters, partitions, folder, in_thread, close)


def open_writer(
    settings: WorkerSettings, releases: Sequence[str], *, observe: Callable[[str], None]
) -> tuple[GuardedWriter, Callable[[], None]]:
    """The writer, and what ends its encoders. Asks store and definitions whether they are as the settings say: keys of
    another type would be rows that no ranker reads."""
    from spoor.store.cache import HistoryCache
    from spoor.store.online import open_online
    from spoor.store.writer import GuardedWriter

    infos = [read_info(settings.features.releases_folder / name) for name in releases]
    if warning := short_histories(infos, kept=settings.history.max_events):
        log.warning(warning)
    online = open_online(settings.features)
    online.check(releases)
    online.require_durable()
    cache = HistoryCache(settings.stream.cache_users)
    with ExitStack() as stack:
        process = stack.enter_context(closing(EncoderProcess(settings.features.releases_folder, releases)))
        threads = DaemonThreads(_ENCODE_THREADS)
        stack.callback(threads.shutdown, wait=False)
        writer = GuardedWriter(
            online, process.encoders, history=settings.history, cache=cache, executor=threads, observe=observe
        )
        return writer, stack.pop_all().close
