"""The stream worker from start to end: activity events in, fresh histories and embeddings in Feast and in the embedding
topics.

app.py wires one Faust agent to `BatchProcessor.take` (pipeline/processor.py), where the nine steps of a batch are.
`run_worker` opens the stores, joins the group, watches, and finishes the batches under way. When a server stays away it
raises InfrastructureError (exit code 3), offsets uncommitted.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from aiokafka.errors import KafkaError
from faust.exceptions import FaustError

from spoor.base.errors import InfrastructureError, UsageError
from spoor.base.files import atomic_write
from spoor.base.terminal import log_handler
from spoor.broker.compression import missing_codec
from spoor.streaming.app import StreamApp, build_app
from spoor.streaming.pipeline.processor import BatchProcessor
from spoor.streaming.settings import StreamSettings, WorkerSettings
from spoor.streaming.status.metrics import StreamSummary
from spoor.streaming.status.status_server import serve

log = logging.getLogger(__name__)

_STOP_SECONDS = 60.0  # for the batches under way and their commits
_WATCH_SECONDS = 5.0
_LOOK_SECONDS = 2.0  # between two looks for metrics and probes
_SWITCH_SECONDS = 0.0001  # the threads beside the loop ask for Python's lock with each answer that they get
_STEER_SECONDS = 1.0  # between two looks for orders and for users who have waited enough
_ANSWER_SECONDS = 10.0
_REPEAT_SECONDS = 30.0  # between two equal lines of a library


def run_worker(
    settings: WorkerSettings,
    *,
    count: int | None = None,
    timeout_seconds: float | None = None,
    summary_file: Path | None = None,
) -> StreamSummary:
    """Works until SIGTERM or SIGINT, until at least `count` records were taken, or for `timeout_seconds`; in each case
    the batches under way are finished and committed.

    Raises UsageError or DataError for what must be changed first, InfrastructureError when a server stays away; the
    offsets of what was not written are then uncommitted. The summary file is written in both cases."""
    sys.setswitchinterval(_SWITCH_SECONDS)
    with _quiet_libraries():
        return asyncio.run(_run(settings, count, timeout_seconds, summary_file))


async def _run(
    settings: WorkerSettings, count: int | None, timeout_seconds: float | None, summary_file: Path | None
) -> StreamSummary:
    app = build_app(settings)
    processor = app.processor
    processor.count = count
    metrics = processor.metrics
    _stop_on_signals(processor.finished)
    stop_serving = _serve_status(app, settings.stream)
    tasks: list[asyncio.Task[None]] = []
    try:
        await app.steering.begin()
        await processor.open()
        _leave_out_of_garbage_collection()
        if not processor.finished.is_set():
            metrics.start()
            # The watch comes first: a broker that dies while the worker joins would let it join for ever.
            tasks.append(asyncio.create_task(_watch(app, settings.stream.stall_seconds)))
            tasks.append(asyncio.create_task(_start(app, settings)))
            tasks.append(asyncio.create_task(_look(app)))
            tasks.append(asyncio.create_task(_steer(app)))
            with suppress(TimeoutError):
                await asyncio.wait_for(processor.finished.wait(), timeout_seconds)
    finally:
        processor.finished.set()  # after a timeout it is not
        for task in tasks:
            task.cancel()
        if app.started:
            await _stop(app)
        processor.close()
        stop_serving()
        gc.unfreeze()
        summary = metrics.summary()
        if summary_file is not None:
            atomic_write(summary_file, json.dumps(asdict(summary)).encode())
    _log_summary(summary)
    if processor.failure is not None:
        raise processor.failure
    return summary


async def _start(app: StreamApp, settings: WorkerSettings) -> None:
    """Joins the group; returns once partitions are assigned and their offsets known."""
    try:
        await app.start()
    except KafkaError as error:
        message = f"the worker cannot join group `{settings.stream.group}` at {settings.kafka.address}: {error}"
        hint = "check the broker and the rights of this user on the group"
        app.processor.fail(InfrastructureError(message, hint=hint))
    except Exception as error:
        app.processor.fail(error)


async def _stop(app: StreamApp) -> None:
    """Finishes the batches under way and commits them, and encodes who was to wait; after a failure commits only what
    was acknowledged before."""
    processor = app.processor
    if processor.failure is None:
        await _within_stop_time(processor, processor.encode_everyone_postponed())
    if processor.failure is not None:
        app.conf.stream_wait_empty = False
        app.consumer.unacked.clear()
    await _within_stop_time(processor, app.stop())
    if processor.failure is None:
        await _within_stop_time(processor, processor.finish())


async def _within_stop_time(processor: BatchProcessor, step: Awaitable[Any]) -> None:
    """What a step of stopping raises is the worker's failure, if it has none yet."""
    try:
        await asyncio.wait_for(step, _STOP_SECONDS)
    except TimeoutError:
        processor.fail(
            InfrastructureError(
                f"the worker did not stop within {_STOP_SECONDS:.0f} s",
                hint="nothing was lost: what is not committed is delivered again",
            )
        )
    except Exception as error:
        processor.fail(error)


