"""The Kafka section of the settings: broker, topics and login."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from spoor.base.errors import UsageError
from spoor.base.limits import require_at_least, require_at_most, require_port
from spoor.broker.embedded_broker import check_own_broker

SecurityProtocol = Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"]
IsolationLevel = Literal["read_committed", "read_uncommitted"]
EmbeddingFormat = Literal["json", "arrow"]
_TOPIC = re.compile(r"[a-zA-Z0-9._-]+")
_CENTURY_HOURS = 876_600


@dataclass(frozen=True)
class KafkaSettings:
    """Broker, topics and login."""

    bootstrap_servers: str = ""  # host:port,… of your cluster; empty = the embedded broker on 127.0.0.1
    port: int = 19092  # of the embedded broker
    controller_port: int = 19093  # of the embedded broker's KRaft controller
    heap_mb: int = 512  # Java heap of the embedded broker
    folder: Path = Path("{state_folder}/kafka")  # of the embedded broker: its data, configuration and log
    topic: str = "activity"  # the events
    dead_letter_topic: str = "activity-dead-letters"  # records that were no events
    embedding_topic_prefix: str = "user-embeddings."  # followed by the release's name
    embedding_format: EmbeddingFormat = "json"  # of published rows; readers of Spoor take both
    embedding_compaction_lag_hours: int = 48  # how long every published row stays; archive more often than that
    partitions: int = 4  # of topics that Spoor creates
    replication_factor: int = 1  # of topics that Spoor creates
    retention_hours: int = 168  # of the activity topic, if Spoor creates it
    isolation_level: IsolationLevel = (
        "read_committed"  # of workers and batch jobs: what open and aborted transactions say
    )
    security_protocol: SecurityProtocol = "PLAINTEXT"  # how clients reach your cluster
    sasl_mechanism: str = ""  # PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512; empty = PLAIN
    sasl_username: str = ""  # with SASL_PLAINTEXT and SASL_SSL
    sasl_password: str = field(default="", repr=False, metadata={"secret": True})  # its file: sasl_password_file
    ssl_cafile: str = ""  # PEM file of the authority that signed the brokers; empty = the system's
    ssl_certfile: str = ""  # PEM file of this client's certificate, if the cluster asks for one
    ssl_keyfile: str = ""  # PEM file of its key
    session_timeout_seconds: float = 10.0  # after this silence the group gives a worker's partitions to another
    request_timeout_seconds: float = 15.0  # before a broker that does not answer counts as down

    def __post_init__(self) -> None:
        require_at_least("kafka", self, 1, "partitions", "replication_factor", "retention_hours")
        require_at_least("kafka", self, 0, "embedding_compaction_lag_hours")
        require_at_most("kafka", self, 100_000, "partitions")
        require_at_most("kafka", self, 100, "replication_factor")
        require_at_most("kafka", self, _CENTURY_HOURS, "retention_hours", "embedding_compaction_lag_hours")
        require_at_most("kafka", self, 3_600, "session_timeout_seconds", "request_timeout_seconds")
        require_at_least("kafka", self, 64, "heap_mb")  # with less the JVM does not start
        require_port("kafka", self, "port", "controller_port")
        for name in ("session_timeout_seconds", "request_timeout_seconds"):
            if getattr(self, name) < 0.001:  # clients count in ms
                raise UsageError(f"kafka.{name} is {getattr(self, name)}", hint="it must be at least 0.001")
        if self.embedded and self.port == self.controller_port:
            raise UsageError(
                f"kafka.port and kafka.controller_port are both {self.port}", hint="give each a free port of its own"
            )
        self._check_topics()

    def _check_topics(self) -> None:
        for name in ("topic", "dead_letter_topic", "embedding_topic_prefix"):
            found = getattr(self, name)
            most = 249 if name != "embedding_topic_prefix" else 200  # a release's name follows the prefix
            if not _TOPIC.fullmatch(found) or len(found) > most or found in (".", ".."):
                raise UsageError(
                    f"kafka.{name} is {found!r}, which cannot name a topic",
                    hint=f"a name has 1 to {most} of a-z, A-Z, 0-9, `.`, `_` and `-`, for example activity",
                )
        if self.topic == self.dead_letter_topic:  # each dead letter would be read as a bad event, endlessly
            raise UsageError(
                f"kafka.topic and kafka.dead_letter_topic are both `{self.topic}`",
                hint=f'set kafka.dead_letter_topic = "{self.topic[:180]}-dead-letters", or another name of its own',
            )
        for name in ("topic", "dead_letter_topic"):
            if getattr(self, name).startswith(self.embedding_topic_prefix):
                raise UsageError(
                    f"kafka.{name} `{getattr(self, name)}` begins with kafka.embedding_topic_prefix "
                    f"`{self.embedding_topic_prefix}`, as topics of embeddings do",
                    hint="set another name, or another prefix",
                )

    @property
    def embedded(self) -> bool:
        return not self.bootstrap_servers

    @property
    def address(self) -> str:
        return self.bootstrap_servers or f"127.0.0.1:{self.port}"

    @property
    def way_to_a_broker(self) -> str:
        """The hint if no broker answers: `spoor services up` starts the embedded broker only."""
        if self.embedded:
            return "start it with `spoor services up`"
        return "check kafka.bootstrap_servers and the security settings (`spoor config show`)"

    def topic_change(self, topic: str, setting: str) -> str:
        """Kafka's own command to change a topic's configuration, for a hint."""
        where = f"--bootstrap-server {self.address} --entity-type topics --entity-name {topic}"
        return f"`kafka-configs {where} --alter --add-config {setting}`"

    def check_own(self) -> None:
        """Raises as `check_own_broker`; a configured broker is not checked."""
        if self.embedded:
            check_own_broker(self.folder, self.port, timeout_seconds=self.request_timeout_seconds)

    def embedding_topic(self, release: str) -> str:
        return self.embedding_topic_prefix + release

    @property
    def embedding_topic_config(self) -> dict[str, str]:
        """The configuration with which an embedding topic is created."""
        lag_ms = self.embedding_compaction_lag_hours * 3_600_000
        return {"cleanup.policy": "compact", "min.compaction.lag.ms": str(lag_ms)}

    def client_options(self) -> dict[str, Any]:
        """Keyword arguments for every kafka-python client; consumers use `consumer_options`. Raises UsageError if the
        broker of another folder answers at the embedded broker's port."""
        self.check_own()
        options: dict[str, Any] = {
            "bootstrap_servers": self.address.split(","),
            "security_protocol": self.security_protocol,
        }
        if self.security_protocol.startswith("SASL"):
            options |= {
                "sasl_mechanism": self.sasl_mechanism or "PLAIN",
                "sasl_plain_username": self.sasl_username,
                "sasl_plain_password": self.sasl_password,
            }
        if self.security_protocol.endswith("SSL"):
            files = {
                "ssl_cafile": self.ssl_cafile,
                "ssl_certfile": self.ssl_certfile,
                "ssl_keyfile": self.ssl_keyfile,
            }
            options |= {name: path for name, path in files.items() if path}
        return options

    def consumer_options(self) -> dict[str, Any]:
        """Keyword arguments for every kafka-python consumer. With `read_committed` a partition ends at its first open
        transaction, for `end_offsets` too."""
        return self.client_options() | {
            "isolation_level": self.isolation_level,
            "enable_auto_commit": False,
            "allow_auto_create_topics": False,  # a mistyped name must not become a topic
        }
