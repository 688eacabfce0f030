"""Named places where a test lets a worker die as if its power was cut: SIGKILL, no clean-up, no commit.

`python -m tests.fail_points PLACE[:N] ARGUMENT…` is `spoor ARGUMENT…` whose worker dies the N-th time that it reaches
the place. The product has no such switch: it says where it is (BatchProcessor.reached), and nobody listens.
"""

from __future__ import annotations

import os
import signal
import sys

from spoor.streaming.pipeline.processor import BatchProcessor

FAIL_POINTS = ("before-read", "after-encode", "after-write", "after-publish", "during-rebalance")


class FailPoint:
    """`text` is NAME, or NAME:N to die the N-th time that the place is reached."""

    def __init__(self, text: str) -> None:
        self.name, _, times = text.partition(":")
        self._left = int(times or 1)
        assert self.name in FAIL_POINTS and self._left > 0, text

    def reached(self, name: str) -> None:
        """Does not return where this is the place and the time."""
        if name != self.name:
            return
        self._left -= 1
        if self._left <= 0:
            print(f"fail point {name}: killing this worker", file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)

    def install(self) -> None:
        """Into the workers that this process starts from now on."""
        BatchProcessor.reached = lambda _, place: self.reached(place)


if __name__ == "__main__":
    from spoor.cli import main

    FailPoint(sys.argv[1]).install()
    main(sys.argv[2:])
