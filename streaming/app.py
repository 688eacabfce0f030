"""The worker's Faust app: its settings, its one agent, and what a rebalance changes. worker.py runs it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

from spoor.base.errors import InfrastructureError, UsageError
from spoor.streaming.kafka.batches import batches
from spoor.streaming.kafka.broker import MAX_REQUEST_BYTES, broker_urls, credentials
from spoor.streaming.kafka.source import KafkaSource
from spoor.streaming.kafka.transport import FreshApp, Leap
from spoor.streaming.orders.steering import Steering
from spoor.streaming.pipeline.processor import BatchProcessor
from spoor.streaming.settings import WorkerSettings
from spoor.streaming.status.lookout import Lookout

if TYPE_CHECKING:
    from faust.types import TP

_POLL_RECORDS = 500  # small polls keep the consumer thread answering the group coordinator
_LINGER_SECONDS = 0.005  # the rows of a batch are sent in a few requests, not in one each


class StreamApp(FreshApp):
    """A Faust app with what its agent feeds, and what watches and steers it."""

    processor: BatchProcessor
    lookout: Lookout
    steering: Steering


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
    app.isolation_level = kafka.isolation_level
    source = KafkaSource(app, commit_seconds=3 * kafka.request_timeout_seconds)
    processor = app.processor = BatchProcessor(settings, source)
    steering = app.steering = Steering(app, processor)
    lookout = app.lookout = Lookout(
        app,
        processor.health,
        processor.metrics,
        read_store=lambda: processor.reads.run(processor.stores.read),
        timeout_seconds=kafka.request_timeout_seconds,
    )
    # Raw bytes: what Faust cannot decode it acknowledges before an agent sees it.
    topic = app.topic(kafka.topic, key_serializer="raw", value_serializer="raw", value_type=bytes, allow_empty=True)

    @app.agent(topic, name="keep-fresh")
    async def keep_fresh(records: Any) -> None:
        taken = batches(
            app,
            records,
            most=stream.batch_events,
            within_seconds=stream.batch_seconds,
            ready=processor.ready,
            stopping=processor.finished,
        )
        async for batch in taken:
            await processor.take(batch)

    async def on_revoked(_: Any, revoked: set[TP], **__: Any) -> None:
        processor.health.revoked()
        if revoked:
            processor.reached("during-rebalance")

    async def on_assigned(_: Any, assigned: set[TP], **__: Any) -> None:
        try:  # a worker joins anew where another project's broker has taken the port of ours
            await asyncio.to_thread(kafka.check_own)
        except UsageError as error:
            processor.fail(error)
            return
        except InfrastructureError:
            pass  # it hangs: the client finds that out
        await steering.assigned(assigned)
        processor.assigned({tp.partition for tp in assigned})
        await lookout.assigned(assigned)

    def on_leap(leap: Leap) -> None:
        lookout.leapt(leap)
        steering.unreported = True  # commits the offset, so that another worker does not count the same records

    app.on_leap = on_leap
    app.on_partitions_revoked.connect(cast(Any, on_revoked))
    app.on_partitions_assigned.connect(cast(Any, on_assigned))
    return app
