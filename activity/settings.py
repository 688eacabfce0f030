"""The settings of events, histories and the lake, shared by several rooms."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Literal

from spoor.activity.fields import name_of
from spoor.base.errors import EventError, UsageError
from spoor.base.limits import require_at_least
from spoor.base.times import parse_time_ms

EventFormat = Literal["json", "avro"]


@dataclass(frozen=True)
class EventFields:
    """The names of an event's fields in your records and files. Dots lead into nested fields: `payload.user.id`."""

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
    """Defaults for fields that are missing or null in an event."""

    action: str = ""  # of events without one; empty = they are refused
    surface: str = ""  # of events without one; empty = they are refused


@dataclass(frozen=True)
class EventSettings:
    """Which events are valid. All other records become dead letters."""

    format: EventFormat = "json"  # of records' values in Kafka
    schema_registry: str = ""  # URL, if records carry the ids of schemas; empty = all are of activity/avro/event.avsc
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
        """Checks the settings at the start: a mistake here would make every event a dead letter."""
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
        """Checks the defaults: an invalid one would make every event without a value a dead letter."""
        for name in ("action", "surface"):
            if value := getattr(self.defaults, name):
                try:
                    name_of(value, name, self.max_name_bytes, self.accepted_names(name))
                except EventError as error:
                    raise UsageError(f"events.defaults.{error}", hint="set a name that events may have") from None

    def accepted_names(self, name: str) -> tuple[str, ...]:
        """The accepted names of an `action` or `surface`; empty = any."""
        if self.unknown_names == "keep":
            return ()
        return self.actions if name == "action" else self.surfaces

    @cached_property
    def earliest_ms(self) -> int:
        return parse_time_ms(self.earliest)

    @cached_property
    def sources(self) -> tuple[tuple[str, str], ...]:
        """(event field, its name in records and files), in the order of an event's fields."""
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
