"""How the stream reaches Kafka: Faust's broker address and credentials, and the check of the topics at start.

Faust talks through aiokafka; the check and the replay use kafka-python with `KafkaSettings.client_options()`. Topics
are created by the command line (spoor/operations/kafka_admin.py), never by the worker.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from spoor.base.errors import InfrastructureError, UsageError
from spoor.broker.compression import missing_codec
from spoor.broker.settings import KafkaSettings
from spoor.broker.topics import check_activity_topic, no_such_topic
from spoor.streaming.records.dead_letters import ENVELOPE_BYTES, LEAST_TOPIC_BYTES

if TYPE_CHECKING:
    from faust.auth import Credentials
    from kafka import KafkaAdminClient

log = logging.getLogger(__name__)

DEFAULT_RECORD_BYTES = 1_048_588  # Kafka's max.message.bytes where nobody set it
MAX_REQUEST_BYTES = 64 * 1024 * 1024  # of producers: the broker's own limits decide what a record may be
SASL_MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")


def broker_urls(kafka: KafkaSettings) -> list[str]:
    """The configured addresses in the form that Faust takes."""
    return [f"kafka://{server.strip()}" for server in kafka.address.split(",")]


def credentials(kafka: KafkaSettings) -> Credentials | None:
    """Faust's credentials for the configured security protocol; none for PLAINTEXT. Raises UsageError."""
    from faust.auth import SASLCredentials, SSLCredentials

    context = _ssl_context(kafka) if kafka.security_protocol.endswith("SSL") else None
    if not kafka.security_protocol.startswith("SASL"):
        return None if context is None else SSLCredentials(context=context)
    mechanism = kafka.sasl_mechanism or "PLAIN"
    if mechanism not in SASL_MECHANISMS:
        raise UsageError(
            f"kafka.sasl_mechanism is `{mechanism}`", hint=f"the stream speaks {', '.join(SASL_MECHANISMS)}"
        )
    if not kafka.sasl_username:
        raise UsageError(
            f"kafka.security_protocol is {kafka.security_protocol} without a user",
            hint="set kafka.sasl_username and kafka.sasl_password (SPOOR_KAFKA__SASL_PASSWORD)",
        )
    return SASLCredentials(
        username=kafka.sasl_username, password=kafka.sasl_password, ssl_context=context, mechanism=mechanism
    )


@contextmanager
def admin_client(kafka: KafkaSettings) -> Iterator[KafkaAdminClient]:
    """A connected admin client. Raises InfrastructureError if no broker answers, then or later."""
    from kafka import KafkaAdminClient
    from kafka.errors import KafkaError

    timeout_ms = int(kafka.request_timeout_seconds * 1000)
    try:
        timeouts = {"bootstrap_timeout_ms": timeout_ms, "request_timeout_ms": timeout_ms}
        options: dict[str, Any] = kafka.client_options() | timeouts
        admin = KafkaAdminClient(**options)
        try:
            yield admin
        finally:
            admin.close()
    except (KafkaError, OSError) as error:
        raise no_broker(kafka, error) from error


@contextmanager
def kafka_errors(kafka: KafkaSettings) -> Iterator[None]:
    """What a kafka-python client raises, as InfrastructureError."""
    from kafka.errors import KafkaConnectionError, KafkaError, KafkaTimeoutError

    try:
        yield
    except (KafkaTimeoutError, KafkaConnectionError, OSError) as error:  # TimeoutError is an OSError
        raise no_broker(kafka, error) from error
    except KafkaError as error:
        raise missing_codec(error) or InfrastructureError(
            f"Kafka at {kafka.address} refused: {error}", hint="check the rights of this user on the topics"
        ) from error


def no_broker(kafka: KafkaSettings, error: BaseException) -> InfrastructureError:
    return InfrastructureError(
        f"no Kafka broker answers at {kafka.address}: {type(error).__name__}",
        hint=kafka.way_to_a_broker,
    )


