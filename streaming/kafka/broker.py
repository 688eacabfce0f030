"""How the stream reaches Kafka: Faust's broker address and credentials, and the check of the topics at start.

Faust talks through aiokafka; the check uses spoor/broker. Topics are created by the command line
(spoor/broker/create_topics.py), never by the worker.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from spoor.base.errors import InfrastructureError, UsageError
from spoor.broker.admin import Admin
from spoor.broker.settings import KafkaSettings
from spoor.broker.topics import DEFAULT_RECORD_BYTES, check_policies, no_such_topic, topic_settings

if TYPE_CHECKING:
    from faust.auth import Credentials

log = logging.getLogger(__name__)

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


class CheckedTopics(NamedTuple):
    partitions: dict[str, int]  # by topic
    letter_bytes: (
        int  # the largest record that the dead-letter topic takes; Kafka's default where the broker does not tell
    )


def check_topics(kafka: KafkaSettings, releases: Sequence[str]) -> CheckedTopics:
    """Looks at every topic that the worker needs.

    Raises UsageError for a topic that is missing or whose clean-up policy loses what Spoor must keep,
    InfrastructureError if no broker answers."""
    needed = list(topic_settings(kafka, releases))
    with Admin(kafka) as admin:
        present = admin.topics()
        if missing := [topic for topic in needed if topic not in present]:
            raise no_such_topic(kafka, missing, present)
        partitions = {name: len(topic["partitions"]) for name, topic in admin.described(needed).items()}
        try:
            configs = admin.configs(needed)
        except InfrastructureError as error:  # such as a user without the right to read it
            log.warning("clean-up policies of the topics are not checked: %s", error.message)
            configs = {}
    check_policies(kafka, configs, releases)
    letter_bytes = int(configs.get(kafka.dead_letter_topic, {}).get("max.message.bytes", DEFAULT_RECORD_BYTES))
    return CheckedTopics(partitions, min(letter_bytes, MAX_REQUEST_BYTES))


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
