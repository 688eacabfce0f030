"""The local services: one embedded Apache Kafka broker, started, watched and stopped here.

`up` leaves a detached process behind that outlives the command; its id is kept in `<state folder>/kafka/process.json`
and believed only while that process is a Kafka that runs in this very folder, under whatever name that is reached. All
data live under `<state folder>/kafka`, so a broker that was killed continues where it stopped. Starting and stopping
hold a file lock against each other. A broker that answers at the port is ours only with the cluster id of our data.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from spoor.base.errors import InfrastructureError, SpoorError, UsageError
from spoor.base.files import atomic_write
from spoor.broker.embedded_broker import cluster_at, is_free, other_ports, own_cluster
from spoor.broker.settings import KafkaSettings
from spoor.config import Settings
from spoor.services.java import JAVA_LOCALE, await_start, last_lines, listens, locked
from spoor.services.kafka_server import (
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
    other: str | None = None  # what is known of another project's broker at that address


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
            _refuse_taken_port(kafka, port)
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
    not end within STOP_SECONDS is killed, which loses nothing but time at the next start. Raises InfrastructureError,
    and keeps the record, where it runs and cannot be stopped."""
    _refuse_configured_broker(settings.kafka)
    files = _files(settings)
    if not files.folder.is_dir():
        return False
    try:
        with locked(files.lock):
            process = _running(files)
            if process is not None:
                _stop(process, files)
            else:
                _refuse_hidden(files, settings.kafka)
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
        other = _other(kafka)
        answering = other is None and answers(kafka)  # in another container that shares the folder, say
        return KafkaStatus(
            embedded=True,
            running=answering,
            answering=answering,
            address=kafka.address,
            folder=files.folder,
            log=files.server_log,
            other=other,
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
        other=_other(kafka),
    )


def answers(kafka: KafkaSettings) -> bool:
    """Whether some broker of the cluster answers a metadata request with at least one broker ready for work; another
    project's broker at the embedded one's port does not count."""
    from kafka import KafkaAdminClient
    from kafka.errors import KafkaError

    # A plain connection first: Kafka's client logs a warning for each try at a port where nobody listens.
    if not any(listens(server, kafka.request_timeout_seconds) for server in kafka.address.split(",")):
        return False
    timeout_ms = int(kafka.request_timeout_seconds * 1000)
    timeouts: dict[str, Any] = {"bootstrap_timeout_ms": timeout_ms, "request_timeout_ms": timeout_ms}
    try:
        options = kafka.client_options() | timeouts
    except SpoorError:
        return False
    try:
        with closing(KafkaAdminClient(**options)) as admin:
            brokers = admin.describe_cluster()["brokers"]
            return any(not broker.get("is_fenced") for broker in brokers)
    except (KafkaError, OSError):
        return False


def require_broker(kafka: KafkaSettings) -> None:
    """Raises InfrastructureError if no broker answers: at once if nobody listens, where a client would try for long;
    UsageError if that of another project does."""
    kafka.check_own()
    if not answers(kafka):
        raise broker_down(kafka)


def broker_down(kafka: KafkaSettings) -> InfrastructureError:
    """The error that every command gives when Kafka does not answer."""
    port = _recorded(ServerFiles(kafka.folder)).get("port", kafka.port) if kafka.embedded else kafka.port
    if port != kafka.port and answers(moved := dataclasses.replace(kafka, port=port)):
        return InfrastructureError(
            f"no Kafka broker answers at {kafka.address}; that of `{kafka.folder}` answers at {moved.address}",
            hint=f"set kafka.port = {port}, or move it: `spoor services down`, then `spoor services up`",
        )
    return InfrastructureError(f"no Kafka broker answers at {kafka.address}", hint=kafka.way_to_a_broker)


def _files(settings: Settings) -> ServerFiles:
    return ServerFiles(settings.kafka.folder.absolute())


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
        str(files.folder).encode()
    except UnicodeEncodeError:
        raise UsageError(
            f"`{files.folder}` has bytes in its name that are not UTF-8, with which Java cannot open it",
            hint="rename the folder, or set kafka.folder to another one",
        ) from None
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


