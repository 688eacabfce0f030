"""Threads for blocking calls: one call at a time each, errors to who waits, and no hold on a process that ends."""

import subprocess
import sys
import threading

import pytest

from spoor.streaming.pipeline.daemon_threads import DaemonThreads


def test_calls_run_one_after_the_other_in_one_thread():
    thread = DaemonThreads()
    seen: list[int] = []
    futures = [thread.submit(lambda n=n: (seen.append(n), threading.get_ident())[1]) for n in range(20)]
    assert len({future.result(10) for future in futures}) == 1
    assert seen == list(range(20))
    thread.shutdown()


def test_two_threads_wait_for_one_another():
    threads, both = DaemonThreads(2), threading.Barrier(2)
    futures = [threads.submit(both.wait, 10) for _ in range(2)]
    assert {future.result(10) for future in futures} == {0, 1}
    threads.shutdown()


def test_an_error_belongs_to_its_call_and_the_next_goes_on():
    thread = DaemonThreads()
    with pytest.raises(ZeroDivisionError):
        thread.submit(lambda: 1 // 0).result(10)
    assert thread.submit(lambda: 7).result(10) == 7
    thread.shutdown()


def test_a_call_after_the_end_is_refused_and_does_not_wait_for_ever():
    thread = DaemonThreads()
    thread.shutdown()
    with pytest.raises(RuntimeError, match="shut down"):
        thread.submit(lambda: 7)


def test_a_call_that_hangs_does_not_keep_the_process():
    script = """
import threading
from spoor.streaming.pipeline.daemon_threads import DaemonThreads
started = threading.Event()
thread = DaemonThreads()
thread.submit(lambda: (started.set(), threading.Event().wait()))
started.wait()
thread.shutdown(wait=False)
"""
    assert subprocess.run([sys.executable, "-c", script], timeout=60).returncode == 0
