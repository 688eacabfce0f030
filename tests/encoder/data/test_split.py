"""Who may see which event: roles, their digest, and the check of a release against it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from spoor.activity.events import Event, events_table
from spoor.activity.settings import EventSettings
from spoor.activity.simulator import SimulatorSettings, simulate
from spoor.base.errors import DataError, UsageError
from spoor.encoder.data import split as protocols
from spoor.encoder.data.corpus import Corpus
from spoor.encoder.data.split import (
    TEST,
    TRAIN,
    VALIDATION,
    Protocol,
    Split,
    check_split,
    make_split,
    training_statistics,
)

START_MS = 1_700_006_400_000  # a whole minute
PROTOCOLS: list[Protocol] = ["leave-one-out", "global-time", "newest"]
Build = Callable[[pa.Table], Corpus]


@pytest.fixture
def build(tmp_path: Path) -> Build:
    return lambda events: Corpus.build(events, tmp_path / "corpus", events=EventSettings())


def events_of(times: dict[str, list[int]]) -> pa.Table:
    """Users with events at these seconds, every event of another item."""
    return events_table(
        Event(user, f"{user}-{number}", "v", "s", START_MS + second * 1000)
        for user, seconds in times.items()
        for number, second in enumerate(seconds)
    )


def simulated(events: int = 2_000) -> pa.Table:
    settings = SimulatorSettings(events=events, from_ms=START_MS, to_ms=START_MS + 10**9, users=60, items=90)
    return pa.concat_tables(simulate(settings))


def roles_by_user(split: Split, corpus: Corpus) -> dict[str, list[int]]:
    histories = corpus.read(0, corpus.users)
    roles = split.roles(histories)
    bounds = histories.offsets
    users = corpus.user_ids(0, corpus.users)
    return {user: roles[bounds[n] : bounds[n + 1]].tolist() for n, user in enumerate(users)}


def test_leave_one_out_holds_out_two_events_of_users_with_three(build: Build) -> None:
    corpus = build(events_of({"ann": [1, 2, 3, 4], "bob": [1, 2, 3], "cat": [1, 2], "dan": [1]}))
    assert roles_by_user(make_split(corpus, "leave-one-out"), corpus) == {
        "ann": [TRAIN, TRAIN, VALIDATION, TEST],
        "bob": [TRAIN, VALIDATION, TEST],
        "cat": [TRAIN, TRAIN],
        "dan": [TRAIN],
    }


def test_global_time_holds_out_the_two_newest_tenths(build: Build) -> None:
    corpus = build(events_of({"ann": list(range(10)), "bob": list(range(10, 15)), "cat": list(range(15, 20))}))
    split = make_split(corpus, "global-time")
    assert roles_by_user(split, corpus) == {
        "ann": [TRAIN] * 10,
        "bob": [TRAIN] * 5,
        "cat": [TRAIN, VALIDATION, VALIDATION, TEST, TEST],
    }
    assert (split.validation_from_ms, split.test_from_ms) == (START_MS + 16_000, START_MS + 18_000)
    newest = make_split(corpus, "newest")
    assert roles_by_user(newest, corpus)["cat"] == [TRAIN] * 3 + [VALIDATION] * 2
    assert newest.test_from_ms is None


@pytest.mark.parametrize("bins", [2, 10, 65_536])
def test_moments_are_exact_quantiles_of_the_times(build: Build, monkeypatch: pytest.MonkeyPatch, bins: int) -> None:
    monkeypatch.setattr(protocols, "_BINS", bins)
    monkeypatch.setattr(protocols, "_READ_EVENTS", 300)
    corpus = build(simulated())
    split = make_split(corpus, "global-time")
    times = np.sort(corpus.times(0, corpus.users))
    assert split.validation_from_ms == times[corpus.events * 8 // 10]
    assert split.test_from_ms == times[corpus.events * 9 // 10]


def test_what_has_one_time_in_the_source_is_never_divided(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    minutes = [0, 0, 0, 1, 1, 1, 2, 2, 2, 2]
    rows = [{"user_id": "u", "item_id": str(n), "action": "v", "surface": "s"} for n in range(10)]
    stamped = [row | {"timestamp": START_MS + minute * 60_000} for row, minute in zip(rows, minutes, strict=True)]
    pq.write_table(pa.Table.from_pylist(stamped), tmp_path / "e.parquet")
    corpus = Corpus.build(tmp_path / "e.parquet", tmp_path / "corpus", events=EventSettings())
    split = make_split(corpus, "newest")
    assert split.validation_from_ms == START_MS + 120_000
    assert roles_by_user(split, corpus)["u"] == [TRAIN] * 6 + [VALIDATION] * 4
    with pytest.raises(DataError, match="global-time"):
        make_split(corpus, "global-time")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_roles_never_go_back_and_lengths_count_them(
    build: Build, monkeypatch: pytest.MonkeyPatch, protocol: Protocol
) -> None:
    monkeypatch.setattr(protocols, "_READ_EVENTS", 300)
    corpus = build(simulated())
    split = make_split(corpus, protocol)
    by_user = roles_by_user(split, corpus)
    assert all(roles == sorted(roles) for roles in by_user.values())
    for upto in (TRAIN, VALIDATION, TEST):
        expected = [sum(role <= upto for role in by_user[user]) for user in corpus.user_ids(0, corpus.users)]
        assert split.allowed_lengths(corpus, upto=upto).tolist() == expected


@pytest.mark.parametrize("protocol", ["global-time", "newest"])
def test_times_that_leave_nothing_to_train_on_are_refused(build: Build, protocol: Protocol) -> None:
    corpus = build(events_of({f"u{n}": [7] for n in range(20)}))
    with pytest.raises(DataError, match="time"):
        make_split(corpus, protocol)


def test_an_unknown_protocol_is_a_usage_error(build: Build) -> None:
    with pytest.raises(UsageError, match="leave-two-out"):
        make_split(build(simulated(100)), "leave-two-out")  # pyright: ignore[reportArgumentType]


def test_the_digest_names_protocol_and_events(tmp_path: Path) -> None:
    def digest(events: pa.Table, protocol: Protocol) -> str:
        return make_split(Corpus.build(events, tmp_path / "corpus", events=EventSettings()), protocol).digest

    events = simulated()
    digests = {digest(events, protocol) for protocol in PROTOCOLS}
    assert len(digests) == 3
    shuffled = events.take(np.random.default_rng(0).permutation(len(events)))
    assert digest(shuffled, "leave-one-out") == digest(events, "leave-one-out")
    assert digest(events.slice(1), "leave-one-out") not in digests


def test_a_release_is_held_to_its_protocol_and_its_events(tmp_path: Path) -> None:
    def split_of(events: pa.Table, protocol: Protocol = "leave-one-out") -> Split:
        return make_split(Corpus.build(events, tmp_path / "corpus", events=EventSettings()), protocol)

    own = split_of(simulated())
    recorded = own.record(shuffle_ties=None)
    assert recorded == {"protocol": "leave-one-out", "digest": own.digest, "shuffle_ties": None}
    check_split(recorded, split_of(simulated()), release="base-1")
    with pytest.raises(DataError, match=r"base-1.*leave-one-out.*global-time") as refused:
        check_split(recorded, split_of(simulated(), "global-time"), release="base-1")
    assert "--protocol leave-one-out" in refused.value.hint
    other = split_of(simulated().slice(1))
    with pytest.raises(DataError, match=f"{own.digest}.*{other.digest}"):
        check_split(recorded, other, release="base-1")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_training_statistics_count_what_is_not_held_out(build: Build, protocol: Protocol) -> None:
    corpus = build(simulated())
    split = make_split(corpus, protocol)
    histories = corpus.read(0, corpus.users)
    owners = np.repeat(np.arange(corpus.users), histories.lengths)
    assert training_statistics(corpus, split, upto=TEST) == corpus.counts
    for upto in (TRAIN, VALIDATION):
        kept = split.roles(histories) <= upto
        items = histories.values["item"][kept]
        pairs = set(zip(owners[kept].tolist(), items.tolist(), strict=True))
        statistics = training_statistics(corpus, split, upto=upto)
        assert (statistics.users, statistics.items) == (len(set(owners[kept])), len(set(items.tolist())))
        assert statistics.events == kept.sum()
        assert statistics.repeat_share == (kept.sum() - len(pairs)) / kept.sum()
        assert statistics.tie_share == corpus.counts.tie_share
