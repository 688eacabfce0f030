"""Opens what a batch is written with: the encoders of the live releases, the online store, and the writer.

The heavy import (Feast) happens here, when a worker starts, and not when this module is imported.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from spoor.base.errors import UsageError
from spoor.encoder.release.info import read_info, short_histories
from spoor.feature_repo.releases import live_releases
from spoor.streaming.pipeline.daemon_threads import DaemonThreads
from spoor.streaming.pipeline.encoder_process import EncoderProcess
from spoor.streaming.settings import WorkerSettings

if TYPE_CHECKING:
    from spoor.store.online import OnlineStore
    from spoor.store.writer import GuardedWriter, HistoryCache

log = logging.getLogger(__name__)
_ENCODE_THREADS = 2  # one waits for the encoder, one has the next users ready for it


@dataclass(frozen=True)
class Stores:
    online: OnlineStore
    writer: GuardedWriter
    cache: HistoryCache
    close: Callable[[], None]  # ends what encodes


def releases_to_keep_fresh(settings: WorkerSettings) -> list[str]:
    """The configured releases, else every live one in the folder that Feast knows (store/applied.py). Raises UsageError
    for an unknown name or none. Slow: it opens the registry."""
    from spoor.store.applied import live_names

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


def open_stores(settings: WorkerSettings, releases: Sequence[str], *, observe: Callable[[str], None]) -> Stores:
    """Asks store and definitions whether they are as the settings say: keys of another type would be rows that nobody
    reads. Raises UsageError, DataError or InfrastructureError of the rooms below."""
    from spoor.store.online import open_online
    from spoor.store.writer import GuardedWriter, HistoryCache

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
        return Stores(online, writer, cache, close=stack.pop_all().close)
