"""Commits that the broker answers late."""

import asyncio
from collections.abc import Mapping

import pytest
from faust.types import TP

from spoor.config import Settings
from spoor.streaming.app import build_app
from spoor.streaming.kafka.source import KafkaSource


def test_a_commit_that_the_broker_answers_too_late_is_made_up_for(settings: Settings, monkeypatch: pytest.MonkeyPatch):
    app, partition = build_app(settings), TP("activity", 0)
    source, consumer = KafkaSource(app, commit_seconds=0.03), app.fresh_consumer

    async def run() -> list[int | None]:
        broker_is_back = asyncio.Event()

        async def commit(_: Mapping[TP, int]) -> bool:
            return await broker_is_back.wait()

        async def flush() -> None: ...

        monkeypatch.setattr(consumer, "assignment", lambda: {partition})
        monkeypatch.setattr(consumer, "_commit", commit)
        monkeypatch.setattr(app.producer, "flush", flush)
        committed = consumer._committed_offset
        committed[partition] = 10
        consumer._acked[partition].extend([10, 11, 12])
        with pytest.raises(TimeoutError):
            await source.commit()
        broker_is_back.set()
        await source.commit()  # the next try
        seen = [committed[partition]]
        consumer._acked[partition].extend([13, 14])
        await source.commit()
        return [*seen, committed[partition]]

    assert asyncio.run(run()) == [13, 15]
    app.processor.close()
