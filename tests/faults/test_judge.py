"""The judge knows the documented formats and nothing of the product, and it sees what is wrong."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spoor.activity.hashing import HASH_VERSION, buckets_of, hash_item, hash_name
from spoor.activity.history import EVENT_DTYPE, NEVER, Histories
from spoor.activity.packing import pack
from tests.activity.test_packing import OLD_EMPTY, OLD_EVENTS, OLD_GOLDEN, OLD_MARKED
from tests.conftest import wait_until
from tests.faults import formats
from tests.faults.conftest import NewWorld
from tests.faults.judge import Case, Sent, Verdict, accepted, expected_history, judge, judge_events
from tests.faults.traffic import Traffic

ROOT = Path(__file__).parents[2]


def test_it_imports_nothing_of_the_product():
    script = """
import sys
import tests.faults.judge
found = sorted(name for name in sys.modules if name.partition(".")[0] == "spoor")
sys.exit(f"the judge imports {found}" if found else 0)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    ours = [
        line for name in ("judge", "formats") for line in (ROOT / f"tests/faults/{name}.py").read_text().split("\n")
    ]
    imports = [line.split()[1] for line in ours if line.strip().startswith(("import ", "from "))]
    assert {name for name in imports if name.startswith("tests")} == {"tests.faults"}
    assert not [name for name in imports if name.partition(".")[0] == "spoor"]


@pytest.mark.parametrize("names", [1, 16, 17, 300])
@pytest.mark.parametrize("through", [NEVER, 1_700_000_000_000])
def test_it_reads_histories_as_documented(names: int, through: int):
    chance = np.random.default_rng(3)
    events = np.empty(400, EVENT_DTYPE)
    events["timestamp"] = np.sort(chance.integers(-(2**47), 2**47, 400))
    events["item"] = chance.integers(0, 2**64, 400, np.uint64)
    for field in ("action", "surface"):
        most = np.iinfo(EVENT_DTYPE[field]).max
        events[field] = chance.choice(chance.integers(0, most, names, EVENT_DTYPE[field]), 400)
    (packed,) = pack(Histories.of([events]), np.array([through]))
    found = formats.unpack_history(packed)
    assert found.events == [tuple(map(int, event)) for event in events]
    assert found.forgotten_through == (None if through == NEVER else through)
    for at in range(len(packed)):
        damaged = bytearray(packed)
        damaged[at] ^= 1
        with pytest.raises(ValueError):
            formats.unpack_history(bytes(damaged))


def test_it_reads_histories_of_codec_version_1_as_the_last_writer_of_them_left_them():
    """Bytes that were kept, not made: no code writes them any more."""
    assert formats.unpack_history(OLD_GOLDEN) == (1, [tuple(event) for event in OLD_EVENTS], None)
    assert formats.unpack_history(OLD_EMPTY) == (1, [], None)
    assert formats.unpack_history(OLD_MARKED) == (1, [], 1_700_000_000_000)
    with pytest.raises(ValueError, match="checksum"):
        formats.unpack_history(OLD_GOLDEN[:-1] + bytes([OLD_GOLDEN[-1] ^ 1]))


def test_its_hashes_are_those_that_are_documented():
    for name in ("view", "1193", "ünïcode", ""):
        assert formats.hash_item(name) == hash_item(name)
        assert formats.hash_name(name, HASH_VERSION) == hash_name(name)
        assert formats.bucket_of(name, 8) == buckets_of([name], 8)[0]


def told(*sent: Sent, **more: Any) -> Case:
    nowhere = Path("/nowhere")
    places = {"feature_repo": nowhere, "offline_folder": nowhere, "lake_folder": None}
    topics = {"address": "", "topic": "t", "dead_letter_topic": "d", "embedding_topic_prefix": "e."}
    return Case(**topics, **places, **{"releases": (), "max_events": 3, "sent": sent, "bad": {}} | more)


def events(*numbers: int) -> list[Sent]:
    """Of one user, each at its own time and place."""
    return [Sent("u", f"item-{n}", "view", "home", 1000 + n, 0, n) for n in numbers]


def differences(case: Case, *there: int) -> int:
    verdict = Verdict()
    found = formats.History(2, accepted(case, events(*there), 2), None)
    judge_events(case, "u", case.sent, found, verdict)
    return len(verdict.differences)


def test_a_history_is_the_newest_of_the_set_after_what_was_forgotten():
    twice = told(*events(5, 1, 2, 5, 3, 4))
    assert differences(twice, 3, 4, 5) == 0
    assert differences(twice, 2, 4, 5) == 1
    assert differences(twice, 4, 5) == 1
    assert differences(twice, 2, 3, 4, 5) == 1
    forgotten = told(*events(1, 2, 3, 4), forgotten={"u": 1002})
    assert differences(forgotten, 3, 4) == 0
    assert [time for time, *_ in expected_history(forgotten, forgotten.sent, 2)] == [1003, 1004]


def test_what_was_counted_as_lost_may_be_there_or_not_and_nothing_else_may_be_missing():
    case = told(*events(1, 2, 3, 4, 5, 6), lost={(0, 4), (0, 6)})
    for there in ((2, 3, 5), (3, 4, 5), (3, 5, 6), (4, 5, 6)):
        assert differences(case, *there) == 0, there
    assert differences(case, 3, 4, 6) == 1  # 5 is missing, and nobody counted it
    assert differences(case, 3, 5) == 1  # 2 would have had room
    assert differences(case, 3, 5, 7) >= 1  # 7 was never sent


@pytest.mark.timeout(300)
def test_it_sees_what_is_missing_and_what_is_too_much(make_world: NewWorld):
    """A worker's honest end, judged by what was produced, and by stories that differ from it in one thing each."""
    world = make_world(online_store={"type": "sqlite"})
    traffic = Traffic(world, users=5)
    traffic.produce(200, bad=5)
    worker = world.worker()
    wait_until(world.caught_up, "everything is committed")
    world.stop(worker)
    world.spoor("archive")

    def found(**story: object) -> str:
        told = {"sent": traffic.sent, "bad": traffic.bad} | story
        return "\n".join(judge(world.case(**told)).differences)

    assert found() == ""
    newest = max(traffic.sent, key=lambda sent: (sent.user == "user-0", sent.timestamp))
    later = newest._replace(timestamp=newest.timestamp + 1, offset=10**6)
    assert "history of user-0" in found(sent=[*traffic.sent, later])
    assert "lake: partition" in found(sent=[*traffic.sent, later])
    assert "history of user-0" in found(sent=[sent for sent in traffic.sent if sent[:5] != newest[:5]])
    assert "history of user-0" in found(sent=[sent for sent in traffic.sent if sent.user != "user-0"])
    assert "history of somebody" in found(sent=[*traffic.sent, Sent("somebody", "i", "view", "home", 1, 0, 10**6)])
    origin, letter = next(iter(traffic.bad.items()))
    assert f"dead letter {origin}" in found(bad={origin: (letter[0], b"another")} | dict(list(traffic.bad.items())[1:]))
    assert "dead letter" in found(bad=traffic.bad | {"t/0/99": (None, None)})
    assert "marker of user-0" in found(forgotten={"user-0": 0})
    assert "online rows of base-1" in found(releases=(), retired=("base-1",))
    assert "topic of base-1" in found(releases=(), retired=("base-1",))
    # A record that came last on the topic and is not the store's row.
    topic = world.settings.kafka.embedding_topic("base-1")
    with world.producer() as producer:
        producer.send(topic, key=b"user-0", value=None).get(60)
    assert "last record base-1 of user-0" in found()
