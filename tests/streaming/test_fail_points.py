"""A fail point kills with SIGKILL, at its place and time only."""

import signal
import subprocess
import sys

import pytest

from activity.errors import UsageError
from streaming.fail_points import FailPoint

SCRIPT = """
import sys
from streaming.fail_points import FailPoint
point = FailPoint(sys.argv[1])
for place in sys.argv[2:]:
    print(place, flush=True)
    point.reached(place)
"""


@pytest.mark.parametrize(
    ("setting", "survived"),
    [("after-write", 2), ("after-write:1", 2), ("after-write:2", 3), ("", 4), ("after-publish", 4)],
)
def test_it_kills_at_its_place_the_nth_time(setting, survived):
    places = ["before-read", "after-write", "after-write", "before-read"]
    command = [sys.executable, "-c", SCRIPT, setting, *places]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert len(done.stdout.split()) == survived
    assert done.returncode == (0 if setting in ("", "after-publish") else -signal.SIGKILL)


@pytest.mark.parametrize("setting", ["lunch", "after-write:0", "after-write:x", ":2"])
def test_an_unknown_place_or_count_is_refused(setting):
    with pytest.raises(UsageError, match="fail_point"):
        FailPoint(setting)
