import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from activity.errors import InfrastructureError, UsageError
from activity.settings import KafkaSettings
from spoor import services
from spoor.config import Settings
from spoor.kafka_admin import ensure_topics
from tests.permissions import bound_by_permissions


def process_file(settings: Settings) -> Path:
    return settings.state_folder / "kafka" / "process.json"


@pytest.fixture
def broker(settings: Settings) -> Iterator[Settings]:
    """A broker of this test alone, to be killed at will."""
    services.up(settings)
    yield settings
    services.down(settings)


def produce(settings: Settings, values: list[bytes]) -> None:
    producer = KafkaProducer(**settings.kafka.client_options())
    futures = [producer.send(settings.kafka.topic, value=value, partition=0) for value in values]
    for future in futures:
        future.get(timeout=30)
    producer.close()


def consume(settings: Settings, count: int) -> list[bytes]:
    consumer = KafkaConsumer(**settings.kafka.client_options(), consumer_timeout_ms=30_000)
    consumer.assign([TopicPartition(settings.kafka.topic, 0)])
    consumer.seek_to_beginning()
    values = [record.value for _, record in zip(range(count), consumer, strict=False)]
    consumer.close()
    return values


def test_a_start_a_refused_second_start_and_a_stop(settings: Settings):
    assert not services.status(settings).running
    started = services.up(settings)
    assert started.running and started.answering and started.pid is not None
    assert started.version == "4.1.0"
    with pytest.raises(UsageError, match=f"already runs: process {started.pid}") as caught:
        services.up(settings)
    assert "spoor services down" in caught.value.hint
    assert services.ensure_up(settings) == started
    assert services.down(settings) is True
    assert not psutil.pid_exists(started.pid)
    assert services.down(settings) is False
    assert not services.status(settings).running


def test_the_broker_listens_on_this_machine_only_and_writes_its_log_into_the_state_folder(broker: Settings):
    status = services.status(broker)
    assert status.pid is not None and status.log is not None
    listening = [c.laddr for c in psutil.Process(status.pid).net_connections("tcp") if c.status == psutil.CONN_LISTEN]
    assert {(ip.removeprefix("::ffff:"), port) for ip, port in listening} == {
        ("127.0.0.1", broker.kafka.port),
        ("127.0.0.1", broker.kafka.controller_port),
    }
    assert "Kafka Server started" in status.log.read_text()
    assert broker.state_folder in status.log.parents


def test_nothing_confirmed_is_lost_by_kill_9(broker: Settings):
    ensure_topics(broker.kafka)
    values = [str(number).encode() for number in range(2_001)]
    produce(broker, values)
    pid = services.status(broker).pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    psutil.Process(pid).wait(30)
    assert not services.status(broker).running
    services.up(broker)
    assert consume(broker, len(values)) == values


def test_a_stop_and_start_on_other_ports_keeps_the_topics(broker: Settings, free_ports: tuple[int, int]):
    ensure_topics(broker.kafka)
    produce(broker, [b"kept"])
    services.down(broker)
    port, controller_port = free_ports
    moved = dataclasses.replace(
        broker, kafka=dataclasses.replace(broker.kafka, port=port, controller_port=controller_port)
    )
    services.up(moved)
    assert consume(moved, 1) == [b"kept"]


def test_the_broker_outlives_the_command_that_started_it(settings: Settings):
    code = (
        "import sys; from pathlib import Path; from spoor.config import load_settings; from spoor import services;"
        "services.up(load_settings(file=Path(sys.argv[1]), environ={}))"
    )
    file = settings.state_folder.parent / "spoor.toml"
    file.write_text(
        f"state_folder = 'state'\n[kafka]\nport = {settings.kafka.port}\n"
        f"controller_port = {settings.kafka.controller_port}\n"
    )
    subprocess.run([sys.executable, "-c", code, str(file)], check=True, timeout=120)
    try:
        assert services.status(settings).answering
    finally:
        assert services.down(settings)