def _refuse_taken_port(kafka: KafkaSettings, port: int) -> None:
    if is_free(port):
        return
    other = _other(kafka) if port == kafka.port else None
    raise InfrastructureError(
        f"port {port} on 127.0.0.1 cannot be used: {other or 'another program has it'}", hint=other_ports()
    )


def _other(kafka: KafkaSettings) -> str | None:
    """The message where another project's broker answers at the embedded broker's address."""
    try:
        kafka.check_own()
    except UsageError as error:
        return error.message
    except InfrastructureError:
        pass
    return None


def _format(files: ServerFiles) -> None:
    """Gives the data folder its cluster id, as Kafka demands before the first start."""
    import base64
    import uuid

    cluster_id = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
    # Kafka's option parser takes an id with a leading dash for an option.
    arguments = [f"--cluster-id=A{cluster_id[1:]}", f"--config={files.properties.name}", "--ignore-formatted"]
    command = java_command(files, FORMAT_CLASS, ["format", *arguments], heap_mb=128)
    done = subprocess.run(
        command,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        timeout=START_SECONDS,
        check=False,
        cwd=files.folder,
        env=os.environ | JAVA_LOCALE,
    )
    if done.returncode != 0:
        raise InfrastructureError(
            f"Kafka could not format `{files.data}`:\n{last_lines(done.stdout + done.stderr)}",
            hint="check free space and permissions of the state folder",
        )


def _launch(files: ServerFiles, kafka: KafkaSettings) -> subprocess.Popen[bytes]:
    command = java_command(files, MAIN_CLASS, [files.properties.name], heap_mb=kafka.heap_mb)
    with open(files.output, "wb") as output:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=files.folder,
            env=os.environ | JAVA_LOCALE,
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


def _recorded(files: ServerFiles) -> dict[str, Any]:
    """What `up` noted of the process; empty where that is damaged or gone."""
    try:
        record = json.loads(files.process.read_bytes())
    except (OSError, ValueError):
        return {}
    return {key: value for key, value in record.items() if type(value) is int} if isinstance(record, dict) else {}


def _running(files: ServerFiles) -> psutil.Process | None:
    """Our broker's process: the recorded one or, where the record is lost, any Kafka that runs in this folder."""
    recorded = _recorded(files).get("pid", -1)
    if recorded > 0 and (process := _ours(recorded, files)) is not None:
        return process
    if not files.folder.is_dir():
        return None
    return next((process for pid in psutil.pids() if (process := _ours(pid, files)) is not None), None)


def _ours(pid: int, files: ServerFiles) -> psutil.Process | None:
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE or MAIN_CLASS not in process.cmdline():
            return None
        return process if os.path.samefile(process.cwd(), files.folder) else None
    except (psutil.Error, OSError):
        return None


def _refuse_hidden(files: ServerFiles, kafka: KafkaSettings) -> None:
    """Raises InfrastructureError where our broker answers, though its process cannot be seen: as another user's, or in
    another container that shares folder and network."""
    own = own_cluster(files.folder)
    for port in {kafka.port, _recorded(files).get("port", kafka.port)}:
        with suppress(TimeoutError):
            if own is not None and cluster_at(port, timeout_seconds=kafka.request_timeout_seconds) == own:
                raise InfrastructureError(
                    f"the broker of `{files.folder}` answers at 127.0.0.1:{port}, but its process is not to be seen "
                    "from here: it was not stopped",
                    hint="stop it where it was started: as that user, or in that container",
                )


def _stop(process: psutil.Process, files: ServerFiles) -> None:
    for end in (process.terminate, process.kill):
        try:
            end()
            process.wait(STOP_SECONDS)
            return
        except psutil.NoSuchProcess:
            return
        except psutil.TimeoutExpired:
            continue
        except psutil.AccessDenied:
            raise InfrastructureError(
                f"process {process.pid}, the broker of `{files.folder}`, may not be stopped by this user: it runs on",
                hint=f"run `spoor services down` as {process.username()}",
            ) from None
    raise InfrastructureError(
        f"process {process.pid}, the broker of `{files.folder}`, does not end, even when killed",
        hint="its disk may hang; run `spoor services down` again when that is over",
    )


def _log_tail(files: ServerFiles) -> str:
    texts = [
        path.read_text(encoding="utf-8", errors="replace") for path in (files.server_log, files.output) if path.exists()
    ]
    return last_lines("".join(texts))
