"""`spoor evaluate` on files: the table, the release's rows, and what it refuses."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from spoor.activity.settings import EventSettings
from spoor.activity.simulator import SimulatorSettings, simulate
from spoor.encoder.data.batches import build_vocabulary
from spoor.encoder.data.corpus import Corpus
from spoor.encoder.data.item_links import ItemLinks
from spoor.encoder.data.split import Protocol, make_split
from spoor.encoder.evaluation.mixture import FILE, Mixture, MixtureWeights
from spoor.encoder.model.config import MODEL_CONFIGS
from spoor.encoder.release.folder import save_release
from spoor.encoder.release.inference import new_model
from tests.spoor.conftest import Done

START_MS = 1_700_006_400_000
LEAVE_ONE_OUT = ("--protocol", "leave-one-out")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Events at whole seconds, many of them tied: their order can be shuffled."""
    settings = SimulatorSettings(events=1_200, from_ms=START_MS, to_ms=START_MS + 10**7, users=40, items=30, seed=1)
    table = pa.concat_tables(simulate(settings))
    seconds = pa.array(table["timestamp"].to_numpy() // 600_000 * 600_000)
    path = tmp_path / "events.parquet"
    pq.write_table(table.set_column(table.schema.get_field_index("timestamp"), "timestamp", seconds), path)
    return path


def release(
    name: str, data: Path, *, protocol: Protocol = "leave-one-out", shuffle_ties: int | None = None, added: bool = False
) -> None:
    """An untrained one, in the releases folder, that says it was trained on `data`."""
    corpus = Corpus.build(data, data.parent / f"corpus-{name}", events=EventSettings(), shuffle_ties=shuffle_ties)
    split = make_split(corpus, protocol)
    vocabulary = build_vocabulary(corpus, split)
    model = new_model(MODEL_CONFIGS["tiny"], vocabulary)
    model.initialise(0)
    trained = (
        (vocabulary.item_indexes(part.values["item"]), part.offsets) for part in split.allowed_histories(corpus, upto=1)
    )
    links = ItemLinks.count(trained, vocabulary_size=len(vocabulary.items))
    mixture = Mixture(links, MixtureWeights(vector=0.0, link=1.0))
    save_release(
        Path("releases").absolute() / name,
        model=MODEL_CONFIGS["tiny"],
        weights={key: value.numpy() for key, value in model.state_dict().items()},
        vocabulary=vocabulary,
        trained_through_ms=START_MS,
        data_fingerprint=corpus.fingerprint,
        metrics={},
        training={},
        curve_png=b"",
        split=split.record(shuffle_ties=shuffle_ties),
        more_files={FILE: mixture.to_bytes()} if added else {},
    )


def test_floors_need_no_release(spoor, data: Path) -> None:
    done: Done = spoor("evaluate", "--data", str(data), *LEAVE_ONE_OUT, "--keep-seen", "--json")
    assert done.code == 0, done.err
    assert list(done.json["rows"]) == ["popularity", "recent", "markov", "item-knn"]
    assert (done.json["seen"], done.json["users"]) == ("kept", done.json["questions"])
    text = spoor("evaluate", "--data", str(data), *LEAVE_ONE_OUT, "--baselines", "recent").out
    assert "seen items filtered" in text and "popularity  " not in text


def test_the_release_comes_first_and_its_transformer_apart(spoor, data: Path) -> None:
    release("plain-1", data)
    release("added-1", data, added=True)
    arguments = ["evaluate", "--data", str(data), *LEAVE_ONE_OUT, "--keep-seen", "--baselines", "popularity", "--json"]
    plain = spoor(*arguments, "--release", "plain-1").json
    added = spoor(*arguments, "--release", "releases/added-1").json
    assert (plain["row"], list(plain["rows"])) == ("release", ["release", "popularity"])
    assert "transformer" not in plain
    assert list(added["rows"]) == ["release", "transformer", "popularity"]
    for key in ("ndcg@50", "ndcg@50_interval"):
        assert added["transformer"][key] == plain[key]
        assert added[key] == added["rows"]["release"][key] != plain[key]
    assert {"recall@10", "ndcg@10", "recall@10_interval", "ndcg@10_interval", "users", "seconds"} <= plain.keys()


def test_ties_are_shuffled_as_for_the_release(spoor, data: Path) -> None:
    release("shuffled-1", data, shuffle_ties=5)
    arguments = ["evaluate", "--release", "shuffled-1", "--data", str(data), *LEAVE_ONE_OUT, "--dry-run"]
    done = spoor(*arguments, "--json")
    assert (done.code, done.json["dry_run"]) == (0, True)
    assert any("shuffled by the seed 5" in line for line in done.json["plan"])
    assert "trained on other events" in spoor(*arguments, "--shuffle-ties", "6").failed_with(1)


def test_other_events_another_protocol_and_a_silent_release_are_refused(spoor, data: Path) -> None:
    release("plain-1", data)
    fewer = data.with_name("fewer.parquet")
    pq.write_table(pq.read_table(data).slice(1), fewer)
    arguments = ["evaluate", "--release", "plain-1"]
    assert "trained on other events" in spoor(*arguments, "--data", str(fewer), *LEAVE_ONE_OUT).failed_with(1)
    told = spoor(*arguments, "--data", str(data), "--protocol", "global-time").failed_with(1)
    assert "under the protocol leave-one-out" in told
    assert "no release `none`" in spoor(
        "evaluate", "--release", "none", "--data", str(data), *LEAVE_ONE_OUT
    ).failed_with(2)


def test_wrong_names_are_told_and_nothing_is_nothing(spoor, data: Path) -> None:
    arguments = ["evaluate", "--data", str(data), *LEAVE_ONE_OUT, "--baselines"]
    assert "no baseline `knn`" in spoor(*arguments, "knn").failed_with(2)
    assert "nothing to evaluate" in spoor(*arguments, "none").failed_with(2)


def test_a_picture_is_written(spoor, data: Path, tmp_path: Path) -> None:
    done = spoor(
        "evaluate",
        "--data",
        str(data),
        *LEAVE_ONE_OUT,
        "--baselines",
        "popularity",
        "--picture",
        str(tmp_path / "s.png"),
    )
    assert done.code == 0, done.err
    assert (tmp_path / "s.png").read_bytes().startswith(b"\x89PNG")
