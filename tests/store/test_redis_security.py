"""Redis with passwords, users and TLS: genuine servers, self-made certificates."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from spoor.activity.settings import HistorySettings
from spoor.base.errors import InfrastructureError
from spoor.store.online import OnlineStore, open_online
from spoor.store.reads import user_vectors
from spoor.store.writer import GuardedWriter
from tests.certificates import Authority, new_authority
from tests.conftest import free_port
from tests.redis_servers import RedisServer
from tests.store.conftest import make_repo
from tests.store.toys import DIMENSION, ToyEncoder, as_of, events_of

PASSWORD = "s3cret-word"
StartRedis = Callable[..., RedisServer]


def online_at(folder: Path, connection_string: str) -> OnlineStore:
    return open_online(make_repo(folder, {"type": "redis", "connection_string": connection_string}))


def assert_works(online: OnlineStore) -> None:
    """Everything that Spoor asks of a store: check, guarded write, read, listing, removal."""
    online.check()
    online.require_durable()
    users, events = events_of(("ann", "i1", 0), ("bob", "i2", 5))
    GuardedWriter(online, [ToyEncoder()], history=HistorySettings()).update(users, events, as_of_ms=as_of(users))
    assert [row.revision for row in online.read(users, ["base-1"])] == [1, 1]
    assert sorted(online.user_ids()) == ["ann", "bob"]
    online.remove_release("base-1")
    assert online.read_embeddings("base-1", users) == [None, None]


def refused(folder: Path, connection_string: str) -> str:
    """The error's text, which must not hold the password."""
    with pytest.raises(InfrastructureError, match="online store") as caught:
        online_at(folder, connection_string).check()
    told = caught.value.message + caught.value.hint
    assert "word" not in told.replace("username-password", ""), told
    return told


@pytest.fixture(scope="module")
def with_password(start_redis: StartRedis) -> RedisServer:
    return start_redis("--requirepass", PASSWORD)


def test_a_password_opens_the_store_and_a_wrong_one_is_told_without_it(tmp_path: Path, with_password: RedisServer):
    address = with_password.connection_string
    assert_works(online_at(tmp_path / "right", f"{address},password={PASSWORD}"))
    assert "connection_string" in refused(tmp_path / "wrong", f"{address},password=wr0ng-word")
    assert "Authentication required" in refused(tmp_path / "none", address)


def test_a_user_needs_the_rights_of_the_writer_and_no_more(tmp_path: Path, start_redis: StartRedis):
    acl = tmp_path / "users.acl"
    rules = "~* resetchannels +@read +@write +@connection +@scripting +@transaction -@dangerous +info"
    acl.write_text(
        f"user default on nopass resetkeys -@all +ping\nuser spoor on >{PASSWORD} {rules}\n"
        f"user reader on >{PASSWORD} ~* resetchannels +@read +@connection -@dangerous\n"
    )
    address = start_redis("--aclfile", str(acl)).connection_string
    assert_works(online_at(tmp_path / "writer", f"{address},username=spoor,password={PASSWORD}"))
    reader = online_at(tmp_path / "reader", f"{address},username=reader,password={PASSWORD}")
    reader.check()
    assert user_vectors(reader, "base-1", ["ann"])[0].shape == (1, DIMENSION)
    users, events = events_of(("ann", "i1", 0))
    with pytest.raises(InfrastructureError, match="no permissions"):
        GuardedWriter(reader, [ToyEncoder()], history=HistorySettings()).update(users, events, as_of_ms=as_of(users))


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return new_authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def with_tls(start_redis: StartRedis, authority: Authority) -> str:
    """Its TLS address; clients must show a certificate."""
    port, own = free_port(), authority.sign("redis")
    files = {"--tls-cert-file": own.certificate, "--tls-key-file": own.key, "--tls-ca-cert-file": authority.certificate}
    start_redis("--tls-port", str(port), *(str(word) for pair in files.items() for word in pair))
    return f"127.0.0.1:{port}"


def test_tls_with_certificates_of_both_sides(tmp_path: Path, with_tls: str, authority: Authority):
    client = authority.sign("client")
    own = f"ssl_certfile={client.certificate},ssl_keyfile={client.key}"
    assert_works(online_at(tmp_path / "ok", f"{with_tls},ssl=true,ssl_ca_certs={authority.certificate},{own}"))
    stranger = new_authority(tmp_path / "stranger")
    told = refused(tmp_path / "foreign", f"{with_tls},ssl=true,ssl_ca_certs={stranger.certificate},{own}")
    assert "CERTIFICATE_VERIFY_FAILED" in told
    refused(tmp_path / "nobody", f"{with_tls},ssl=true,ssl_ca_certs={authority.certificate}")
    refused(tmp_path / "plain", with_tls)
