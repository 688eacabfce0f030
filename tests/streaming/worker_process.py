"""One worker as a process of its own, settings from SPOOR_CONFIG and the environment; `fail_point` as in
tests/fail_points.py. Ends as the command line does: error and hint on stderr, the error's exit code."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from spoor.base.errors import SpoorError
from spoor.config import load_settings
from spoor.streaming.worker import run_worker
from tests.fail_points import FailPoint


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("summary", type=Path)
    parser.add_argument("--count", type=int)
    parser.add_argument("--fail-point", type=FailPoint)
    given = parser.parse_args(arguments)
    if given.fail_point is not None:
        given.fail_point.install()
    try:
        run_worker(load_settings(), count=given.count, timeout_seconds=240, summary_file=given.summary)
    except SpoorError as error:
        print(f"error: {error.message}\nhint: {error.hint}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main(sys.argv[1:])
