"""Progress of a job on stderr. Does not import Beam, which takes seconds and logs: some commands run no pipeline."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from spoor.base.terminal import progress_bar
from spoor.batch.job_metrics import JobMetrics


@contextmanager
def progress(
    label: str, *, total: int, finished: Callable[[], set[str]], metrics: JobMetrics | None = None
) -> Iterator[None]:
    """Shows on stderr how many of `total` work items are done: a bar on a terminal, else one line per item. Also writes
    the counts to `metrics`, if given.

    `finished` returns the keys of the finished items. A thread polls it twice a second: the manifest is on disk, so
    this works with every runner.
    """
    stop = threading.Event()
    show = _show_bar if sys.stderr.isatty() else _show_lines

    def counted() -> set[str]:
        keys = finished()
        if metrics is not None:
            metrics.items(done=len(keys), planned=total)
        return keys

    counted()
    thread = threading.Thread(target=show, args=(label, total, counted, stop), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        counted()


def _show_bar(label: str, total: int, finished: Callable[[], set[str]], stop: threading.Event) -> None:
    with progress_bar(label, total=total) as show:
        while not stop.wait(0.5):
            show(completed=len(finished()))


def _show_lines(label: str, total: int, finished: Callable[[], set[str]], stop: threading.Event) -> None:
    shown: set[str] = set()
    last = False
    while not last:
        last = stop.wait(0.5)
        for key in sorted(finished() - shown):
            shown.add(key)
            print(f"{label}: {key} done ({len(shown)}/{total})", file=sys.stderr)