def test_a_process_file_that_names_somebody_else_s_process_is_not_believed(settings: Settings):
    stranger = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    process_file(settings).parent.mkdir(parents=True)
    process_file(settings).write_text(json.dumps({"pid": stranger.pid}))
    assert not services.status(settings).running
    assert services.down(settings) is False
    assert stranger.poll() is None
    stranger.communicate(b"\n")


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"pid": "x"}', '{"pid": -1}'])
def test_a_damaged_process_file_means_not_running(settings: Settings, content: str):
    process_file(settings).parent.mkdir(parents=True)
    process_file(settings).write_text(content)
    assert not services.status(settings).running


def test_a_taken_port_is_named(settings: Settings):
    with socket.socket() as other:
        other.bind(("127.0.0.1", settings.kafka.controller_port))
        other.listen()
        with pytest.raises(InfrastructureError, match=f"port {settings.kafka.controller_port}") as caught:
            services.up(settings)
    assert "kafka.port" in caught.value.hint
    assert not services.status(settings).running


def test_a_crash_while_starting_shows_kafka_s_last_words_and_leaves_nothing_behind(settings: Settings):
    data = settings.state_folder / "kafka" / "data"
    data.mkdir(parents=True)
    (data / "meta.properties").write_text("version=1\nnode.id=77\ncluster.id=AAAAAAAAAAAAAAAAAAAAAA\n")
    with pytest.raises(InfrastructureError, match="stopped while starting") as caught:
        services.up(settings)
    assert "77" in caught.value.message
    assert "server.log" in caught.value.hint
    assert not process_file(settings).exists()
    assert not services.status(settings).running


def test_a_read_only_state_folder_is_refused_before_anything_starts(settings: Settings):
    folder = settings.state_folder.parent
    folder.chmod(0o555)
    try:
        with bound_by_permissions():
            with pytest.raises(InfrastructureError, match="cannot write") as caught:
                services.up(settings)
            assert services.down(settings) is False
    finally:
        folder.chmod(0o755)
    assert "state_folder" in caught.value.hint
    assert not settings.state_folder.exists()


def test_a_state_folder_that_is_a_file_is_refused(settings: Settings):
    settings.state_folder.write_text("")
    with pytest.raises(InfrastructureError, match="cannot write"):
        services.up(settings)


def test_a_nearly_full_disk_is_refused_with_both_numbers(settings: Settings, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(services, "FREE_BYTES_NEEDED", 1 << 60)
    with pytest.raises(InfrastructureError, match=r"MiB free, expected at least 1099511627776 MiB") as caught:
        services.up(settings)
    assert "state_folder" in caught.value.hint


def test_a_configured_broker_is_looked_at_but_never_started_or_stopped(settings: Settings, kafka: KafkaSettings):
    own = dataclasses.replace(settings, kafka=KafkaSettings(bootstrap_servers=kafka.address))
    status = services.status(own)
    assert (status.embedded, status.answering, status.address) == (False, True, kafka.address)
    assert services.ensure_up(own) == status
    for command in (services.up, services.down):
        with pytest.raises(UsageError, match="bootstrap_servers"):
            command(own)


def test_a_configured_broker_that_is_down_is_an_infrastructure_error(settings: Settings):
    own = dataclasses.replace(settings, kafka=KafkaSettings(bootstrap_servers=f"127.0.0.1:{settings.kafka.port}"))
    with pytest.raises(InfrastructureError, match="no Kafka broker answers") as caught:
        services.ensure_up(own)
    assert "bootstrap_servers" in caught.value.hint


@pytest.mark.parametrize("address", ["", "nowhere", "localhost:notaport", "127.0.0.1:99999"])
def test_an_address_that_is_none_does_not_answer(address: str):
    assert not services.answers(KafkaSettings(bootstrap_servers=address or "::"))
