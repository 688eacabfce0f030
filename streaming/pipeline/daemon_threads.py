"""Daemon threads for a worker's blocking calls: to its store, and to its encoders."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")


class DaemonThreads(Executor):
    """An executor with daemon threads. Python waits for a ThreadPoolExecutor's threads when it exits: a call that hangs
    in a store would keep a worker alive that has already given up. With one thread calls keep their order."""

    def __init__(self, threads: int = 1) -> None:
        self._calls: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._threads = [threading.Thread(target=self._run, name="worker-calls", daemon=True) for _ in range(threads)]
        self._shut = False
        for thread in self._threads:
            thread.start()

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Raises RuntimeError after `shutdown`, as no thread would run the call."""
        if self._shut:
            raise RuntimeError("the threads have been shut down")
        future: Future[T] = Future()

        def call() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(fn(*args, **kwargs))
            except BaseException as error:  # the caller gets it with the result
                future.set_exception(error)

        self._calls.put(call)
        return future

    async def run(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
        """As `submit`, for a coroutine that waits for the result."""
        return await asyncio.wrap_future(self.submit(fn, *args, **kwargs))

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Ends the threads after the calls that were submitted; `cancel_futures` makes no difference."""
        self._shut = True
        for _ in self._threads:
            self._calls.put(None)
        if wait:
            for thread in self._threads:
                thread.join()

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            call()
