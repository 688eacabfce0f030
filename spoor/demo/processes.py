"""The demo's child processes: Feast's own command line, and `spoor stream`."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from spoor.base.errors import InfrastructureError
from spoor.demo.prepare import Demo

# Runs in this interpreter: a `feast` on PATH may belong to another environment. -P: imports no module of the working
# folder.
_FEAST = ("-P", "-c", "from feast.cli.cli import cli; cli()")
WORKER_SECONDS = 180.0  # limit for the worker to join, to catch up, and to stop
# Lines that DuckDB's binding prints about its own leaks at exit.
_LEAKS = re.compile(r"nanobind: |See https://nanobind|\s*- (leaked|\.\.\. skipped)")


def run_feast(demo: Demo, command: str) -> None:
    """Runs Feast's own command line (`feast …`) with the demo's settings. Raises InfrastructureError."""
    environment = {**os.environ, "SPOOR_CONFIG": str(demo.config.absolute()), "FEAST_USAGE": "False"}
    done = subprocess.run(
        [sys.executable, *_FEAST, *shlex.split(command)[1:]],
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        env=environment,
        check=False,
    )
    if done.returncode:
        last = "\n".join([line for line in (done.stdout + done.stderr).splitlines() if not _LEAKS.match(line)][-10:])
        raise InfrastructureError(f"`{command}` failed:\n{last}", hint="run it by hand to see all of its output")


class Worker:
    """`spoor stream` in a separate process, as an operator would run it."""

    def __init__(self, demo: Demo, *, seconds: float) -> None:
        """`seconds`: the worker's own timeout, so that a killed demo does not leave a worker running."""
        self._seconds = seconds
        self._summary = demo.folder / "state" / "stream-summary.json"
        self._log = demo.folder / "stream.log"
        self._demo = demo

    def __enter__(self) -> Worker:
        command = [sys.executable, "-m", "spoor", "--config", str(self._demo.config)]
        command += ["stream", "--from-lake", "--summary", str(self._summary)]
        command += ["--timeout-seconds", str(self._seconds)]
        with open(self._log, "wb") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def wait_for(self, condition: Callable[[], bool], what: str) -> None:
        """Waits for `condition`; `what` completes "has not …" in the error. Raises InfrastructureError, with the last
        lines of the log, if the worker ends or takes too long."""
        deadline = time.monotonic() + WORKER_SECONDS
        while not condition():
            try:
                self._process.wait(0.2)
                found = f"ended with exit code {self._process.returncode} before it had {what}"
            except subprocess.TimeoutExpired:
                if time.monotonic() < deadline:
                    continue
                found = f"has not {what} within {WORKER_SECONDS:.0f} s"
            last = "\n".join(self._log.read_text(encoding="utf-8", errors="replace").splitlines()[-10:])
            raise InfrastructureError(f"the worker {found}:\n{last}", hint=f"the whole log is in {self._log}")

    def stop(self) -> dict[str, Any]:
        """Stops the worker with SIGTERM, as an orchestrator would; returns its summary."""
        self._process.send_signal(signal.SIGTERM)
        if self._process.wait(WORKER_SECONDS) != 0:
            raise InfrastructureError("the worker did not stop cleanly", hint=f"see {self._log}")
        return json.loads(self._summary.read_bytes())
