"""The process of the embedded Kafka: formats its data folder, launches, finds and stops it.

The process outlives the command that launched it. Its id is recorded in the broker's folder and trusted only while that
process is a Kafka that runs in the same folder; the folder may have several names.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import uuid

import psutil

from spoor.base.errors import InfrastructureError
from spoor.base.files import atomic_write
from spoor.broker.embedded_broker import recorded
from spoor.broker.settings import KafkaSettings
from spoor.services.java import JAVA_LOCALE, last_lines
from spoor.services.kafka_server import FORMAT_CLASS, MAIN_CLASS, ServerFiles, java_command

FORMAT_SECONDS = 180.0
STOP_SECONDS = 30.0


def format_data(files: ServerFiles) -> None:
    """Gives the data folder its cluster id, which Kafka requires before the first start."""
    cluster_id = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
    # Kafka's option parser would read an id with a leading dash as an option.
    arguments = [f"--cluster-id=A{cluster_id[1:]}", f"--config={files.properties.name}", "--ignore-formatted"]
    command = java_command(files, FORMAT_CLASS, ["format", *arguments], heap_mb=128)
    done = subprocess.run(
        command,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        timeout=FORMAT_SECONDS,
        check=False,
        cwd=files.folder,
        env=os.environ | JAVA_LOCALE,
    )
    if done.returncode != 0:
        raise InfrastructureError(
            f"Kafka could not format `{files.data}`:\n{last_lines(done.stdout + done.stderr)}",
            hint="check free space and permissions of the state folder",
        )


def launch(files: ServerFiles, kafka: KafkaSettings) -> subprocess.Popen[bytes]:
    """Starts the process without waiting for an answer."""
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


def record(files: ServerFiles, pid: int, kafka: KafkaSettings) -> None:
    """Records the process; `recorded` reads the record."""
    note = {"pid": pid, "port": kafka.port, "controller_port": kafka.controller_port}
    atomic_write(files.process, json.dumps(note).encode())


def running(files: ServerFiles) -> psutil.Process | None:
    """Our broker's process: the recorded one or, without a record, any Kafka that runs in this folder."""
    pid = recorded(files.folder).get("pid", -1)
    if pid > 0 and (process := _ours(pid, files)) is not None:
        return process
    if not files.folder.is_dir():
        return None
    return next((process for each in psutil.pids() if (process := _ours(each, files)) is not None), None)


def _ours(pid: int, files: ServerFiles) -> psutil.Process | None:
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE or MAIN_CLASS not in process.cmdline():
            return None
        return process if os.path.samefile(process.cwd(), files.folder) else None
    except (psutil.Error, OSError):
        return None


def stop(process: psutil.Process, files: ServerFiles) -> None:
    """Returns when the process has ended. Raises InfrastructureError if it cannot be stopped."""
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


def log_tail(files: ServerFiles) -> str:
    """The last lines that Kafka logged or printed, for an error."""
    texts = [
        path.read_text(encoding="utf-8", errors="replace") for path in (files.server_log, files.output) if path.exists()
    ]
    return last_lines("".join(texts))
