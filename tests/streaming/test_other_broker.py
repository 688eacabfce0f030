"""A worker that runs while the port of its embedded broker is taken by another project's."""

import asyncio
import dataclasses
from pathlib import Path

from faust.types import TP

from spoor.base.errors import UsageError
from spoor.broker.settings import KafkaSettings
from spoor.config import Settings
from spoor.streaming.app import StreamApp, build_app


async def joined(settings: Settings) -> StreamApp:
    app = build_app(settings)
    await app.on_partitions_assigned.send({TP(settings.kafka.topic, 0)})
    return app


def test_a_worker_that_joins_its_group_at_another_project_s_broker_stops(
    settings: Settings, kafka: KafkaSettings, tmp_path: Path
) -> None:
    other = dataclasses.replace(settings, kafka=dataclasses.replace(kafka, folder=tmp_path / "never-started"))
    app = asyncio.run(joined(other))
    assert isinstance(app.processor.failure, UsageError)
    assert "is not the broker of" in app.processor.failure.message
    assert app.processor.finished.is_set()
