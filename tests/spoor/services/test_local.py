import dataclasses
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from spoor.base.errors import InfrastructureError, UsageError
from spoor.broker.create_topics import ensure_topics
from spoor.broker.reach import answers, require_broker
from spoor.broker.settings import KafkaSettings
from spoor.config import Settings
from spoor.services import kafka_process
from spoor.services import local as services
from tests.conftest import settings_in
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
        "import sys; from pathlib import Path; from spoor.config import load_settings;"
        "from spoor.services import local as services;"
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
    assert not answers(KafkaSettings(bootstrap_servers=address or "::"))


ODD_NAMES = ["jürgen 日本 🦌", "a, b;c=d:e", "[1]*?{x} # ! %41 ${sys:user.name} \\u0041 'q' \"r\"", "-x"]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_state_folder_of_any_name_is_started_stopped_and_started_again(
    tmp_path: Path, free_ports: tuple[int, int], name: str, monkeypatch: pytest.MonkeyPatch
):
    """In a locale that knows ASCII alone. What was written is there after the second start, and nowhere else."""
    monkeypatch.setenv("LC_ALL", "C")
    port, controller_port = free_ports
    (tmp_path / name).mkdir()
    settings = settings_in(tmp_path / name, kafka__port=port, kafka__controller_port=controller_port)
    try:
        services.up(settings)
        ensure_topics(settings.kafka)
        produce(settings, [b"kept"])
        assert services.down(settings)
        services.up(settings)
        assert consume(settings, 1) == [b"kept"]
        assert "Kafka Server started" in (settings.kafka.folder / "logs" / "server.log").read_text()
    finally:
        services.down(settings)
    assert os.listdir(tmp_path) == [name]
    assert sorted(os.listdir(settings.kafka.folder)) == [
        "data",
        "lock",
        "log4j2.properties",
        "logs",
        "server.properties",
    ]


def test_a_folder_whose_name_java_cannot_read_is_refused(tmp_path: Path):
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))
    folder.mkdir()
    with pytest.raises(UsageError, match="not UTF-8"):
        services.up(settings_in(folder))


def test_a_folder_is_the_same_through_a_link_and_by_a_relative_path(
    broker: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    link = tmp_path / "link"
    link.symlink_to(broker.state_folder)
    monkeypatch.chdir(tmp_path)
    pid = services.status(broker).pid
    for folder in (link, Path("link"), Path("state/../link/.")):
        seen = dataclasses.replace(broker, kafka=dataclasses.replace(broker.kafka, folder=folder / "kafka"))
        assert services.status(seen).pid == pid and services.status(seen).answering
        with pytest.raises(UsageError, match=f"already runs: process {pid}"):
            services.up(seen)
    assert services.down(seen) and not services.status(broker).running


def test_a_broker_whose_record_is_lost_is_found_and_stopped(broker: Settings):
    pid = services.status(broker).pid
    assert pid is not None
    for content in ("{", json.dumps({"pid": os.getpid()})):
        process_file(broker).write_text(content)
        assert services.status(broker).pid == pid
    process_file(broker).unlink()
    assert services.down(broker) and not psutil.pid_exists(pid)


def test_a_broker_that_cannot_be_stopped_keeps_its_record(broker: Settings, monkeypatch: pytest.MonkeyPatch):
    """Another user's process, and one of another container: its broker answers, it is not to be seen."""
    pid = services.status(broker).pid
    with monkeypatch.context() as patch:

        def denied(process: psutil.Process) -> None:
            raise psutil.AccessDenied(process.pid)

        patch.setattr(psutil.Process, "terminate", denied)
        with pytest.raises(InfrastructureError, match=f"process {pid}.*may not be stopped by this user"):
            services.down(broker)
    with monkeypatch.context() as patch:
        patch.setattr(kafka_process, "_ours", lambda pid, files: None)
        assert services.status(broker).answering
        with pytest.raises(InfrastructureError, match="was not stopped"):
            services.down(broker)
        moved = dataclasses.replace(broker, kafka=dataclasses.replace(broker.kafka, port=1))
        with pytest.raises(InfrastructureError, match="was not stopped"):
            services.down(moved)
    assert json.loads(process_file(broker).read_bytes())["pid"] == pid
    assert services.status(broker).pid == pid


def test_a_broker_on_another_port_than_the_settings_name_is_said_to_be_there(
    broker: Settings, free_ports: tuple[int, int]
):
    moved = dataclasses.replace(broker.kafka, port=free_ports[0])
    with pytest.raises(InfrastructureError, match=f"answers at 127.0.0.1:{broker.kafka.port}") as caught:
        require_broker(moved)
    assert f"set kafka.port = {broker.kafka.port}" in caught.value.hint


@pytest.fixture
def second(broker: Settings, tmp_path: Path) -> Settings:
    """Another project with the same ports, which has started no broker yet."""
    (tmp_path / "second").mkdir()
    ports = {"kafka__port": broker.kafka.port, "kafka__controller_port": broker.kafka.controller_port}
    return settings_in(tmp_path / "second", **ports)


def test_no_client_of_a_second_project_reaches_the_first_one_s_broker(broker: Settings, second: Settings):
    ensure_topics(broker.kafka)
    produce(broker, [b"the first's"])
    for use in (
        second.kafka.client_options,
        second.kafka.consumer_options,
        lambda: require_broker(second.kafka),
        lambda: ensure_topics(second.kafka),
    ):
        with pytest.raises(UsageError, match="is not the broker of") as caught:
            use()
        assert str(broker.kafka.folder / "data") in caught.value.message
    assert not answers(second.kafka)
    status = services.status(second)
    assert (status.running, status.answering) == (False, False)
    assert status.other is not None and str(broker.kafka.folder) in status.other
    assert services.down(second) is False and services.status(broker).answering
    configured = KafkaSettings(bootstrap_servers=broker.kafka.address)
    assert answers(configured)
    assert f'kafka.bootstrap_servers = "{configured.address}"' in caught.value.hint


def test_the_hint_for_taken_ports_works_when_followed(broker: Settings, second: Settings):
    with pytest.raises(InfrastructureError, match=r"cannot be used: the Kafka at .* is not the broker of") as caught:
        services.up(second)
    found = re.search(r"kafka\.port = (\d+) and kafka\.controller_port = (\d+)", caught.value.hint)
    assert found is not None
    beside = settings_in(second.state_folder.parent, kafka__port=int(found[1]), kafka__controller_port=int(found[2]))
    try:
        assert services.up(beside).answering and services.status(broker).answering
        ensure_topics(beside.kafka)
    finally:
        services.down(beside)
