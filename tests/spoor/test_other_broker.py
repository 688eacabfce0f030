"""Two projects with the same ports: no command of the second reaches the broker of the first."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
from kafka import KafkaAdminClient, KafkaConsumer, TopicPartition

from spoor.activity.lake import Lake
from spoor.broker.settings import KafkaSettings
from spoor.config import Settings
from spoor.store.repo import apply, create_repo
from tests.releases import save_untrained_release


@pytest.fixture
def settings(settings: Settings, kafka: KafkaSettings) -> Settings:
    """A project with releases and stores of its own and the session's port, which has started no broker."""
    for name in ("base-1", "base-2"):
        folder = settings.features.releases_folder / name
        save_untrained_release(folder, items=["i"], actions=["view"], surfaces=["home"])
    create_repo(settings.features.feature_repo, online_store={"type": "sqlite"}, state_folder=settings.state_folder)
    apply(settings.features)
    return dataclasses.replace(settings, kafka=dataclasses.replace(settings.kafka, port=kafka.port))


def contents(kafka: KafkaSettings) -> dict[str, int]:
    """Topic → records."""
    admin, consumer = KafkaAdminClient(bootstrap_servers=kafka.address), KafkaConsumer(bootstrap_servers=kafka.address)
    try:
        topics = {topic["name"]: len(topic["partitions"]) for topic in admin.describe_topics(admin.list_topics())}
        ends = consumer.end_offsets([TopicPartition(topic, n) for topic, count in topics.items() for n in range(count)])
        return {topic: sum(ends[TopicPartition(topic, n)] for n in range(count)) for topic, count in topics.items()}
    finally:
        admin.close()
        consumer.close()


@pytest.mark.parametrize(
    "command",
    [
        ["archive"],
        ["archive", "--dry-run"],
        ["simulate", "--events", "5"],
        ["stream", "--count", "1", "--timeout-seconds", "5"],
        ["stream", "--dry-run", "--rewind", "1h"],
        ["stream", "status"],
        ["stream", "pause"],
        ["backfill"],
        ["forget", "--user", "ann", "--yes"],
        ["forget", "--user", "ann", "--dry-run"],
        ["forget", "--expire", "--yes"],
        ["dlq", "list"],
        ["dlq", "replay"],
        ["verify", "--repair"],
        ["release", "promote", "base-1"],
        ["release", "retire", "base-2", "--yes"],
        ["services", "up"],
    ],
    ids=" ".join,
)
def test_no_command_uses_the_broker_of_another_project(
    settings: Settings, kafka: KafkaSettings, spoor: Callable[..., Any], command: list[str]
) -> None:
    before = contents(kafka)
    done = spoor(*command)
    told = done.failed_with(3 if command == ["services", "up"] else 2)
    assert "is not the broker of" in told and str(kafka.folder / "data") in told
    assert f'"{kafka.address}"' in told or "kafka.controller_port = " in told
    assert contents(kafka) == before
    assert not list(Lake(settings.lake.folder, buckets=settings.lake.buckets).files())


def test_the_state_of_the_services_says_whose_broker_answers(
    settings: Settings, kafka: KafkaSettings, spoor: Callable[..., Any]
) -> None:
    done = spoor("services", "status")
    assert done.code == 1 and "not running" in done.out and str(kafka.folder / "data") in done.out
    assert spoor("services", "status", "--json").json["kafka"]["answering"] is False
    assert spoor("services", "down").code == 0
    contents(kafka)  # it still answers


def test_a_configured_address_is_nobody_s_own(
    settings: Settings, kafka: KafkaSettings, spoor: Callable[..., Any]
) -> None:
    given = ("--set", f"kafka.bootstrap_servers={kafka.address}", "--set", "kafka.topic=not-there")
    assert spoor(*given, "services", "status").code == 0
