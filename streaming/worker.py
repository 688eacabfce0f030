"""The stream worker: activity events in, fresh histories and embeddings in Feast and in the embedding topics.

`build_app` wires one Faust agent to `BatchProcessor.take` (processor.py), the one place where a batch is
decoded, written, published and only then acknowledged; `run_worker` runs it from start to end. The steps, and what a
crash right after each of them does:

 1. take up to `batch_events` records in `batch_seconds`, more while the    nothing happened: delivered again
    batch ahead is not written
 2. leave out records of an earlier generation of the group                 their new owner takes them
 3. decode (in its own thread; may ask a schema registry)                   nothing happened: delivered again
 4. produce the dead letters, await their acknowledgement                   produced again under the same key
 5. group by user; read, merge (in another thread), encode (in a process)   nothing happened: delivered again
 6. compare-and-set write of history and embeddings (in that thread)        delivered again, merging changes nothing,
                                                                            the rows found are published
 7. publish every user's row, changed or not, await the acknowledgements    published again, same rows
 8. read the rows again, publish who moved on meanwhile                     delivered again, steps 7 and 8 repeat
 9. acknowledge the records in order, commit the offsets                    after the commit: done

Three batches are under way: while one is in steps 5 and 6, the one before it is in 7 to 9 and the one behind, if it is
full, in 2 to 4.
They keep their order, as Faust commits the offset after the last record acknowledged, whatever came before it.

A step whose server fails is tried `retries` times with growing waits; then the worker stops, offsets uncommitted, and
`run_worker` raises InfrastructureError (exit code 3). Nothing a record holds stops the worker: it is a dead letter.

Metrics (Prometheus, prefix spoor_stream_):
  records_total             records taken                decoded_events_total      records that became events
  events_total              events written               dead_letters_total        by reason
  mismatched_keys_total     key is not the user id       unknown_names_total       by field
  users_total               user rows handled            changed_users_total       whose history the batch changed
  cache_hits_total          histories found in memory    cache_misses_total        histories read from the store
  embedding_rows_total      by release: fresh rows       stale_rows_total          by release: behind the history
  refused_writes_total      merged and tried again       encode_failures_total     embedding left to the sweep
  republished_rows_total    another writer moved on      lost_events_total         deleted before they were read
  skipped_records_total     left to their new owner      retries_total             by step
  forgotten_events_total    a forgotten user's past      postponed_encodes_total   too soon after the last
  set_aside_users_total     history cannot be read
  partitions                assigned now                 waiting_users             whose embedding waits now
  paused                    1 while paused by order
  batch_records             histogram                    batch_users               histogram of different users
  freshness_seconds         append → in the store        step_seconds              by step: decoded, read, merged,
  lag_records               by partition, not committed                            encoded, written, dead-letters,
                                                         published, committed
They are served beside /healthz and /readyz (streaming/status/status_server.py) on stream.metrics_port.
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
from typing import TYPE_CHECKING, Any, cast

import faust
from aiokafka.errors import KafkaError
from faust.exceptions import FaustError

from spoor.base.errors import InfrastructureError, UsageError
from spoor.base.files import atomic_write
from spoor.base.terminal import log_handler
from spoor.broker.compression import missing_codec
from spoor.broker.settings import IsolationLevel
from spoor.streaming.kafka.batches import batches
from spoor.streaming.kafka.broker import MAX_REQUEST_BYTES, broker_urls, credentials
from spoor.streaming.kafka.transport import FreshConsumer, FreshTransport
from spoor.streaming.orders.steering import Steering
from spoor.streaming.pipeline.processor import BatchProcessor
from spoor.streaming.settings import StreamSettings, WorkerSettings
from spoor.streaming.status.metrics import StreamSummary
from spoor.streaming.status.status_server import serve

if TYPE_CHECKING:
    from faust.types import TP

log = logging.getLogger(__name__)

_POLL_RECORDS = 500  # small polls keep the consumer thread answering the group coordinator
_LINGER_SECONDS = 0.005  # the rows of a batch are sent in a few requests, not in one each
_STOP_SECONDS = 60.0  # for the batches under way and their commits
_WATCH_SECONDS = 5.0
_LOOK_SECONDS = 2.0  # between two looks for metrics and probes
_SWITCH_SECONDS = 0.0001  # the threads beside the loop ask for Python's lock with each answer that they get
_STEER_SECONDS = 1.0  # between two looks for orders and for users who have waited enough
_ANSWER_SECONDS = 10.0
_REPEAT_SECONDS = 30.0  # between two equal lines of a library


class StreamApp(faust.App):
    """A Faust app without tables or web server, and the processor that its agent feeds."""

    logger = logging.getLogger("faust.app")  # mode would name it after this module and so count its lines as ours
    processor: BatchProcessor
    isolation_level: IsolationLevel
    steering: Steering

    def _create_directories(self) -> None:
        """Faust keeps tables and logs there; this app has neither, and the state folder may be read-only."""

    def _new_transport(self) -> FreshTransport:
        return FreshTransport(self.conf.broker_consumer, self)


def build_app(settings: WorkerSettings) -> StreamApp:
    """The Faust app with its one agent. Connects to nothing; `run_worker` starts it."""
    kafka, stream = settings.kafka, settings.stream
    app = StreamApp(
        stream.group,
        broker=broker_urls(kafka),
        broker_credentials=credentials(kafka),
        broker_client_id="spoor-stream",
        broker_session_timeout=kafka.session_timeout_seconds,
        broker_heartbeat_interval=kafka.session_timeout_seconds / 4,
        # Faust refuses a request timeout below the session's.
        broker_request_timeout=max(kafka.request_timeout_seconds, kafka.session_timeout_seconds + 1),
        broker_max_poll_records=_POLL_RECORDS,
        consumer_auto_offset_reset="none",  # a leap to the earliest record is counted (streaming/kafka/transport.py)
        producer_request_timeout=kafka.request_timeout_seconds,
        producer_linger=_LINGER_SECONDS,
        producer_max_request_size=MAX_REQUEST_BYTES,
        stream_buffer_maxsize=2 * stream.batch_events,
        topic_allow_declare=False,
        topic_disable_leader=True,
        web_enabled=False,
        autodiscover=False,
    )
    app.processor = BatchProcessor(settings, app)
    app.isolation_level = kafka.isolation_level
    app.steering = Steering(app)
    # Raw bytes: what Faust cannot decode it acknowledges before an agent sees it.
    topic = app.topic(kafka.topic, key_serializer="raw", value_serializer="raw", value_type=bytes, allow_empty=True)

    @app.agent(topic, name="keep-fresh")
    async def keep_fresh(records: Any) -> None:
        taken = batches(
            app,
            records,
            most=stream.batch_events,
            within_seconds=stream.batch_seconds,
            ready=app.processor.ready,
            stopping=app.processor.finished,
        )
        async for batch in taken:
            await app.processor.take(batch)

    async def on_revoked(_: Any, revoked: set[TP], **__: Any) -> None:
        app.processor.health.revoked()
        if revoked:
            app.processor.reached("during-rebalance")

    async def on_assigned(_: Any, assigned: set[TP], **__: Any) -> None:
        try:  # a worker joins anew where another project's broker has taken the port of ours
            await asyncio.to_thread(kafka.check_own)
        except UsageError as error:
            app.processor.fail(error)
            return
        except InfrastructureError:
            pass  # it hangs: that is the client's to find out
        await app.steering.assigned()
        await app.processor.assigned(assigned)

    app.on_partitions_revoked.connect(cast(Any, on_revoked))
    app.on_partitions_assigned.connect(cast(Any, on_assigned))
    return app


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
                await app.processor.lookout.look()
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
            await asyncio.wait_for(app._crashed.wait(), min(_WATCH_SECONDS, stall_seconds))
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
        await cast(FreshConsumer, app.consumer).standing(_ANSWER_SECONDS)
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
