"""`spoor topics create`, and that nothing which reads a topic makes one."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from kafka import KafkaAdminClient
from kafka.admin import NewTopic

from spoor.base.errors import UsageError
from spoor.batch.kafka.kafka_source import RangeReader
from spoor.broker.create_topics import create_topics, ensure_topics
from spoor.broker.settings import KafkaSettings
from spoor.config import Settings
from spoor.streaming.orders.replay import list_dead_letters, replay_dead_letters
from tests.brokers import one_node, running_broker
from tests.conftest import free_port, settings_in

CREATE_TIME = {"message.timestamp.type": "CreateTime", "cleanup.policy": "compact"}


def topics_of(kafka: KafkaSettings) -> set[str]:
    with KafkaAdminClient(**kafka.client_options()) as admin:
        return set(admin.list_topics())


def test_missing_topics_are_created_once_and_a_dry_run_creates_none(kafka_settings: Settings):
    kafka = kafka_settings.kafka
    names = [kafka.topic, kafka.dead_letter_topic, kafka.embedding_topic("base-1")]
    planned = create_topics(kafka, releases=["base-1"], dry_run=True)
    assert [topic.name for topic in planned if topic.created] == names and not topics_of(kafka) & set(names)
    first = create_topics(kafka, releases=["base-1"])
    assert [(topic.name, topic.created, topic.copies) for topic in first] == [(name, True, 1) for name in names]
    assert first[0].timestamp_type == "LogAppendTime" and first[0].retention_ms == kafka.retention_hours * 3_600_000
    again = create_topics(kafka, releases=["base-1"])
    assert [(topic.created, topic.differs) for topic in again] == [(False, ())] * 3


def test_what_exists_is_compared_and_not_changed(kafka_settings: Settings):
    kafka = dataclasses.replace(kafka_settings.kafka, partitions=3)
    with KafkaAdminClient(**kafka.client_options()) as admin:
        admin.create_topics([NewTopic(kafka.topic, num_partitions=1, replication_factor=1, topic_configs=CREATE_TIME)])
    for _ in range(2):
        activity, *_ = create_topics(kafka)
        assert activity.partitions == 1 and not activity.created
        assert set(activity.differs) == {
            "partitions is 1, not 3",
            "cleanup.policy is compact, not delete",
            "message.timestamp.type is CreateTime, not LogAppendTime",
        }


def test_a_broker_that_creates_topics_by_itself_gets_none_from_a_reader(tmp_path: Path):
    port, controller = free_port(), free_port()
    settings = settings_in(tmp_path, kafka__bootstrap_servers=f"127.0.0.1:{port}", kafka__topic="activity")
    properties = one_node(port, controller) | {
        "auto.create.topics.enable": "true",
        "listener.security.protocol.map": "CLIENTS:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "inter.broker.listener.name": "CLIENTS",
    }
    with running_broker(tmp_path / "kafka", properties, settings.kafka):
        create_topics(settings.kafka)
        before = topics_of(settings.kafka)
        mistyped = dataclasses.replace(
            settings, kafka=dataclasses.replace(settings.kafka, topic="activiti", dead_letter_topic="activiti-dead")
        )
        with RangeReader(mistyped.kafka) as reader:
            for refused in (
                lambda: reader.watermarks("activiti"),
                lambda: ensure_topics(mistyped.kafka, releases=["base-1"], reads_events=True),
                lambda: list_dead_letters(mistyped),
                lambda: replay_dead_letters(mistyped),
            ):
                with pytest.raises(UsageError, match="no topic `activiti") as caught:
                    refused()
                assert "did you mean `activity" in caught.value.hint
        assert topics_of(settings.kafka) - {"__consumer_offsets"} == before - {"__consumer_offsets"}


def test_the_command_s_json_says_what_was_created_and_what_differs(
    kafka_settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    from spoor import cli

    kafka = kafka_settings.kafka
    config = tmp_path / "own.toml"
    config.write_text(
        f'state_folder = "{tmp_path}/state"\n[kafka]\nbootstrap_servers = "{kafka.address}"\ntopic = "{kafka.topic}"\n'
        f'dead_letter_topic = "{kafka.dead_letter_topic}"\n[features]\nreleases_folder = "{tmp_path}/releases"\n'
    )

    def create(*options: str) -> tuple[int, list[dict[str, object]]]:
        code = cli.run(["--config", str(config), "topics", "create", "--json", *options])
        return code, json.loads(capsys.readouterr().out)["topics"]

    code, shown = create("--dry-run")
    assert code == 0 and [(t["exists"], t["created"]) for t in shown] == [(False, False)] * 2
    code, shown = create()
    assert code == 0 and [t["created"] for t in shown] == [True, True]
    code, shown = create()
    assert code == 0 and [(t["exists"], t["created"], t["differs"]) for t in shown] == [(True, False, [])] * 2
