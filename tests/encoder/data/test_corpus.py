"""Histories on disk: the same events give the same corpus, whatever they come from; memory stays flat."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as pq
import pytest

from spoor.activity.events import Event, events_table
from spoor.activity.hashing import hash_items, hash_name
from spoor.activity.history import group_events, history_values
from spoor.activity.lake import Lake
from spoor.activity.settings import EventSettings
from spoor.activity.simulator import SimulatorSettings, simulate
from spoor.base.errors import DataError, UsageError
from spoor.encoder.data import corpus_build
from spoor.encoder.data.corpus import Corpus

ROOT = Path(__file__).parents[3]
DATA = ROOT.parent / "shared" / "data"
SETTINGS = EventSettings()
HOUR_MS = 3_600_000
START_MS = 1_700_000_000_000 // HOUR_MS * HOUR_MS


def simulated(events: int = 3_000, *, users: int = 70) -> pa.Table:
    settings = SimulatorSettings(events=events, from_ms=START_MS, to_ms=START_MS + 10**9, users=users, items=90)
    return pa.concat_tables(simulate(settings))


def lake_of(folder: Path, events: pa.Table) -> Lake:
    """The events as two work items that overlap, as a repeated archive would leave them."""
    lake = Lake(folder, buckets=4)
    rows = len(events)
    stored = events.append_column("partition", pa.array(np.zeros(rows, np.int32)))
    stored = stored.append_column("offset", pa.array(np.arange(rows)))
    stored = stored.append_column("append_time", events["timestamp"])
    lake.write("0-first", stored.slice(0, rows * 2 // 3), {"partition": 0, "start": 0, "end": rows * 2 // 3})
    lake.write("0-second", stored.slice(rows // 2), {"partition": 0, "start": rows // 2, "end": rows})
    return lake


def file_of(path: Path, rows: list[dict[str, object]]) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def event_file(path: Path, items: str, times: list[int], pos: list[int] | None = None, user: str = "ann") -> Path:
    """One user's events, one item each, at `times` seconds after START_MS."""
    rows: list[dict[str, object]] = [
        {"user_id": user, "item_id": i, "action": "v", "surface": "s", "timestamp": START_MS + t * 1000}
        for i, t in zip(items, times, strict=True)
    ]
    for row, place in zip(rows, pos or [], strict=False):
        row["pos"] = place
    return file_of(path, rows)


def events_of(corpus: Corpus) -> dict[str, list[tuple[int, ...]]]:
    histories = corpus.read(0, corpus.users)
    users = corpus.user_ids(0, corpus.users)
    return {user: [tuple(row) for row in histories[number].tolist()] for number, user in enumerate(users)}


def items_of(corpus: Corpus, user: str = "ann") -> str:
    names = dict(zip(corpus.item_hashes.tolist(), corpus.item_ids, strict=True))
    return "".join(names[row[1]] for row in events_of(corpus)[user])


@pytest.fixture
def small_partitions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus_build, "_PARTITION_EVENTS", 400)
    monkeypatch.setattr(corpus_build, "_PIECE_ROWS", 700)


@pytest.mark.usefixtures("small_partitions")
def test_a_corpus_holds_the_histories_that_grouping_in_memory_gives(tmp_path: Path) -> None:
    events = simulated()
    corpus = Corpus.build(events, tmp_path / "corpus", events=SETTINGS)
    users, histories = group_events(events["user_id"].to_pylist(), history_values(events), max_events=10**6)
    assert events_of(corpus) == {user: [tuple(row) for row in histories[n].tolist()] for n, user in enumerate(users)}
    assert corpus.item_ids == tuple(sorted(set(events["item_id"].to_pylist())))
    assert np.array_equal(corpus.item_hashes, hash_items(corpus.item_ids))
    assert corpus.action_names == tuple(sorted(set(events["action"].to_pylist())))
    assert corpus.surface_names == tuple(sorted(set(events["surface"].to_pylist())))
    assert (corpus.oldest_ms, corpus.newest_ms) == (
        histories.values["timestamp"].min(),
        histories.values["timestamp"].max(),
    )
    assert not (tmp_path / "corpus" / "partitions").exists()


@pytest.mark.usefixtures("small_partitions")
def test_lake_table_and_order_of_rows_give_the_same_corpus(tmp_path: Path) -> None:
    events = simulated()
    shuffled = events.take(np.random.default_rng(0).permutation(len(events)))
    built = [
        Corpus.build(source, tmp_path / str(number), events=SETTINGS)
        for number, source in enumerate((events, lake_of(tmp_path / "lake", events), shuffled))
    ]
    assert len({corpus.fingerprint for corpus in built}) == 1
    assert built[0].counts == built[1].counts == built[2].counts
    assert built[0].user_ids(0, built[0].users) == built[2].user_ids(0, built[2].users)


