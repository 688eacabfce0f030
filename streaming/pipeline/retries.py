"""A step whose server fails is tried again, after waits that double, and then the worker stops."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from aiokafka.errors import KafkaError
from faust.exceptions import ProducerSendError

from spoor.base.errors import InfrastructureError, SpoorError
from spoor.streaming.status.metrics import StreamMetrics

log = logging.getLogger(__name__)
T = TypeVar("T")

_SERVER_FAILURES = (InfrastructureError, KafkaError, ProducerSendError, ConnectionError, TimeoutError)


class Retries:
    """`tries` in all, the first wait lasts `wait_seconds`."""

    def __init__(self, metrics: StreamMetrics, *, tries: int, wait_seconds: float) -> None:
        self._metrics = metrics
        self._tries = tries
        self._wait_seconds = wait_seconds

    async def run(self, step: str, action: Callable[[], Awaitable[T]]) -> T:
        """Raises InfrastructureError after the last try, and whatever else `action` raises at once."""
        for attempt in range(1, self._tries + 1):
            started = time.perf_counter()
            try:
                result = await action()
                if step != "store":  # the writer's own steps are observed one by one
                    self._metrics.step_seconds.labels(step).observe(time.perf_counter() - started)
                return result
            except _SERVER_FAILURES as error:
                if attempt == self._tries:
                    raise _gave_up(step, attempt, error) from error
                wait = self._wait_seconds * 2 ** (attempt - 1)
                self._metrics.retried.add(1, step)
                log.warning("step %s failed (%s), try %d follows in %.1f s", step, _brief(error), attempt + 1, wait)
            await asyncio.sleep(wait)
        raise AssertionError("unreachable")


def _gave_up(step: str, tries: int, error: BaseException) -> SpoorError:
    hint = getattr(error, "hint", "") or "bring the server back and start the worker again: nothing was lost"
    return InfrastructureError(f"step {step} failed {tries} times, the worker stops: {_brief(error)}", hint=hint)


def _brief(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    name = type(error).__name__
    return text if isinstance(error, SpoorError) or text.startswith(name) else f"{name}: {text}"
