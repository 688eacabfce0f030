"""A worker on a broker that wants TLS and a login: genuine Kafka, self-made certificates."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest

from spoor.base.errors import InfrastructureError
from spoor.broker.create_topics import ensure_topics
from spoor.broker.reach import answers
from spoor.broker.reader import group_lag
from spoor.broker.settings import KafkaSettings
from spoor.streaming.orders.replay import list_dead_letters
from spoor.streaming.worker import run_worker
from tests.brokers import one_node, running_broker
from tests.certificates import Authority, new_authority
from tests.conftest import free_port
from tests.streaming.conftest import World, some_events

PASSWORD = "s3cret-word"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return new_authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def logins(tmp_path_factory: pytest.TempPathFactory, authority: Authority) -> Iterator[dict[str, KafkaSettings]]:
    """One broker with two doors: `SASL_SSL` asks for a password (SCRAM), `SSL` for a client's certificate."""
    ports = {"CLIENTS": free_port(), "MUTUAL": free_port(), "CONTROLLER": free_port()}
    folder, server, client = tmp_path_factory.mktemp("secured"), authority.sign("broker"), authority.sign("worker")
    keystore = folder / "broker.pem"
    keystore.write_text(server.key.read_text() + server.certificate.read_text())
    properties = one_node(ports["CLIENTS"], ports["CONTROLLER"]) | {
        "listeners": ",".join(f"{name}://127.0.0.1:{port}" for name, port in ports.items()),
        "advertised.listeners": ",".join(f"{name}://127.0.0.1:{ports[name]}" for name in ("CLIENTS", "MUTUAL")),
        "listener.security.protocol.map": "CLIENTS:SASL_SSL,MUTUAL:SSL,CONTROLLER:PLAINTEXT",
        "inter.broker.listener.name": "MUTUAL",
        "sasl.enabled.mechanisms": "SCRAM-SHA-512",
        "listener.name.clients.scram-sha-512.sasl.jaas.config": (
            "org.apache.kafka.common.security.scram.ScramLoginModule required;"
        ),
        "listener.name.mutual.ssl.client.auth": "required",
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": keystore,
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": authority.certificate,
    }
    by_password = KafkaSettings(
        bootstrap_servers=f"127.0.0.1:{ports['CLIENTS']}",
        security_protocol="SASL_SSL",
        sasl_mechanism="SCRAM-SHA-512",
        sasl_username="spoor",
        sasl_password=PASSWORD,
        ssl_cafile=str(authority.certificate),
        request_timeout_seconds=10.0,
    )
    by_certificate = KafkaSettings(
        bootstrap_servers=f"127.0.0.1:{ports['MUTUAL']}",
        security_protocol="SSL",
        ssl_cafile=str(authority.certificate),
        ssl_certfile=str(client.certificate),
        ssl_keyfile=str(client.key),
        request_timeout_seconds=10.0,
    )
    users = [f"--add-scram=SCRAM-SHA-512=[name=spoor,password={PASSWORD}]"]
    with running_broker(folder / "broker", properties, by_password, format_options=users):
        yield {"SASL_SSL": by_password, "SSL": by_certificate}


@pytest.fixture(params=["SASL_SSL", "SSL"])
def kafka(request: pytest.FixtureRequest, logins: dict[str, KafkaSettings]) -> KafkaSettings:
    """In the place of the session's open broker."""
    return logins[request.param]


def test_a_worker_takes_events_and_publishes_rows_and_dead_letters(world: World):
    events = some_events(60)
    world.produce(events, raw=[b"not json"])
    summary = run_worker(world.settings, count=len(events) + 1, timeout_seconds=120)
    assert (summary.events, summary.dead_letters) == (len(events), 1)
    world.assert_holds(events)
    assert len(list_dead_letters(world.settings)) == 1
    assert sum(group_lag(world.settings.kafka, world.settings.stream.group).values()) == 0


def strangers(logins: dict[str, KafkaSettings], authority: Authority, other: Authority) -> dict[str, KafkaSettings]:
    by_password, by_certificate = logins["SASL_SSL"], logins["SSL"]
    own = other.sign("stranger")
    return {
        "a wrong password": dataclasses.replace(by_password, sasl_password="wr0ng-word"),
        "a wrong user": dataclasses.replace(by_password, sasl_username="nobody"),
        "a mechanism that is off": dataclasses.replace(by_password, sasl_mechanism="PLAIN"),
        "no login": dataclasses.replace(by_password, security_protocol="SSL"),
        "a broker signed by a stranger": dataclasses.replace(by_password, ssl_cafile=str(other.certificate)),
        "no certificate": dataclasses.replace(by_certificate, ssl_certfile="", ssl_keyfile=""),
        "a stranger's certificate": dataclasses.replace(
            by_certificate, ssl_certfile=str(own.certificate), ssl_keyfile=str(own.key)
        ),
    }


def test_whoever_is_not_let_in_is_told_so_and_no_secret(
    logins: dict[str, KafkaSettings],
    authority: Authority,
    tmp_path_factory: pytest.TempPathFactory,
    caplog: pytest.LogCaptureFixture,
):
    other = new_authority(tmp_path_factory.mktemp("other"))
    assert all(answers(login) for login in logins.values())
    for what, kafka in strangers(logins, authority, other).items():
        impatient = dataclasses.replace(kafka, request_timeout_seconds=3.0)
        with pytest.raises(InfrastructureError, match="no Kafka broker answers") as caught:
            ensure_topics(impatient, releases=[])
        assert "security settings" in caught.value.hint, what
        told = caught.value.message + caught.value.hint + caplog.text
        assert PASSWORD not in told and "wr0ng-word" not in told, what
