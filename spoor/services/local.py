"""The local services: starts, stops and inspects one embedded Apache Kafka broker.

`up` leaves a detached process that outlives the command (kafka_process.py). All data are under `<state folder>/kafka`,
so a killed broker continues where it stopped. Starting and stopping exclude each other by a file lock. A broker that
answers at the port is ours only with the cluster id of our data.
"""

from __future__ import annotations

import shutil
import subprocess
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from spoor.base.errors import InfrastructureError, UsageError
from spoor.broker.embedded_broker import cluster_at, is_free, other_ports, own_cluster, recorded
from spoor.broker.reach import answers, broker_down
from spoor.broker.settings import KafkaSettings
from spoor.config import Settings
from spoor.services.java import await_start, locked
from spoor.services.kafka_process import format_data, launch, log_tail, record, running, stop
from spoor.services.kafka_server import KAFKA_VERSION, ServerFiles, write_configuration

START_SECONDS = 180.0  # a start takes about 5 s; busy cores and a long recovery need more
FREE_BYTES_NEEDED = 256 * 1024 * 1024


@dataclass(frozen=True)
class KafkaStatus:
    """The known state of the broker in the settings."""

    embedded: bool  # started by `spoor services up`, as against kafka.bootstrap_servers
    running: bool  # embedded: our process lives; else: same as answering
    answering: bool  # a broker of the cluster answers requests
    address: str
    pid: int | None = None
    started_at: str | None = None
    version: str | None = None
    folder: Path | None = None
    log: Path | None = None
    other: str | None = None  # another project's broker at that address, as a message


def up(settings: Settings) -> KafkaStatus:
    """Starts the embedded broker and returns when it answers.

    Raises UsageError if it already runs or a broker address is configured; InfrastructureError if the folder cannot be
    written, a port is taken, or the broker does not answer within START_SECONDS.
    """
    kafka, files = settings.kafka, _files(settings)
    _refuse_configured_broker(kafka)
    _prepare_folder(files, needed_bytes=FREE_BYTES_NEEDED)
    with locked(files.lock):
        if (found := running(files)) is not None:
            raise UsageError(
                f"the embedded Kafka already runs: process {found.pid}, folder {files.folder}",
                hint="`spoor services status` shows it, `spoor services down` stops it",
            )
        for port in (kafka.port, kafka.controller_port):
            _refuse_taken_port(kafka, port)
        try:
            write_configuration(files, kafka)
            if not files.formatted:
                format_data(files)
            process = launch(files, kafka)
        except OSError as error:
            raise _unwritable(files.folder, error) from error
        try:
            record(files, process.pid, kafka)
            _await_answer(process, files, kafka)
        except BaseException:
            process.kill()
            process.wait()
            files.process.unlink(missing_ok=True)
            raise
    process.returncode = 0  # detached on purpose: nothing waits for its end
    return status(settings)


def ensure_up(settings: Settings) -> KafkaStatus:
    """Like `up`, but accepts a broker that already answers, ours or a configured one."""
    found = status(settings)
    if found.answering:
        return found
    if not found.embedded:
        raise broker_down(settings.kafka)
    if found.running:  # started by another command a moment ago, or hung
        down(settings)
    return up(settings)


def down(settings: Settings) -> bool:
    """Stops the embedded broker; False if there was none. SIGTERM lets Kafka write its state; after 30 s it is killed,
    which only makes the next start slower. Raises InfrastructureError, and keeps the record, if the broker runs and
    cannot be stopped."""
    _refuse_configured_broker(settings.kafka)
    files = _files(settings)
    if not files.folder.is_dir():
        return False
    try:
        with locked(files.lock):
            process = running(files)
            if process is not None:
                stop(process, files)
            else:
                _refuse_hidden(files, settings.kafka)
            files.process.unlink(missing_ok=True)
            return process is not None
    except OSError as error:
        raise _unwritable(files.folder, error) from error


def status(settings: Settings) -> KafkaStatus:
    """Inspects the broker and changes nothing."""
    kafka, files = settings.kafka, _files(settings)
    if not kafka.embedded:
        answering = answers(kafka)
        return KafkaStatus(embedded=False, running=answering, answering=answering, address=kafka.address)
    process, other = running(files), _other(kafka)
    answering = (process is not None or other is None) and answers(kafka)
    found = KafkaStatus(
        embedded=True,
        running=process is not None or answering,  # no process: for example in a container that shares the folder
        answering=answering,
        address=kafka.address,
        folder=files.folder,
        log=files.server_log,
        other=other,
    )
    if process is None:
        return found
    started_at = datetime.fromtimestamp(process.create_time(), UTC).isoformat(timespec="seconds")
    return replace(found, pid=process.pid, started_at=started_at, version=KAFKA_VERSION)


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
    """The message about another project's broker that answers at the embedded broker's address; None without one."""
    try:
        kafka.check_own()
    except UsageError as error:
        return error.message
    except InfrastructureError:
        pass
    return None


def _await_answer(process: subprocess.Popen[bytes], files: ServerFiles, kafka: KafkaSettings) -> None:
    await_start(
        process,
        lambda: answers(kafka),
        server="Kafka",
        address=kafka.address,
        seconds=START_SECONDS,
        last_words=lambda: log_tail(files),
        hint=f"the whole log is in {files.server_log}",
    )


def _refuse_hidden(files: ServerFiles, kafka: KafkaSettings) -> None:
    """Raises InfrastructureError if our broker answers but its process is invisible: it runs as another user, or in
    another container that shares folder and network."""
    own = own_cluster(files.folder)
    for port in {kafka.port, recorded(files.folder).get("port", kafka.port)}:
        with suppress(TimeoutError):
            if own is not None and cluster_at(port, timeout_seconds=kafka.request_timeout_seconds) == own:
                raise InfrastructureError(
                    f"the broker of `{files.folder}` answers at 127.0.0.1:{port}, but its process is not to be seen "
                    "from here: it was not stopped",
                    hint="stop it where it was started: as that user, or in that container",
                )
