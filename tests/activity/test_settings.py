"""Values that would lose or refuse everybody's events are refused when the settings are read, not when events come."""

import pytest

from spoor.activity.settings import EventDefaults, EventFields, EventSettings, HistorySettings, LakeSettings
from spoor.base.errors import UsageError
from spoor.base.times import parse_time_ms
from spoor.broker.settings import KafkaSettings


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        (HistorySettings, {"max_events": 0}, "history.max_events is 0"),
        (EventSettings, {"max_record_bytes": 0}, "events.max_record_bytes is 0"),
        (EventSettings, {"earliest": "1990-01-01T00:00"}, "events.earliest: `1990-01-01T00:00` has no time zone"),
        (EventSettings, {"earliest": "long ago"}, "events.earliest: `long ago` is not an ISO 8601 time"),
        (LakeSettings, {"buckets": 0}, "lake.buckets is 0"),
        (LakeSettings, {"range_records": -1}, "lake.range_records is -1"),
        (KafkaSettings, {"partitions": 0}, "kafka.partitions is 0"),
        (KafkaSettings, {"session_timeout_seconds": 0.0}, "kafka.session_timeout_seconds is 0.0"),
    ],
)
def test_a_value_that_nothing_can_work_with_is_refused_with_its_name(section, values, message):
    with pytest.raises(UsageError) as raised:
        section(**values)
    assert message in raised.value.message
    assert raised.value.hint


def test_names_of_which_an_earlier_version_made_one_can_both_be_configured():
    names = ("name-243", "name-290")
    assert EventSettings(actions=names, surfaces=names).actions == names


def test_times_are_read_with_their_zone():
    assert parse_time_ms("1970-01-01T01:00:00.001+01:00") == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2023-11-22", 1_700_611_200_000),
        ("2023-11-22Z", 1_700_611_200_000),
        ("2023-11-22+01:00", 1_700_607_600_000),
        ("2023-W47-3", 1_700_611_200_000),
        ("2023-11-22T00:00:00Z", 1_700_611_200_000),
        ("2023-11-22T00:00:00.9999Z", 1_700_611_200_999),
        ("1969-12-31T23:59:59.9999Z", -1),
    ],
)
def test_a_command_takes_a_time_or_a_date_for_its_midnight(text, expected):
    assert parse_time_ms(text) == expected


@pytest.mark.parametrize(
    "text",
    ["2023-11-22T10", "2023-11-22T10:00", "2023-11-22 10:00:00", "20231122T100000", "2023-11-22T10:00:00.123456"],
)
def test_the_hint_of_a_time_without_a_zone_can_be_followed(text):
    with pytest.raises(UsageError, match="no time zone") as error:
        parse_time_ms(text)
    followed = error.value.hint.removeprefix("write ").removesuffix(" for UTC")
    assert parse_time_ms(followed) > 0


@pytest.mark.parametrize("text", ["", "now", "1700000000000", "2023-11-31", "2023-11-22T24:00Z", "2023-11-22T10:00 Z"])
def test_what_is_no_time_gets_a_hint_that_can_be_followed(text):
    with pytest.raises(UsageError, match="not an ISO 8601 time") as error:
        parse_time_ms(text)
    first, second = error.value.hint.removeprefix("write for example ").removesuffix(" for midnight UTC").split(", or ")
    assert parse_time_ms(first) == parse_time_ms(second)


@pytest.mark.parametrize(
    "names",
    [
        {"user_id": ""},
        {"user_id": "a..b"},
        {"user_id": "item_id"},
        {"user_id": "u", "item_id": "u.id"},
        {"action": "."},
    ],
)
def test_names_that_no_event_can_have_are_refused(names):
    with pytest.raises(UsageError, match=r"events\.fields"):
        EventFields(**names)


def test_a_constant_that_no_event_may_have_is_refused():
    with pytest.raises(UsageError, match=r"events\.defaults\.surface"):
        EventSettings(defaults=EventDefaults(surface="a\n"))
    with pytest.raises(UsageError, match=r"events\.defaults\.action"):
        EventSettings(actions=("view",), unknown_names="dead-letter", defaults=EventDefaults(action="like"))


@pytest.mark.parametrize("name", ["port", "controller_port"])
@pytest.mark.parametrize("value", [-1, 0, 65_536])
def test_a_number_that_is_no_port_is_refused(name, value):
    with pytest.raises(UsageError, match=rf"kafka\.{name} is {value}"):
        KafkaSettings(**{name: value})


def test_a_heap_in_which_no_broker_starts_and_events_from_the_past_only_are_refused():
    with pytest.raises(UsageError, match=r"kafka\.heap_mb is 1"):
        KafkaSettings(heap_mb=1)
    with pytest.raises(UsageError, match=r"events\.max_skew_seconds is -1"):
        EventSettings(max_skew_seconds=-1)


@pytest.mark.parametrize("text", ["9999-12-31T23:59:59-23:00", "0001-01-01", "0001-01-01T00:00:00+23:00", "6429-10-18"])
def test_times_that_no_calendar_or_history_holds_are_refused(text):
    with pytest.raises(UsageError, match="out of range"):
        parse_time_ms(text)


def test_the_first_and_the_last_time_are_taken():
    assert parse_time_ms("0002-01-01") < 0 < parse_time_ms("6429-10-17")


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"topic": "same", "dead_letter_topic": "same"}, "both `same`"),
        ({"topic": "user-embeddings.x"}, "embedding_topic_prefix"),
        ({"dead_letter_topic": "user-embeddings.letters"}, "embedding_topic_prefix"),
        ({"embedding_topic_prefix": "a" * 201}, r"kafka\.embedding_topic_prefix is "),
        ({"embedding_topic_prefix": ""}, r"kafka\.embedding_topic_prefix is ''"),
        *(({"topic": name}, r"kafka\.topic is ") for name in ("", ".", "..", "a/b", "a b", "ä", "a" * 250)),
        ({"port": 9092, "controller_port": 9092}, "both 9092"),
        ({"partitions": 2**40}, r"kafka\.partitions"),
        ({"replication_factor": 101}, r"kafka\.replication_factor"),
        ({"retention_hours": 2**62}, r"kafka\.retention_hours"),
        ({"request_timeout_seconds": 1e300}, r"kafka\.request_timeout_seconds"),
        ({"request_timeout_seconds": 1e-9}, r"kafka\.request_timeout_seconds"),
    ],
)
def test_what_no_broker_could_do_is_refused_before_one_is_asked(wrong, named):
    with pytest.raises(UsageError, match=named) as error:
        KafkaSettings(**wrong)
    assert error.value.hint


def test_the_ends_of_ranges_are_taken():
    settings = KafkaSettings(port=1, controller_port=65_535, heap_mb=64, topic="a" * 249)
    assert (settings.port, settings.controller_port) == (1, 65_535)
    assert EventSettings(max_skew_seconds=0).max_skew_seconds == 0
