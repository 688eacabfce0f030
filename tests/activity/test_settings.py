"""Values that would lose or refuse everybody's events are refused when the settings are read, not when events come."""

import pytest

from activity.errors import UsageError
from activity.settings import EventSettings, HistorySettings, KafkaSettings, LakeSettings, parse_time_ms


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
