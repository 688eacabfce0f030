"""Records larger than what the dead-letter topic takes, or than a fetch: a dead letter each, whatever its form,
and no stop; archive says the same of them."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from kafka import KafkaAdminClient, KafkaProducer, TopicPartition
from kafka.admin import ConfigResource, ConfigResourceType
from kafka.errors import MessageSizeTooLargeError

from spoor.batch.kafka.archive import run_archive
from spoor.broker.settings import KafkaSettings
from spoor.streaming.orders.replay import list_dead_letters, oldest_letter_ms, replay_dead_letters
from spoor.streaming.records.dead_letters import decode_dead_letter
from spoor.streaming.worker import run_worker
from tests.conftest import wait_until
from tests.streaming.conftest import World, some_events
from tests.topics import topic_records

RANDOM = random.Random(1)
ONE_LETTER = b"a" * 3_000_000  # 3 KB in gzip
NOISE = RANDOM.randbytes(900_000)  # 1.2 MB in base64
Content = tuple[bytes, bytes | None, list[tuple[str, bytes]]]


def limit(kafka: KafkaSettings, topic: str, most_bytes: int) -> None:
    """Sets max.message.bytes, and returns when the broker refuses what is larger and takes what is not."""
    with KafkaAdminClient(**kafka.client_options()) as connected:
        admin: Any = connected
        configs = {"max.message.bytes": str(most_bytes)}
        admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, configs=configs)])

        def is_set() -> bool:
            found = admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic)], config_filter="all")
            return found["topic"][topic]["max.message.bytes"]["value"] == str(most_bytes)

        wait_until(is_set, f"max.message.bytes of {topic}")


def produce(kafka: KafkaSettings, topic: str, contents: Sequence[Content], *, compression: str | None = "gzip") -> None:
    options: Any = kafka.client_options() | {"compression_type": compression, "max_request_size": 64 << 20}
    with KafkaProducer(**options) as producer:
        for key, value, headers in contents:
            producer.send(topic, key=key, value=value, headers=headers, partition=0).get(timeout=60)


def work(world: World, records: int) -> None:
    events = some_events(30)
    world.produce(events)
    assert run_worker(world.settings, count=records + len(events), timeout_seconds=120).dead_letters == records
    assert world.caught_up()
    world.assert_holds(events)


def forms(world: World) -> dict[int, str]:
    """Offset in the activity topic → form of its dead letter."""
    found = {}
    for record in topic_records(world.settings.kafka, world.settings.kafka.dead_letter_topic):
        letter = decode_dead_letter(record.value)
        compressed = b'"compression":"zlib"' in record.value
        found[letter.offset] = "reference" if letter.is_reference else "zlib" if compressed else "plain"
    return found


def contents(world: World) -> list[tuple[bytes | None, bytes | None]]:
    return [
        (letter.key, letter.value)
        for letter in sorted(list_dead_letters(world.settings), key=lambda letter: letter.offset)
    ]


def test_a_letter_is_plain_compressed_or_a_reference_and_a_replay_sends_the_original_bytes(world: World):
    kafka = world.settings.kafka
    limit(kafka, kafka.dead_letter_topic, 1_048_588)  # as a company's topic may have it
    bad: list[Content] = [
        (b"k", b"no json", []),
        (b"k", ONE_LETTER, []),
        (b"k", NOISE, []),
        (RANDOM.randbytes(800_000), b"no json", []),
        (RANDOM.randbytes(900_000), None, []),
        (b"k", b"no json", [("h", RANDOM.randbytes(900_000))]),  # headers are not kept
    ]
    produce(kafka, kafka.topic, bad)
    work(world, len(bad))
    assert forms(world) == dict(enumerate(["plain", "zlib", "reference", "reference", "reference", "plain"]))
    assert contents(world) == [(key, value) for key, value, _ in bad]
    reasons = Counter(letter.reason for letter in list_dead_letters(world.settings))
    assert run_archive(world.settings).bad == reasons  # one verdict
    assert replay_dead_letters(world.settings, dry_run=True).replayed == len(bad)
    result = replay_dead_letters(world.settings)
    assert (result.replayed, result.gone, result.too_large) == (len(bad), 0, 0)
    assert list_dead_letters(world.settings) == []
    sent = [record for record in topic_records(kafka, kafka.topic) if dict(record.headers).get("spoor-replay-of")]
    assert Counter((r.key, r.value) for r in sent) == Counter((key, value) for key, value, _ in bad)


def test_a_reference_whose_record_retention_has_deleted_is_told_counted_and_closed(
    world: World, caplog: pytest.LogCaptureFixture
):
    kafka = world.settings.kafka
    limit(kafka, kafka.dead_letter_topic, 1_048_588)
    produce(kafka, kafka.topic, [(b"k", NOISE, []), (b"k", NOISE + b"2", []), (b"k", b"no json", [])])
    work(world, 3)
    with KafkaAdminClient(**kafka.client_options()) as admin:
        admin.delete_records({TopicPartition(kafka.topic, 0): 1})
    assert [letter.is_gone for letter in list_dead_letters(world.settings)] == [True, False, False]
    planned = replay_dead_letters(world.settings, dry_run=True)
    assert (planned.replayed, planned.gone) == (2, 1)
    done = replay_dead_letters(world.settings)
    assert (done.replayed, done.gone) == (2, 1)
    assert f"dead letter {kafka.topic}/0/0 is closed and not sent" in caplog.text
    assert list_dead_letters(world.settings) == []


def test_a_limit_that_was_lowered_while_the_worker_runs_does_not_stop_it(world: World):
    """The broker's answer decides: what was known at the start is no longer so."""
    kafka = world.settings.kafka
    worker = world.start_worker(count=3)
    worker.await_log("keeping")
    limit(kafka, kafka.dead_letter_topic, 9_000)

    def refused() -> bool:
        try:
            produce(kafka, kafka.dead_letter_topic, [(b"probe", RANDOM.randbytes(9_500), [])], compression=None)
        except MessageSizeTooLargeError:
            return True
        produce(kafka, kafka.dead_letter_topic, [(b"probe", None, [])])
        return False

    wait_until(refused, "the broker refuses more than 9000 bytes")
    noise = [RANDOM.randbytes(size) for size in (50_000, 20_000, 4_000)]  # alone; with others; one that fits
    produce(kafka, kafka.topic, [(b"k", value, []) for value in noise])
    assert worker.ended() == 0, worker.log[-3000:]
    assert contents(world) == [(b"k", value) for value in noise]
    assert list(dict(sorted(forms(world).items())).values()) == ["reference", "reference", "plain"]


def test_records_larger_than_a_fetch_are_read_by_worker_archive_and_replay(world: World):
    kafka = world.settings.kafka
    limit(kafka, kafka.topic, 20_000_000)
    value = RANDOM.randbytes(9_000_000)
    produce(kafka, kafka.topic, [(b"k", value, [])], compression=None)
    work(world, 1)
    assert contents(world) == [(b"k", value)]
    assert run_archive(world.settings).bad == {"too-large": 1}
    limit(kafka, kafka.topic, 1_048_588)
    result = replay_dead_letters(world.settings)
    assert (result.replayed, result.too_large) == (0, 1)
    assert list(forms(world).values()) == ["reference"]  # still open


def test_a_reference_holds_no_marker_of_a_forgotten_user_back(world: World):
    """Its bytes lie on the activity topic alone, whose own oldest record counts."""
    kafka = world.settings.kafka
    limit(kafka, kafka.dead_letter_topic, 1_048_588)
    produce(kafka, kafka.topic, [(b"k", NOISE, [])])
    work(world, 1)
    assert list(forms(world).values()) == ["reference"]
    assert oldest_letter_ms(world.settings) is None
