"""What a worker says of its servers when it asks them."""

import asyncio
import threading

import pytest

import spoor.streaming.status.lookout
from spoor.streaming.app import build_app
from tests.streaming.conftest import World


def test_a_store_that_is_asked_while_a_batch_is_written_answers_and_one_that_hangs_is_called_silent(
    world: World, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(spoor.streaming.status.lookout, "_ANSWER_SECONDS", 0.2)
    app = build_app(world.settings)
    processor = app.processor
    busy = threading.Event()

    async def told() -> list[str]:
        await app.lookout.ask_store()
        return [line for line in processor.health.not_ready() if "store" in line]

    async def ask() -> None:
        await processor.open()
        processor.writes.submit(busy.wait, 60)  # as a batch that is being encoded
        assert await told() == []
        hangs = asyncio.create_task(processor.reads.run(busy.wait, 60))
        assert await told() == ["the store has not answered for 0 s"]
        busy.set()
        await hangs
        assert await told() == []

    asyncio.run(ask())
    processor.close()
