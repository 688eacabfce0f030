"""`--runner flink`: a genuine Apache Flink for one batch job, through Beam's job server.

The job server is a Java process that lives as long as the job. With `flink.master = "[local]"` Flink runs inside it;
otherwise it submits the job to the cluster at that address. `flink.environment` decides where the job's Python runs:
LOOPBACK in the submitting process, EXTERNAL in Beam's worker pools beside the task managers.
"""

from __future__ import annotations

import logging
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from spoor.base.errors import InfrastructureError, UsageError
from spoor.batch.jobs import LOCAL, Runner
from spoor.batch.settings import FlinkSettings
from spoor.broker.reach import listens
from spoor.config import Settings
from spoor.services.java import Artifact, await_start, java_executable, last_lines

JOB_SERVER_CLASS = "org.apache.beam.runners.flink.FlinkJobServerDriver"
# Java packages that Flink reads by reflection; up to Java 11 that needs no option.
OPENED = [f"--add-opens=java.base/java.{name}=ALL-UNNAMED" for name in ("lang", "util", "nio", "time", "net")]
START_SECONDS = 120.0  # a start takes about 5 s
_STOP_SECONDS = 20.0
_CONNECT_SECONDS = 1.0
_INSTEAD = "set flink.job_endpoint to a Beam job server that you run"
_FLINK = Artifact(
    "org.apache.beam:beam-runners-flink-1.19:2.62.0", "Apache Flink 1.19 for Beam", megabytes=152, instead=_INSTEAD
)
_LOGGING = Artifact("org.slf4j:slf4j-simple:1.7.36", "Flink's log binding", megabytes=1, instead=_INSTEAD)
_LOG = logging.getLogger(__name__)


def flink_jars() -> list[Path]:
    """The jars of Flink with Beam's runner, downloaded at first use. Raises InfrastructureError."""
    return [*_FLINK.jars(), *(jar for jar in _LOGGING.jars() if jar.name.startswith("slf4j-simple"))]


def flink_command(main_class: str, arguments: list[str], *, heap_mb: int) -> list[str]:
    """The command that runs one of Flink's main classes."""
    return [
        java_executable(),
        f"-Xmx{heap_mb}m",
        *OPENED,
        "-XX:-UsePerfData",
        "-Djava.awt.headless=true",
        "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
        "-classpath",
        ":".join(str(jar) for jar in flink_jars()),
        main_class,
        *arguments,
    ]


@contextmanager
def batch_runner(settings: Settings, name: str, options: tuple[str, ...], *, start: bool = True) -> Iterator[Runner]:
    """Yields the runner of `--runner NAME` and its `--runner-option KEY=VALUE`. The servers that the job needs run
    inside the block.

    `local`: in this process; `flink`; any other name is Beam's and passed on unchanged. Without `start` no server is
    started, for a job that runs nothing. Raises UsageError for an option without a value, InfrastructureError if Flink
    does not start.
    """
    if malformed := next((option for option in options if option.find("=") < 1), None):
        raise UsageError(
            f"--runner-option {malformed}: found no value", hint="write KEY=VALUE, as Beam names the option"
        )
    given = tuple(f"--{option}" for option in options)
    if name == "local":
        if options:
            raise UsageError("the local runner takes no --runner-option", hint="name a runner with --runner")
        yield LOCAL
    elif not start:
        yield Runner(name, given)
    elif name == "flink":
        with _job_endpoint(settings) as endpoint:
            options = (*_portable_options(settings.flink, endpoint), *given)
            yield Runner("PortableRunner", options, retries=settings.flink.retries)
    else:
        yield Runner(name, given)


def _portable_options(flink: FlinkSettings, endpoint: str) -> tuple[str, ...]:
    options = [
        f"--job_endpoint={endpoint}",
        f"--environment_type={flink.environment}",
        f"--parallelism={flink.parallelism}",
    ]
    if flink.worker_pool:
        options.append(f"--environment_config={flink.worker_pool}")
    return tuple(options)


@contextmanager
def _job_endpoint(settings: Settings) -> Iterator[str]:
    """host:port of the configured job server, or of one that runs during the block."""
    flink = settings.flink
    if flink.job_endpoint:
        yield flink.job_endpoint
        return
    folder = settings.state_folder / "flink"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InfrastructureError(
            f"cannot make `{folder}`: {error.strerror}", hint="check permissions and free space of the state folder"
        ) from error
    log = folder / "job-server.log"
    with tempfile.TemporaryDirectory(prefix="artifacts-", dir=folder) as artifacts, open(log, "wb") as output:
        ports = _free_ports(3)
        address = f"127.0.0.1:{ports[0]}"
        arguments = [
            f"--flink-master={flink.master}",
            "--job-host=127.0.0.1",
            f"--job-port={ports[0]}",
            f"--artifact-port={ports[1]}",
            f"--expansion-port={ports[2]}",
            f"--artifacts-dir={Path(artifacts).name}",  # relative: the parser accepts no spaces in a path
        ]
        command = flink_command(JOB_SERVER_CLASS, arguments, heap_mb=flink.heap_mb)
        _LOG.info("starting Flink's job server on port %d, log in %s", ports[0], log)
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, cwd=folder
        )
        try:
            await_start(
                process,
                lambda: listens(address, _CONNECT_SECONDS),
                server="Flink's job server",
                address=address,
                seconds=START_SECONDS,
                last_words=lambda: last_lines(log.read_text(encoding="utf-8", errors="replace")),
                hint=f"the whole log is in {log}; flink.heap_mb and flink.master are its settings",
            )
            yield address
        finally:
            process.terminate()
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()