async def _look(app: StreamApp) -> None:
    """Keeps lag and probes up to date from when the worker has joined its group."""
    while not app.processor.finished.is_set():
        if app.processor.health.joined:
            try:
                await app.lookout.look()
            except Exception as error:  # a look that ended in silence would make a worker that works look dead
                app.processor.fail(error)
        await asyncio.sleep(_LOOK_SECONDS)


async def _steer(app: StreamApp) -> None:
    """Follows orders, and encodes who has waited enough, from when the worker has joined its group."""
    while not app.processor.finished.is_set():
        if app.processor.health.joined:
            try:
                await app.steering.follow()
                await app.processor.encode_postponed()
            except Exception as error:  # in silence it would leave embeddings behind for ever
                app.processor.fail(error)
        await asyncio.sleep(_STEER_SECONDS)


async def _watch(app: StreamApp, stall_seconds: float) -> None:
    """Ends the worker when Faust has crashed, or when events have waited for too long or the broker does not answer: a
    consumer that hangs after a rebalance looks alive to everybody else."""
    processor, started = app.processor, time.monotonic()
    while not processor.finished.is_set():
        with suppress(TimeoutError):
            await asyncio.wait_for(app.wait_for_crash(), min(_WATCH_SECONDS, stall_seconds))
        if app.crashed:
            reason = app.crash_reason
            message = f"the stream crashed: {type(reason).__name__}: {reason}"
            crash = InfrastructureError(message, hint="nothing was lost: start the worker again")
            processor.fail((reason and missing_codec(reason)) or crash)
        elif stall := processor.health.stall() or await _stall_before_joining(app, started, stall_seconds):
            message = f"no progress for {stall_seconds:.0f} s although {stall}"
            hint = "nothing was lost: start the worker again (stream.stall_seconds sets this limit)"
            processor.fail(InfrastructureError(message, hint=hint))


async def _stall_before_joining(app: StreamApp, started: float, stall_seconds: float) -> str:
    """As `Health.stall`, while nothing looks yet: a broker that dies meanwhile would let the worker join for ever."""
    if app.processor.health.joined or time.monotonic() - started < stall_seconds:
        return ""
    try:
        await app.fresh_consumer.standing(_ANSWER_SECONDS)
    except (TimeoutError, KafkaError, FaustError):
        return "the broker does not answer"
    return ""


def _leave_out_of_garbage_collection() -> None:
    """What is loaded now stays until the end: to pass over it stopped every thread for a quarter of a second, and Faust
    asks for that in every rebalance."""
    gc.collect()
    gc.freeze()


def _stop_on_signals(finished: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        # Only the main thread can set handlers; elsewhere the caller stops the worker by count or timeout.
        with suppress(ValueError, RuntimeError):
            loop.add_signal_handler(number, finished.set)


def _serve_status(app: StreamApp, stream: StreamSettings) -> Callable[[], None]:
    """Serves metrics and probes, if a port is set; returns what ends that."""
    if not stream.metrics_port:
        return lambda: None
    processor = app.processor
    try:
        return serve(processor.metrics.registry, processor.health, host=stream.metrics_host, port=stream.metrics_port)
    except OSError as error:
        raise UsageError(
            f"metrics cannot be served on {stream.metrics_host}:{stream.metrics_port}: {error.strerror or error}",
            hint="set stream.metrics_host to an address of this machine and stream.metrics_port to a free port, "
            "or the port to 0 for none",
        ) from error


def _log_summary(summary: StreamSummary) -> None:
    short = replace(summary, freshness_edges_ms=[], freshness_counts=[])
    fields = {name: value for name, value in asdict(short).items() if not isinstance(value, list)}
    log.info("stopped %s", " ".join(f"{name}={value}" for name, value in fields.items()))


class _NotAgain(logging.Filter):
    """Lets a library's line through once in `seconds`: aiokafka repeats its errors ten times a second while a broker
    is away."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self._seconds = seconds
        self._told: dict[tuple[str, object], float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if not record.name.startswith(("aiokafka", "faust", "mode")):
            return True
        now = time.monotonic()
        if now - self._told.get((record.name, record.msg), -self._seconds) < self._seconds:
            return False
        self._told[record.name, record.msg] = now
        return True


@contextmanager
def _quiet_libraries() -> Iterator[None]:
    """Worker lines from INFO, library lines from ERROR, all to stderr, one line each. Where the caller has set up
    logging, levels and handlers stay as they are; in both cases the libraries' repetitions are left out."""
    root, ours = logging.getLogger(), logging.getLogger("spoor.streaming")
    levels = root.level, ours.level
    own = None if root.handlers else log_handler()
    if own is not None:
        root.addHandler(own)
        root.setLevel(logging.ERROR)
        ours.setLevel(logging.INFO)
    handlers, quiet = list(root.handlers), _NotAgain(_REPEAT_SECONDS)
    for handler in handlers:
        handler.addFilter(quiet)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(quiet)
        if own is not None:
            root.removeHandler(own)
            root.setLevel(levels[0])
            ours.setLevel(levels[1])
