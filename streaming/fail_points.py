"""Named places where a test lets the worker die as if its power was cut: SIGKILL, no clean-up, no commit."""

from __future__ import annotations

import os
import signal
import sys

from activity.errors import UsageError
from streaming.settings import FAIL_POINTS


class FailPoint:
    """`setting` is empty (never dies), NAME, or NAME:N to die the N-th time that the place is reached."""

    def __init__(self, setting: str) -> None:
        name, _, times = setting.partition(":")
        if setting and (name not in FAIL_POINTS or not (times or "1").isdecimal() or times == "0"):
            raise UsageError(
                f"stream.fail_point is `{setting}`",
                hint=f"expected NAME or NAME:N with NAME one of {', '.join(FAIL_POINTS)}",
            )
        self.name = name
        self._left = int(times or 1)

    def reached(self, name: str) -> None:
        """Does not return where this is the configured place and time."""
        if not name or name != self.name:
            return
        self._left -= 1
        if self._left <= 0:
            print(f"fail point {name}: killing this worker", file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
