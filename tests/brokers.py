"""Genuine Kafka brokers with properties of one's own: secured listeners, or the containers' settings."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from spoor.broker.reach import answers
from spoor.broker.settings import KafkaSettings
from spoor.services.kafka_server import FORMAT_CLASS, MAIN_CLASS, ServerFiles, java_command
from tests.conftest import wait_until

CLUSTER_ID = "c3Bvb3ItdGVzdHMtMDAwMQ"
QUIET_LOG = "status=error\nrootLogger.level=off\n"


@contextmanager
def running_broker(
    folder: Path,
    properties: Mapping[str, object],
    client: KafkaSettings,
    *,
    java_options: Sequence[str] = (),
    format_options: Sequence[str] = (),
    log4j2: str = QUIET_LOG,
) -> Iterator[Path]:
    """Formats and starts a broker in `folder` and waits until `client` is answered. Yields the file of its output;
    `log.dirs` is set here."""
    files = ServerFiles(folder)
    files.data.mkdir(parents=True)
    files.logging.write_text(log4j2)
    lines = {**properties, "log.dirs": files.data}
    files.properties.write_text("".join(f"{name}={value}\n" for name, value in lines.items()))

    def command(main_class: str, arguments: list[str], heap_mb: int) -> list[str]:
        java, *rest = java_command(files, main_class, arguments, heap_mb=heap_mb)
        return [java, *java_options, *rest]

    formatting = ["format", f"--cluster-id={CLUSTER_ID}", f"--config={files.properties}", *format_options]
    done = subprocess.run(
        command(FORMAT_CLASS, formatting, 128), capture_output=True, text=True, timeout=120, cwd=folder
    )
    assert done.returncode == 0, done.stdout + done.stderr
    output = folder / "output.log"
    with output.open("wb") as log:
        process = subprocess.Popen(
            command(MAIN_CLASS, [str(files.properties)], 384), stdout=log, stderr=log, cwd=folder
        )
    try:

        def is_up() -> bool:
            assert process.poll() is None, output.read_text()[-3000:]
            return answers(client)

        wait_until(is_up, "the broker answers")
        yield output
    finally:
        process.kill()
        process.wait()


def one_node(port: int, controller_port: int) -> dict[str, object]:
    """What every single node has."""
    return {
        "process.roles": "broker,controller",
        "node.id": 1,
        "controller.quorum.voters": f"1@127.0.0.1:{controller_port}",
        "controller.listener.names": "CONTROLLER",
        "listeners": f"CLIENTS://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}",
        "advertised.listeners": f"CLIENTS://127.0.0.1:{port}",
        "auto.create.topics.enable": "false",
        "offsets.topic.replication.factor": 1,
        "offsets.topic.num.partitions": 4,
        "group.initial.rebalance.delay.ms": 0,
        "group.min.session.timeout.ms": 1000,
        "log.cleaner.dedupe.buffer.size": 16 * 1024 * 1024,
    }