class CheckedTopics(NamedTuple):
    partitions: dict[str, int]  # by topic
    letter_bytes: int  # the largest record that the dead-letter topic takes; Kafka's default where it is not told


def check_topics(kafka: KafkaSettings, releases: Sequence[str]) -> CheckedTopics:
    """Looks at every topic that the worker needs.

    Raises UsageError for a topic that is missing or whose clean-up policy loses what Spoor must keep,
    InfrastructureError if no broker answers."""
    embeddings = [kafka.embedding_topic(release) for release in releases]
    needed = [kafka.topic, kafka.dead_letter_topic, *embeddings]
    with admin_client(kafka) as admin:
        present = set(admin.list_topics())
        missing = [topic for topic in needed if topic not in present]
        if missing:
            raise no_such_topic(kafka, missing, present)
        partitions = {topic["name"]: len(topic["partitions"]) for topic in admin.describe_topics(needed)}
        configs = _topic_configs(admin, needed)
    check_policies(kafka, configs, embeddings)
    letters = configs.get(kafka.dead_letter_topic, {})
    letter_bytes = int(letters.get("max.message.bytes", DEFAULT_RECORD_BYTES))
    return CheckedTopics(partitions, min(letter_bytes, MAX_REQUEST_BYTES))


def check_policies(kafka: KafkaSettings, configs: dict[str, dict[str, str]], embeddings: Sequence[str]) -> None:
    """`configs`: topic → configuration. A value that the broker did not tell is not judged. Raises UsageError."""
    check_activity_topic(kafka, configs.get(kafka.topic, {}))
    letters = configs.get(kafka.dead_letter_topic, {})
    for topic in embeddings:
        policy = configs.get(topic, {}).get("cleanup.policy", "compact")
        if "compact" not in policy:
            raise UsageError(
                f"topic `{topic}` is not compacted (cleanup.policy={policy}): "
                "it would forget users instead of keeping their last row",
                hint=kafka.topic_change(topic, "cleanup.policy=compact"),
            )
    if int(letters.get("max.message.bytes", DEFAULT_RECORD_BYTES)) < LEAST_TOPIC_BYTES:
        raise UsageError(
            f"topic `{kafka.dead_letter_topic}` takes records of {letters['max.message.bytes']} bytes: "
            f"a dead letter, even one that only refers to its record, has up to {LEAST_TOPIC_BYTES}",
            hint=kafka.topic_change(
                kafka.dead_letter_topic, f"max.message.bytes={dead_letter_bytes(DEFAULT_RECORD_BYTES)}"
            ),
        )


def dead_letter_bytes(record_bytes: int) -> int:
    """How large a plain dead letter can be whose original record has up to `record_bytes`: base64 and the envelope."""
    return (record_bytes + 2) // 3 * 4 + ENVELOPE_BYTES


def _topic_configs(admin: KafkaAdminClient, topics: Sequence[str]) -> dict[str, dict[str, str]]:
    from kafka.admin import ConfigResource, ConfigResourceType
    from kafka.errors import KafkaError

    resources = [ConfigResource(ConfigResourceType.TOPIC, topic) for topic in topics]
    try:
        untyped: Any = admin  # the type checker carries stubs of kafka-python 2
        found = untyped.describe_configs(resources, config_filter="all").get("topic", {})
    except KafkaError as error:
        log.warning("the topics' configuration cannot be read (%s): clean-up policies are not checked", error)
        return {}
    return {topic: {name: config["value"] for name, config in configs.items()} for topic, configs in found.items()}


def _ssl_context(kafka: KafkaSettings) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=kafka.ssl_cafile or None)
        if kafka.ssl_certfile:
            context.load_cert_chain(kafka.ssl_certfile, kafka.ssl_keyfile or None)
    except (OSError, ssl.SSLError) as error:
        raise UsageError(
            f"the TLS files of the kafka section cannot be loaded: {error}",
            hint="check kafka.ssl_cafile, kafka.ssl_certfile and kafka.ssl_keyfile",
        ) from error
    return context
