"""The local services: one embedded Apache Kafka broker, started, watched and stopped here.

`up` leaves a detached process behind that outlives the command; its id is kept in `<state folder>/kafka/process.json`
and believed only while that process is the broker of this very folder. All data live under `<state folder>/kafka`, so
a broker that was killed continues where it stopped. Starting and stopping hold a file lock against each other.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from activity.errors import InfrastructureError, UsageError
from activity.files import atomic_write
from activity.settings import KafkaSettings
from spoor.config import Settings
from spoor.java import await_start, last_lines, listens, locked
from spoor.kafka_server import (
    FORMAT_CLASS,
    KAFKA_VERSION,
    MAIN_CLASS,
    ServerFiles,
    java_command,
    write_configuration,
)

START_SECONDS = 180.0  # a start takes about 5 s; busy cores and a long recovery need more
STOP_SECONDS = 30.0
FREE_BYTES_NEEDED = 256 * 1024 * 1024


@dataclass(frozen=True)
class KafkaStatus:
    """What is known about the broker that the settings name."""

    embedded: bool  # started by `spoor services up`, as against kafka.bootstrap_servers
    running: bool  # embedded: our process lives; else: same as answering
    answering: bool  # a broker of the cluster answers requests
    address: str
    pid: int | None = None
    started_at: str | None = None
    version: str | None = None
    folder: Path | None = None
    log: Path | None = None


def up(settings: Settings) -> KafkaStatus:
    """Starts the embedded broker and returns when it answers.

    Raises UsageError if it runs already or a broker address is configured; InfrastructureError if the folder cannot
    be written, a port is taken, or the broker does not answer within START_SECONDS.
    """
    kafka, files = settings.kafka, _files(settings)
    _refuse_configured_broker(kafka)
    _prepare_folder(files, needed_bytes=FREE_BYTES_NEEDED)
    with locked(files.lock):
        if (running := _running(files)) is not None:
            raise UsageError(
                f"the embedded Kafka already runs: process {running.pid}, folder {files.folder}",
                hint="`spoor services status` shows it, `spoor services down` stops it",
            )
        for port in (kafka.port, kafka.controller_port):
            _refuse_taken_port(port)
        try:
            write_configuration(files, kafka)
            if not files.formatted:
                _format(files)
            process = _launch(files, kafka)
        except OSError as error:
            raise _unwritable(files.folder, error) from error
        try:
            _record(files, process.pid, kafka)
            _await_answer(process, files, kafka)
        except BaseException:
            process.kill()
            process.wait()
            files.process.unlink(missing_ok=True)
            raise
    process.returncode = 0  # it is detached on purpose: nobody waits for it
    return status(settings)


def ensure_up(settings: Settings) -> KafkaStatus:
    """Like `up`, but content with a broker that answers already, ours or a configured one."""
    found = status(settings)
    if found.answering:
        return found
    if not found.embedded:
        raise broker_down(settings.kafka)
    if found.running:  # started by someone else a moment ago, or hung
        down(settings)
    return up(settings)


def down(settings: Settings) -> bool:
    """Stops the embedded broker; False if there was none. Kafka writes its state out first (SIGTERM); one that does
    not end within STOP_SECONDS is killed, which loses nothing but time at the next start."""
    _refuse_configured_broker(settings.kafka)
    files = _files(settings)
    if not files.folder.is_dir():
        return False
    try:
        with locked(files.lock):
            process = _running(files)
            if process is not None:
                _stop(process)
            files.process.unlink(missing_ok=True)
            return process is not None
    except OSError as error:
        raise _unwritable(files.folder, error) from error


def status(settings: Settings) -> KafkaStatus:
    """Looks, changes nothing."""
    kafka, files = settings.kafka, _files(settings)
    if not kafka.embedded:
        answering = answers(kafka)
        return KafkaStatus(embedded=False, running=answering, answering=answering, address=kafka.address)
    process = _running(files)
    if process is None:
        return KafkaStatus(
            embedded=True,
            running=False,
            answering=False,
            address=kafka.address,
            folder=files.folder,
            log=files.server_log,
        )
    return KafkaStatus(
        embedded=True,
        running=True,
        answering=answers(kafka),
        address=kafka.address,
        pid=process.pid,
        started_at=datetime.fromtimestamp(process.create_time(), UTC).isoformat(timespec="seconds"),
        version=KAFKA_VERSION,
        folder=files.folder,
        log=files.server_log,
    )


def answers(kafka: KafkaSettings) -> bool:
    """Whether some broker of the cluster answers a metadata request with at least one broker ready for work."""
    from kafka import KafkaAdminClient
    from kafka.errors import KafkaError

    # A plain connection first: Kafka's client logs a warning for each try at a port where nobody listens.
    if not any(listens(server, kafka.request_timeout_seconds) for server in kafka.address.split(",")):
        return False
    timeout_ms = int(kafka.request_timeout_seconds * 1000)
    options: dict[str, Any] = kafka.client_options() | {
        "bootstrap_timeout_ms": timeout_ms,
        "request_timeout_ms": timeout_ms,
    }
    try:
        with closing(KafkaAdminClient(**options)) as admin:
            brokers = admin.describe_cluster()["brokers"]
            return any(not broker.get("is_fenced") for broker in brokers)
    except (KafkaError, OSError):
        return False


def require_broker(kafka: KafkaSettings) -> None:
    """Raises InfrastructureError if no broker answers: at once if nobody listens, where a client would try for long."""
    if not answers(kafka):
        raise broker_down(kafka)


def broker_down(kafka: KafkaSettings) -> InfrastructureError:
    """The error that every command gives when Kafka does not answer."""
    return InfrastructureError(f"no Kafka broker answers at {kafka.address}", hint=kafka.way_to_a_broker)


def _files(settings: Settings) -> ServerFiles:
    return ServerFiles(settings.state_folder.absolute() / "kafka")


def _refuse_configured_broker(kafka: KafkaSettings) -> None:
    if not kafka.embedded:
        raise UsageError(
            f"kafka.bootstrap_servers is set to {kafka.bootstrap_servers}: the embedded broker is not used",
            hint="unset kafka.bootstrap_servers to use it; a broker of yours is started and stopped by you",
        )
    if kafka.security_protocol != "PLAINTEXT":
        raise UsageError(
            f"kafka.security_protocol is {kafka.security_protocol}: the embedded broker speaks PLAINTEXT only",
            hint="it binds to 127.0.0.1; set kafka.bootstrap_servers for a secured cluster",
        )


def _prepare_folder(files: ServerFiles, *, needed_bytes: int) -> None:
    try:
        for folder in (files.data, files.logs):
            folder.mkdir(parents=True, exist_ok=True)
        with open(files.lock, "ab"):
            free_bytes = shutil.disk_usage(files.folder).free
    except OSError as error:
        raise _unwritable(files.folder, error) from error
    if free_bytes < needed_bytes:
        raise InfrastructureError(
            f"`{files.folder}` has {free_bytes >> 20} MiB free, expected at least {needed_bytes >> 20} MiB",
            hint="free some space, or set state_folder to a larger disk",
        )


def _unwritable(folder: Path, error: OSError) -> InfrastructureError:
    return InfrastructureError(
        f"cannot write `{error.filename or folder}`: {error.strerror or error}",
        hint="check permissions and free space, or set state_folder (SPOOR_STATE_FOLDER) to another folder",
    )


def _refuse_taken_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except (OSError, OverflowError) as error:
            raise InfrastructureError(
                f"port {port} on 127.0.0.1 cannot be used: {getattr(error, 'strerror', None) or error}",
                hint="another program (perhaps a broker of another state folder) has it: stop it, or set kafka.port "
                "and kafka.controller_port to free ports",
            ) from error


def _format(files: ServerFiles) -> None:
    """Gives the data folder its cluster id, as Kafka demands before the first start."""
    import base64
    import uuid

    cluster_id = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
    # Kafka's option parser takes an id with a leading dash for an option.
    arguments = [f"--cluster-id=A{cluster_id[1:]}", f"--config={files.properties}", "--ignore-formatted"]
    command = java_command(files, FORMAT_CLASS, ["format", *arguments], heap_mb=128)
    done = subprocess.run(
        command, capture_output=True, encoding="utf-8", errors="replace", timeout=START_SECONDS, check=False
    )
    if done.returncode != 0:
        raise InfrastructureError(
            f"Kafka could not format `{files.data}`:\n{last_lines(done.stdout + done.stderr)}",
            hint="check free space and permissions of the state folder",
        )


def _launch(files: ServerFiles, kafka: KafkaSettings) -> subprocess.Popen[bytes]:
    command = java_command(files, MAIN_CLASS, [str(files.properties)], heap_mb=kafka.heap_mb)
    with open(files.output, "wb") as output:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=files.folder,
            start_new_session=True,  # a Ctrl-C in the terminal must not reach it
        )


def _record(files: ServerFiles, pid: int, kafka: KafkaSettings) -> None:
    record = {"pid": pid, "port": kafka.port, "controller_port": kafka.controller_port}
    atomic_write(files.process, json.dumps(record).encode())


def _await_answer(process: subprocess.Popen[bytes], files: ServerFiles, kafka: KafkaSettings) -> None:
    await_start(
        process,
        lambda: answers(kafka),
        server="Kafka",
        address=kafka.address,
        seconds=START_SECONDS,
        last_words=lambda: _log_tail(files),
        hint=f"the whole log is in {files.server_log}",
    )


def _running(files: ServerFiles) -> psutil.Process | None:
    """Our broker's process: the recorded id counts only if that process is a Kafka on this folder's properties."""
    try:
        pid = json.loads(files.process.read_bytes())["pid"]
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        command = process.cmdline()
    except (OSError, ValueError, KeyError, TypeError, psutil.Error):
        return None
    return process if MAIN_CLASS in command and str(files.properties) in command else None


def _stop(process: psutil.Process) -> None:
    try:
        process.terminate()
        process.wait(STOP_SECONDS)
    except psutil.TimeoutExpired:
        process.kill()
        process.wait(STOP_SECONDS)
    except psutil.NoSuchProcess:
        pass


def _log_tail(files: ServerFiles) -> str:
    texts = [
        path.read_text(encoding="utf-8", errors="replace") for path in (files.server_log, files.output) if path.exists()
    ]
    return last_lines("".join(texts))
