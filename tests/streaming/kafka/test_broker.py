"""How Kafka settings become Faust's address and credentials, and which topics are refused. No broker needed here."""

import ssl

import pytest
from aiokafka.helpers import create_ssl_context
from faust.auth import SASLCredentials, SSLCredentials
from faust.transport.drivers.aiokafka import credentials_to_aiokafka_auth

from spoor.base.errors import InfrastructureError, UsageError
from spoor.broker.settings import KafkaSettings
from spoor.broker.topics import check_policies, dead_letter_bytes
from spoor.streaming.kafka.broker import broker_urls, check_topics, credentials
from spoor.streaming.records.dead_letters import DeadLetter, encode_dead_letter


def test_every_configured_server_becomes_an_address():
    assert broker_urls(KafkaSettings(bootstrap_servers="a:1, b:2")) == ["kafka://a:1", "kafka://b:2"]
    assert broker_urls(KafkaSettings(port=19099)) == ["kafka://127.0.0.1:19099"]


def test_plaintext_needs_no_credentials():
    assert credentials(KafkaSettings()) is None


@pytest.mark.parametrize("mechanism", ["", "PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
def test_sasl_over_plaintext_passes_user_password_and_mechanism(mechanism):
    kafka = KafkaSettings(
        security_protocol="SASL_PLAINTEXT", sasl_mechanism=mechanism, sasl_username="me", sasl_password="secret"
    )
    found = credentials(kafka)
    assert isinstance(found, SASLCredentials)
    options = credentials_to_aiokafka_auth(found)
    assert options["security_protocol"] == "SASL_PLAINTEXT"
    assert options["sasl_mechanism"] == (mechanism or "PLAIN")
    assert (options["sasl_plain_username"], options["sasl_plain_password"]) == ("me", "secret")
    assert options["ssl_context"] is None


def test_sasl_over_tls_carries_a_context_that_checks_the_broker():
    kafka = KafkaSettings(security_protocol="SASL_SSL", sasl_username="me", sasl_password="secret")
    options = credentials_to_aiokafka_auth(credentials(kafka))
    assert options["security_protocol"] == "SASL_SSL"
    assert options["ssl_context"].verify_mode == ssl.CERT_REQUIRED
    assert options["ssl_context"].check_hostname == create_ssl_context().check_hostname


def test_tls_alone_carries_a_context():
    found = credentials(KafkaSettings(security_protocol="SSL"))
    assert isinstance(found, SSLCredentials)
    assert credentials_to_aiokafka_auth(found)["security_protocol"] == "SSL"


def test_the_password_is_not_shown():
    kafka = KafkaSettings(security_protocol="SASL_PLAINTEXT", sasl_username="me", sasl_password="secret")
    assert "secret" not in repr(kafka) + repr(credentials(kafka))


@pytest.mark.parametrize(
    ("kafka", "found"),
    [
        (KafkaSettings(security_protocol="SASL_SSL", sasl_mechanism="GSSAPI", sasl_username="me"), "GSSAPI"),
        (KafkaSettings(security_protocol="SASL_SSL"), "without a user"),
        (KafkaSettings(security_protocol="SSL", ssl_cafile="/nowhere/ca.pem"), "TLS files"),
        (KafkaSettings(security_protocol="SSL", ssl_certfile="/nowhere/cert.pem"), "TLS files"),
    ],
)
def test_security_settings_that_cannot_work_are_refused_before_connecting(kafka, found):
    with pytest.raises(UsageError, match=found) as raised:
        credentials(kafka)
    assert "kafka." in raised.value.hint or "stream" in raised.value.hint


KAFKA = KafkaSettings()
LARGE = str(dead_letter_bytes(1_048_588))
GOOD = {
    "activity": {"cleanup.policy": "delete", "max.message.bytes": "1048588"},
    "activity-dead-letters": {"cleanup.policy": "compact", "max.message.bytes": LARGE},
    "user-embeddings.base-1": {"cleanup.policy": "compact"},
}


SMALL = {"activity-dead-letters": {"cleanup.policy": "compact", "max.message.bytes": "1048588"}}  # references fit


@pytest.mark.parametrize("configs", [GOOD, {}, {"activity": {}}, GOOD | SMALL])
def test_topics_that_keep_what_they_must_are_accepted_and_silence_is_not_judged(configs):
    check_policies(KAFKA, configs, ["base-1"])


@pytest.mark.parametrize(
    ("topic", "config", "found"),
    [
        ("activity", {"cleanup.policy": "compact"}, "is compacted"),
        ("activity", {"cleanup.policy": "compact,delete"}, "is compacted"),
        ("user-embeddings.base-1", {"cleanup.policy": "delete"}, "is not compacted"),
        ("activity-dead-letters", {"max.message.bytes": "4000"}, "takes records of 4000 bytes"),
    ],
)
def test_topics_that_would_lose_records_are_refused_with_the_command_that_mends_them(topic, config, found):
    with pytest.raises(UsageError, match=found) as raised:
        check_policies(KAFKA, GOOD | {topic: GOOD[topic] | config}, ["base-1"])
    assert topic in raised.value.hint


@pytest.mark.parametrize("size", [0, 1, 2, 3, 1000, 1_048_588])
def test_the_size_asked_of_the_dead_letter_topic_holds_the_largest_record(size):
    letter = DeadLetter(
        "t" * 249, 0, 2**62, 2**62, "r" * 30, "value", "f" * 200, "e" * 200, "E" * 40, None, b"v" * size
    )
    key, value = encode_dead_letter(letter)
    assert len(key) + len(value) <= dead_letter_bytes(size)


def test_a_broker_that_is_down_is_told_with_its_address(settings):
    with pytest.raises(InfrastructureError, match=f"127.0.0.1:{settings.kafka.port}") as raised:
        check_topics(KafkaSettings(port=settings.kafka.port, request_timeout_seconds=0.5), [])
    assert "spoor services up" in raised.value.hint
