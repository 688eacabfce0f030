"""A fail point kills with SIGKILL, at its place and time only; the product has no switch for it."""

import signal
import subprocess
import sys

import pytest

from spoor.base.errors import UsageError
from spoor.config import load_settings
from spoor.streaming.pipeline.processor import BatchProcessor
from tests.fail_points import FailPoint

SCRIPT = """
import sys
from spoor.streaming.pipeline.processor import BatchProcessor
from tests.fail_points import FailPoint
if sys.argv[1]:
    FailPoint(sys.argv[1]).install()
worker = object.__new__(BatchProcessor)
for place in sys.argv[2:]:
    print(place, flush=True)
    worker.reached(place)
"""


@pytest.mark.parametrize(
    ("point", "survived"),
    [("after-write", 2), ("after-write:1", 2), ("after-write:2", 3), ("", 4), ("after-publish", 4)],
)
def test_it_kills_at_its_place_the_nth_time(point, survived):
    places = ["before-read", "after-write", "after-write", "before-read"]
    command = [sys.executable, "-c", SCRIPT, point, *places]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert len(done.stdout.split()) == survived, done.stderr
    assert done.returncode == (0 if point in ("", "after-publish") else -signal.SIGKILL)


@pytest.mark.parametrize("point", ["lunch", "after-write:0", ":2"])
def test_an_unknown_place_or_count_is_refused(point):
    with pytest.raises(AssertionError, match=point):
        FailPoint(point)


def test_no_setting_kills_a_worker(settings):
    environ = {"SPOOR_STREAM__FAIL_POINT": "after-write"}
    with pytest.raises(UsageError, match=r"unknown setting `stream\.fail_point`"):
        load_settings(environ=environ)
    assert not [key for key, _, _ in settings.shown() if "fail" in key]
    assert BatchProcessor.reached(object.__new__(BatchProcessor), "after-write") is None
