"""Settings that a worker cannot work with are refused before it starts."""

import pytest

from spoor.base.errors import UsageError
from spoor.streaming.settings import StreamSettings


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("batch_events", 0),
        ("retries", 0),
        ("cache_users", -1),
        ("retry_seconds", -0.1),
        ("batch_seconds", 0.0),
        ("batch_seconds", 31.0),
        ("stall_seconds", 0.0),
        ("metrics_port", -1),
        ("metrics_port", 65_536),
    ],
)
def test_a_value_out_of_range_is_named(name, value):
    with pytest.raises(UsageError, match=f"stream.{name} is {value}") as raised:
        StreamSettings(**{name: value})
    assert raised.value.hint


def test_no_cache_and_no_metrics_are_choices():
    settings = StreamSettings(cache_users=0, metrics_port=0)
    assert (settings.cache_users, settings.metrics_port) == (0, 0)
