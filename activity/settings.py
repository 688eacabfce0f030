"""The settings that several rooms share. spoor/config.py fills them from file, environment and flags."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from spoor.activity.embedded_broker import check_own_broker
from spoor.activity.errors import UsageError
from spoor.activity.times import LATEST_MS, TimeTextError, iso_ms

SecurityProtocol = Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"]
IsolationLevel = Literal["read_committed", "read_uncommitted"]
EmbeddingFormat = Literal["json", "arrow"]
EventFormat = Literal["json", "avro"]
_FIRST_MS = -62104060800000  # 0002-01-01: a day or a zone before it is still a date


def parse_time_ms(text: str) -> int:
    """What a command or a setting takes as a time → ms since 1970 in UTC: ISO 8601 with a zone, or a date, which is
    its midnight. Raises UsageError."""
    try:
        found = iso_ms(text, dates=True)
    except TimeTextError as error:
        if error.no_zone:
            raise UsageError(f"`{text}` has no time zone", hint=f"write {text}Z for UTC") from None
        hint = "write for example 2026-01-31T00:00:00Z, or 2026-01-31 for midnight UTC"
        raise UsageError(f"`{text}` is not an ISO 8601 time", hint=hint) from None
    if not _FIRST_MS <= found <= LATEST_MS:
        hint = "write 0002-01-01 or later" if found < _FIRST_MS else "write 6429-10-17 or earlier"
        raise UsageError(f"`{text}` is out of range", hint=hint)
    return found


_TOPIC = re.compile(r"[a-zA-Z0-9._-]+")
_CENTURY_HOURS = 876_600
_UNITS_MS = {"s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


def parse_duration_ms(text: str) -> int:
    """A number and a unit (s, m, h, d), such as 90s or 1.5d → ms. Raises UsageError."""
    number, unit = text[:-1], text[-1:]
    try:
        found = round(float(number) * _UNITS_MS[unit])
    except (ValueError, KeyError, OverflowError):
        raise UsageError(f"`{text}` is not a duration", hint="write for example 30m, 6h or 1d") from None
    if found <= 0:
        raise UsageError(f"`{text}` is not above 0", hint="write for example 30m, 6h or 1d")
    return found


def require_at_least(section: str, settings: object, minimum: int, *names: str) -> None:
    """Raises UsageError for the first of these settings that is smaller."""
    for name in names:
        if (value := getattr(settings, name)) < minimum:
            raise UsageError(f"{section}.{name} is {value}", hint=f"it must be at least {minimum}")


def require_at_most(section: str, settings: object, maximum: int, *names: str) -> None:
    """Raises UsageError for the first of these settings that is larger."""
    for name in names:
        if (value := getattr(settings, name)) > maximum:
            raise UsageError(f"{section}.{name} is {value}", hint=f"it must be at most {maximum}")


def require_port(section: str, settings: object, *names: str, lowest: int = 1) -> None:
    """Raises UsageError for the first of these settings that is no TCP port."""
    for name in names:
        if not lowest <= (value := getattr(settings, name)) <= 65_535:
            raise UsageError(f"{section}.{name} is {value}", hint=f"it must be {lowest} to 65535")


@dataclass(frozen=True)
class KafkaSettings:
    """Which broker, which topics, and how to log in."""

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
        if self.topic == self.dead_letter_topic:  # each dead letter would be a bad event, without end
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
        """The hint where none answers: `spoor services up` is refused where another broker than ours is configured."""
        if self.embedded:
            return "start it with `spoor services up`"
        return "check kafka.bootstrap_servers and the security settings (`spoor config show`)"

    def topic_change(self, topic: str, setting: str) -> str:
        """Kafka's own command that changes the configuration of a topic, for a hint."""
        where = f"--bootstrap-server {self.address} --entity-type topics --entity-name {topic}"
        return f"`kafka-configs {where} --alter --add-config {setting}`"

    def check_own(self) -> None:
        """Raises as `check_own_broker`; a configured broker is not asked."""
        if self.embedded:
            check_own_broker(self.folder, self.port, timeout_seconds=self.request_timeout_seconds)

    def embedding_topic(self, release: str) -> str:
        return self.embedding_topic_prefix + release

    @property
    def embedding_topic_config(self) -> dict[str, str]:
        """With which an embedding topic is created."""
        lag_ms = self.embedding_compaction_lag_hours * 3_600_000
        return {"cleanup.policy": "compact", "min.compaction.lag.ms": str(lag_ms)}

    def client_options(self) -> dict[str, Any]:
        """Keyword arguments for every kafka-python client; consumers take `consumer_options`. Raises UsageError where
        the broker of another folder answers at the embedded broker's port."""
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
        """Keyword arguments for every kafka-python consumer. With `read_committed` a partition ends, to `end_offsets`
        too, where its first open transaction begins."""
        return self.client_options() | {
            "isolation_level": self.isolation_level,
            "enable_auto_commit": False,
            "allow_auto_create_topics": False,  # a mistyped name must not become a topic
        }