def test_the_fingerprint_knows_neither_partitions_nor_the_order_of_users_but_every_event(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = simulated()
    one = Corpus.build(events, tmp_path / "one", events=SETTINGS)
    monkeypatch.setattr(corpus_build, "_PARTITION_EVENTS", 100)
    other = Corpus.build(events, tmp_path / "other", events=SETTINGS)
    assert one.user_ids(0, one.users) != other.user_ids(0, other.users)
    assert one.fingerprint == other.fingerprint
    for changed in (
        events.slice(1),
        events.set_column(0, events.schema.field(0), pa.array([*events["user_id"].to_pylist()[:-1], "new"])),
        events.set_column(4, events.schema.field(4), pa.array(events["timestamp"].to_numpy() + 1)),
    ):
        assert Corpus.build(changed, tmp_path / "changed", events=SETTINGS).fingerprint != one.fingerprint


@pytest.mark.usefixtures("small_partitions")
def test_blocks_and_user_ids_cover_every_user_once(tmp_path: Path) -> None:
    corpus = Corpus.build(simulated(), tmp_path / "corpus", events=SETTINGS)
    everything = corpus.read(0, corpus.users)
    for max_events in (1, 150, 10**9):
        blocks = corpus.blocks(max_events)
        assert [user for block in blocks for user in range(*block)] == list(range(corpus.users))
        for first, last in blocks:
            part = corpus.read(first, last)
            assert len(part.values) <= max_events or last == first + 1
            assert np.array_equal(part.values, everything.take(np.arange(first, last)).values)
            assert np.array_equal(corpus.times(first, last), part.values["timestamp"])
    ids = corpus.user_ids(0, corpus.users)
    assert len(set(ids)) == corpus.users
    assert corpus.user_ids(20, 51) == ids[20:51]
    assert corpus.user_ids(3, 3) == []


def test_a_file_with_a_clock_fine_enough_gives_the_corpus_of_the_table(tmp_path: Path) -> None:
    events = simulated(500)
    table = Corpus.build(events, tmp_path / "table", events=SETTINGS)
    assert table.counts.tie_share == 0
    pq.write_table(events, tmp_path / "e.parquet")
    csv.write_csv(events, tmp_path / "e.csv")
    for name in ("e.parquet", "e.csv"):
        corpus = Corpus.build(tmp_path / name, tmp_path / f"of-{name}", events=SETTINGS)
        assert corpus.fingerprint == table.fingerprint
        assert corpus.counts == table.counts


@pytest.mark.usefixtures("small_partitions")
@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_users_have_the_same_order_however_long_the_names_and_whatever_the_file(tmp_path: Path, kind: str) -> None:
    """Else a longer id of a held-out item would move the order of training."""
    events = simulated()
    longer = events.set_column(1, events.schema.field(1), pa.array(["long-" * 20 + i for i in events[1].to_pylist()]))
    expected = Corpus.build(events, tmp_path / "table", events=SETTINGS)
    for name, table in (("short", events), ("long", longer)):
        path = tmp_path / f"{name}.{kind}"
        if kind == "csv":
            csv.write_csv(table, path)
        elif kind == "jsonl":
            path.write_text("\n".join(map(json.dumps, table.to_pylist())))
        else:
            pq.write_table(table, path)
        corpus = Corpus.build(path, tmp_path / name, events=SETTINGS)
        assert corpus.user_ids(0, corpus.users) == expected.user_ids(0, expected.users)


def test_no_time_tells_what_is_still_to_come(tmp_path: Path) -> None:
    """The events of one day are as far apart whether or not others follow on that day, or at a finer time."""
    day = 86_400
    alone = Corpus.build(event_file(tmp_path / "a.parquet", "ab", [0, 0]), tmp_path / "a", events=SETTINGS)
    path = event_file(tmp_path / "b.parquet", "abcd", [0, 0, 0, day])
    followed = Corpus.build(path, tmp_path / "b", events=SETTINGS)
    assert events_of(followed)["ann"][:2] == events_of(alone)["ann"]


def test_until_is_exclusive_for_every_source(tmp_path: Path) -> None:
    events = simulated()
    until_ms = events["timestamp"][1_500].as_py()
    pq.write_table(events, tmp_path / "e.parquet")
    for number, source in enumerate((events, lake_of(tmp_path / "lake", events), tmp_path / "e.parquet")):
        corpus = Corpus.build(source, tmp_path / str(number), events=SETTINGS, until_ms=until_ms)
        assert corpus.newest_ms < until_ms
        assert corpus.events == (events["timestamp"].to_numpy() < until_ms).sum()


def test_no_events_are_a_data_error_and_leave_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no events"):
        Corpus.build(simulated(10), tmp_path / "corpus", events=SETTINGS, until_ms=5)
    with pytest.raises(DataError, match="no events"):
        Corpus.build(Lake(tmp_path / "lake", buckets=4), tmp_path / "corpus", events=SETTINGS)
    assert [path.name for path in tmp_path.iterdir() if "corpus" in path.name] == []


def test_ties_of_a_file_keep_the_order_of_pos_else_of_rows(tmp_path: Path) -> None:
    path = event_file(tmp_path / "pos.parquet", "zyxab", [5, 5, 5, 5, 9], pos=[3, 1, 0, 2, 4])
    corpus = Corpus.build(path, tmp_path / "pos", events=SETTINGS)
    assert items_of(corpus) == "xyazb"
    assert [(row[0] - START_MS) for row in events_of(corpus)["ann"]] == [5000, 5001, 5002, 5003, 9000]
    path = event_file(tmp_path / "rows.parquet", "zyxab", [5, 5, 5, 5, 3])
    assert items_of(Corpus.build(path, tmp_path / "rows", events=SETTINGS)) == "bzyxa"


def test_pos_wins_over_times_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = event_file(tmp_path / "e.parquet", "abc", [7, 3, 9], pos=[0, 1, 2])
    corpus = Corpus.build(path, tmp_path / "corpus", events=SETTINGS)
    assert items_of(corpus) == "abc"
    assert [(row[0] - START_MS) for row in events_of(corpus)["ann"]] == [7000, 7001, 9000]
    assert [record.getMessage()[:21] for record in caplog.records] == ["1 events were dated b"]


def test_equal_rows_of_a_file_are_separate_events_and_equal_rows_of_a_table_one(tmp_path: Path) -> None:
    path = event_file(tmp_path / "e.parquet", "aaab", [1, 1, 1, 2])
    assert items_of(Corpus.build(path, tmp_path / "file", events=SETTINGS)) == "aaab"
    table = pq.read_table(path)
    assert items_of(Corpus.build(table, tmp_path / "table", events=SETTINGS)) == "ab"


def test_ties_may_be_shuffled_by_a_seed_in_files_only(tmp_path: Path) -> None:
    items = "abcdefghijklmnop"
    path = event_file(tmp_path / "e.parquet", items + "z", [*[5] * len(items), 6])
    orders = {
        seed: items_of(Corpus.build(path, tmp_path / str(seed), events=SETTINGS, shuffle_ties=seed))
        for seed in (None, 0, 1)
    }
    assert orders[None] == items + "z"
    assert len(set(orders.values())) == 3
    assert all(order[-1] == "z" and sorted(order[:-1]) == list(items) for order in orders.values())
    backwards = pq.read_table(path).take(list(range(len(items), -1, -1)))
    pq.write_table(backwards, tmp_path / "backwards.parquet")
    again = Corpus.build(tmp_path / "backwards.parquet", tmp_path / "again", events=SETTINGS, shuffle_ties=1)
    assert items_of(again) == orders[1]
    with pytest.raises(UsageError, match="event file"):
        Corpus.build(backwards, tmp_path / "table", events=SETTINGS, shuffle_ties=1)


@pytest.mark.usefixtures("small_partitions")
def test_statistics_count_ties_and_repeats(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [
        {"user_id": str(u), "item_id": str(i), "action": "v", "surface": "s", "timestamp": START_MS + int(t) * 60_000}
        for u, i, t in zip(rng.integers(0, 9, 900), rng.integers(0, 300, 900), rng.integers(0, 200, 900), strict=True)
    ]
    statistics = Corpus.build(file_of(tmp_path / "e.parquet", rows), tmp_path / "c", events=SETTINGS).counts
    at_one_time = Counter((row["user_id"], row["timestamp"]) for row in rows)
    pairs = {(row["user_id"], row["item_id"]) for row in rows}
    assert (statistics.users, statistics.items, statistics.events) == (9, len({r["item_id"] for r in rows}), 900)
    assert statistics.mean_length == 100
    assert statistics.tie_share == sum(count - 1 for count in at_one_time.values()) / (900 - 9)
    assert statistics.repeat_share == (900 - len(pairs)) / 900


def test_a_corpus_is_kept_while_its_source_stays_the_same(tmp_path: Path) -> None:
    def built(**options: int) -> int:
        Corpus.build(path, tmp_path / "corpus", events=SETTINGS, **options)
        return (tmp_path / "corpus" / "corpus.json").stat().st_ino

    path = event_file(tmp_path / "e.parquet", "abc", [1, 2, 3])
    first = built()
    assert built() == first
    assert built(until_ms=START_MS + 2500) != first
    assert Corpus.open(tmp_path / "corpus").events == 2
    event_file(path, "abcd", [1, 2, 3, 4])
    built()
    assert Corpus.open(tmp_path / "corpus").events == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus", "e.parquet"]


@pytest.mark.parametrize("name", ["corpus.json", "item.bin", "offsets.npy"])
def test_a_damaged_corpus_is_refused(tmp_path: Path, name: str) -> None:
    corpus = Corpus.build(simulated(100), tmp_path / "corpus", events=SETTINGS)
    path = corpus.folder / name
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match="corpus"):
        Corpus.open(corpus.folder)


def test_names_that_shared_16_bits_are_told_apart(tmp_path: Path) -> None:
    names = ("page-57", "page-268", "page-57")
    rows = [Event("u", "i", "view", name, START_MS) for name in names]
    corpus = Corpus.build(events_table(rows), tmp_path / "corpus", events=SETTINGS)
    assert (corpus.events, corpus.surface_names) == (2, ("page-268", "page-57"))
    assert sorted(event[3] for event in events_of(corpus)["u"]) == sorted(map(hash_name, set(names)))
    swapped = [row._replace(surface="page-57") for row in rows]
    other = Corpus.build(events_table(swapped), tmp_path / "other", events=SETTINGS)
    assert corpus.fingerprint != other.fingerprint


def test_fingerprints_and_orders_are_those_of_hash_version_1(tmp_path: Path) -> None:
    """By them a release knows the events that it was trained on (`check_split`), also one that is older than names of
    64 bits. The literals come from the last version before these."""
    simulated_corpus = Corpus.build(simulated(), tmp_path / "simulated", events=SETTINGS)
    assert simulated_corpus.fingerprint == "9c5abe3db5958edb6c02343893eef98775e28b356b78c07b371277d4971ad3e1"
    rows: list[dict[str, object]] = [
        {"user_id": "ann", "item_id": item, "action": action, "surface": "home", "timestamp": START_MS + k // 4 * 1000}
        for k, (item, action) in enumerate(zip("abc" * 4, ["view", "like", "view", "cart"] * 3, strict=True))
    ]
    file = file_of(tmp_path / "events.parquet", rows)
    shuffled = Corpus.build(file, tmp_path / "shuffled", events=SETTINGS, shuffle_ties=7)
    assert shuffled.fingerprint == "c451341e3dd9586609fb4eb656ce485f1c213b29e74be905420451daeb2cb055"
    assert items_of(shuffled) == "abcababcacbc"
    table = pa.Table.from_pylist(rows, schema=events_table([]).schema)
    as_set = Corpus.build(table, tmp_path / "set", events=SETTINGS)
    assert as_set.fingerprint == "22905ee732c0109fb968c110e87124976ebc1e35df10b5066c960b916a94110e"
    assert items_of(as_set) == "bcaabbcabcca"


def test_a_corpus_of_hash_version_1_is_built_again(tmp_path: Path) -> None:
    events, folder = simulated(200), tmp_path / "corpus"
    corpus = Corpus.build(events, folder, events=SETTINGS)
    record = json.loads((folder / "corpus.json").read_text())
    (folder / "corpus.json").write_text(json.dumps(record | {"hash_version": 1}))
    np.full(corpus.events, 7, np.uint16).tofile(folder / "action.bin")
    assert events_of(Corpus.build(events, folder, events=SETTINGS)) == events_of(corpus)


@pytest.mark.skipif(not DATA.is_dir(), reason=f"needs the public data sets in {DATA}")
@pytest.mark.parametrize("name", ["amazon_beauty", "tmall2014"])
def test_published_sequences_come_out_in_the_order_of_pos(tmp_path: Path, name: str) -> None:
    path = DATA / name / "events.parquet"
    corpus = Corpus.build(path, tmp_path / "corpus", events=SETTINGS)
    table = pq.read_table(path).sort_by([("user_id", "ascending"), ("pos", "ascending")])
    order = np.argsort(np.array(corpus.user_ids(0, corpus.users), object), kind="stable")
    histories = corpus.read(0, corpus.users).take(order)
    assert np.array_equal(histories.values["item"], history_values(table)["item"])
    assert corpus.events == len(table)
    assert np.array_equal(
        histories.values["timestamp"] // corpus.resolution_ms * corpus.resolution_ms, table["timestamp"]
    )


def test_memory_does_not_grow_with_the_events(tmp_path: Path) -> None:
    """Twenty times as many events: what is read at once grows to its bound (about 100 MB) and stays there."""
    command = [sys.executable, "-m", "benchmarks.corpus", "--json", "--folder", str(tmp_path), "--events"]
    done = subprocess.run([*command, "100000", "2000000"], cwd=ROOT, check=True, capture_output=True, text=True)
    sizes = json.loads(done.stdout)["sizes"]
    assert sizes["2000000"]["build"]["events"] == 2_000_000
    assert sizes["2000000"]["read"]["tokens"] > 1_500_000
    for step, bound_mb in (("build", 110), ("read", 140)):
        assert sizes["2000000"][step]["peak_mb"] - sizes["100000"][step]["peak_mb"] < bound_mb
