"""One translation of what Kafka's clients raise. No broker is needed here."""

import dataclasses

import pytest
from kafka.errors import KafkaError, KafkaTimeoutError, TopicAuthorizationFailedError

from spoor.base.errors import InfrastructureError
from spoor.broker.admin import Admin
from spoor.broker.clients import kafka_errors
from spoor.broker.producer import Producer
from spoor.broker.reader import TopicReader
from spoor.broker.settings import KafkaSettings
from tests.conftest import free_port

AWAY = KafkaSettings(bootstrap_servers="127.0.0.1:1", request_timeout_seconds=0.2)


@pytest.mark.parametrize("error", [KafkaTimeoutError("late"), ConnectionResetError(), TimeoutError()])
def test_a_broker_that_does_not_answer_is_named_with_the_time_that_it_had(error: Exception):
    with (
        pytest.raises(InfrastructureError, match=r"broker answers at 127\.0\.0\.1:1.* within 0\.2 s") as raised,
        kafka_errors(AWAY),
    ):
        raise error
    assert "kafka.bootstrap_servers" in raised.value.hint


@pytest.mark.parametrize("error", [TopicAuthorizationFailedError("activity"), KafkaError("other")])
def test_an_answer_that_is_a_refusal_is_not_called_silence(error: Exception):
    with (
        pytest.raises(InfrastructureError, match=r"Kafka at 127\.0\.0\.1:1 refused: .*Error") as raised,
        kafka_errors(AWAY),
    ):
        raise error
    assert "rights" in raised.value.hint


@pytest.mark.parametrize("client", [Admin, TopicReader, Producer])
@pytest.mark.parametrize("seconds", [0.001, 0.4, 0.6])
def test_every_client_keeps_to_the_request_s_timeout(client: type, seconds: float):
    """kafka-python refuses a consumer whose timeout is not above its wait for records."""
    kafka = dataclasses.replace(AWAY, bootstrap_servers=f"127.0.0.1:{free_port()}", request_timeout_seconds=seconds)
    with pytest.raises(InfrastructureError, match="no Kafka broker answers"):
        client(kafka)