@dataclass(frozen=True)
class EventFields:
    """What an event's fields are called in your records and files. Dots lead into nested ones: `payload.user.id`."""

    user_id: str = "user_id"  # for example userId, or nested: payload.user.id
    item_id: str = "item_id"  # likewise
    action: str = "action"  # likewise
    surface: str = "surface"  # likewise
    timestamp: str = "timestamp"  # likewise

    def __post_init__(self) -> None:
        names = [getattr(self, known.name) for known in fields(self)]
        for known, name in zip(fields(self), names, strict=True):
            if not all(name.split(".")):
                raise UsageError(
                    f"events.fields.{known.name} is `{name}`",
                    hint="name a field of your events, for example userId or payload.user.id",
                )
            others = [other for other in names if other == name or other.startswith(f"{name}.")]
            if len(others) > 1:
                raise UsageError(
                    f"events.fields name `{others[0]}` and `{others[1]}`: one is the other, or lies within it",
                    hint="each field of an event has a place of its own",
                )


@dataclass(frozen=True)
class EventDefaults:
    """Constants in place of what an event lacks, or has null for."""

    action: str = ""  # of events without one; empty = they are refused
    surface: str = ""  # of events without one; empty = they are refused


@dataclass(frozen=True)
class EventSettings:
    """What an event may be. Everything else is a dead letter."""

    format: EventFormat = "json"  # of records' values in Kafka
    schema_registry: str = ""  # URL, if records carry the ids of schemas; empty = all are of activity/event.avsc
    schema_registry_user: str = ""  # for HTTP basic authentication
    schema_registry_password: str = field(default="", repr=False, metadata={"secret": True})  # or …_password_file
    actions: tuple[str, ...] = ()  # names in use; empty = any name
    surfaces: tuple[str, ...] = ()  # names in use; empty = any name
    unknown_names: Literal["keep", "dead-letter"] = "keep"  # an action or surface that is not named above
    user_id_type: Literal["string", "int64"] = "string"  # the type of Feast's user entity
    item_id_type: Literal["string", "int64"] = "string"  # the type of Feast's item entity
    max_id_bytes: int = 128  # UTF-8 length of user_id and item_id
    max_name_bytes: int = 64  # UTF-8 length of action and surface
    max_record_bytes: int = 16_384  # size of a record's value
    max_skew_seconds: int = 300  # how far an event's time may lie after the broker's append time
    earliest: str = "1990-01-01T00:00:00Z"  # events before this are refused
    fields: EventFields = EventFields()  # what events' fields are called
    defaults: EventDefaults = EventDefaults()  # constants for what they lack

    def __post_init__(self) -> None:
        """What is wrong here would otherwise be found in every event, and make each of them a dead letter."""
        require_at_least("events", self, 1, "max_id_bytes", "max_name_bytes", "max_record_bytes")
        require_at_least("events", self, 0, "max_skew_seconds")
        self._check_registry()
        self._check_defaults()
        try:
            parse_time_ms(self.earliest)
        except UsageError as error:
            raise UsageError(f"events.earliest: {error.message}", hint=error.hint) from None

    def _check_registry(self) -> None:
        url = self.schema_registry
        if not url:
            return
        if self.format != "avro":
            raise UsageError(
                f"events.schema_registry is set and events.format is {self.format}", hint='set it to "avro"'
            )
        if not url.startswith(("http://", "https://")) or "@" in url:
            raise UsageError(
                "events.schema_registry is no http(s) URL without a user in it",
                hint="write for example https://registry:8081; user and password are settings of their own",
            )

    def _check_defaults(self) -> None:
        """A constant that no event may have would make a dead letter of every event without one."""
        from spoor.activity.errors import EventError
        from spoor.activity.fields import event_name

        for name in ("action", "surface"):
            if value := getattr(self.defaults, name):
                try:
                    event_name(value, name, self)
                except EventError as error:
                    raise UsageError(f"events.defaults.{error}", hint="set a name that events may have") from None

    @cached_property
    def earliest_ms(self) -> int:
        return parse_time_ms(self.earliest)

    @cached_property
    def sources(self) -> tuple[tuple[str, str], ...]:
        """(field of an event, its name in records and files), in the order of an event's fields."""
        return tuple((known.name, getattr(self.fields, known.name)) for known in fields(self.fields))

    @cached_property
    def source_names(self) -> tuple[str, ...]:
        return tuple(source for _, source in self.sources)


@dataclass(frozen=True)
class HistorySettings:
    max_events: int = 256  # L: newest events kept per user

    def __post_init__(self) -> None:
        require_at_least("history", self, 1, "max_events")  # 0 would empty every stored history


@dataclass(frozen=True)
class LakeSettings:
    folder: Path = Path("{state_folder}/lake")  # archive of events in Parquet
    buckets: int = 8  # user buckets: the unit of work of batch jobs
    range_records: int = 50_000  # records per work item of `spoor archive`

    def __post_init__(self) -> None:
        require_at_least("lake", self, 1, "buckets", "range_records")
