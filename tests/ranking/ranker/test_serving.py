import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from feast import FeatureStore

from spoor.ranking.features.dataset import find_requests, read_features, training_rows
from spoor.ranking.features.online import OnlineFeatures, feast_reader
from spoor.ranking.ranker.rows import read_rows
from spoor.ranking.ranker.serving import RankerServer, Served
from spoor.ranking.ranker.train import train_ranker
from spoor.ranking.settings import FinetuneSettings
from tests.ranking.world import DAY, RELEASE, START, World, make_world

EXAMPLE = Path(__file__).parents[3] / "examples" / "read_features.py"


SETTINGS = FinetuneSettings(fusion="late-last", module="frozen", epochs=60, patience=0)


class Recommender:
    """A ranker trained on the world, serving its catalogue."""

    def __init__(self, world: World) -> None:
        materialise(world)
        requests = find_requests(
            world.events, from_ms=START + 21 * DAY, to_ms=START + 40 * DAY, positive_actions=["like"]
        )
        data = read_rows(training_rows(requests, world.items), feast_reader(world.features, RELEASE))
        ranker = train_ranker(data, settings=SETTINGS).ranker
        self._server = RankerServer(
            OnlineFeatures(world.features, RELEASE), ranker, pa.table({"item_id": list(world.items)})
        )
        self._titles = {item: f"Title {item}" for item in world.items}

    def recommend(self, user_id: str, **options: Any) -> Served:
        return self._server.recommend(user_id, self._titles, time_ms=START + 50 * DAY, **options)


@pytest.fixture(scope="module")
def recommender(world: World) -> Recommender:
    return Recommender(world)


def materialise(world: World) -> None:
    """Plain Feast, on the two views that every company has."""
    start, end = (datetime.fromtimestamp((START + days * DAY) / 1000, UTC) for days in (0, 50))
    store = FeatureStore(str(world.features.feature_repo))
    store.materialize(start, end, feature_views=["user_activity", "item_activity"])


def test_the_best_unseen_items_come_with_their_titles(recommender: Recommender, world: World):
    served = recommender.recommend("u01", seen=["i01", "i03"], count=5)
    assert len(served.recommendations) == 5
    chosen = [r.item_id for r in served.recommendations]
    assert not {"i01", "i03"} & set(chosen)
    assert [r.title for r in served.recommendations] == [f"Title {item}" for item in chosen]
    scores = [r.score for r in served.recommendations]
    assert scores == sorted(scores, reverse=True)
    assert served.has_embedding
    assert served.row["user_events_total"] > 0 and len(served.row["embedding"]) == 4


def test_the_users_taste_decides(recommender: Recommender, world: World):
    odd, even = (recommender.recommend(user, count=8).recommendations for user in ("u07", "u08"))
    odd_share, even_share = (np.mean([int(r.item_id[1:]) % 2 for r in best]) for best in (odd, even))
    assert odd_share > even_share


def test_a_user_whom_nobody_knows_is_served_by_what_items_tell(recommender: Recommender):
    served = recommender.recommend("nobody", count=3)
    assert len(served.recommendations) == 3
    assert not served.has_embedding and served.row["user_events_total"] is None


def test_a_user_who_has_seen_everything_gets_nothing(recommender: Recommender, world: World):
    assert recommender.recommend("u01", seen=world.items).recommendations == ()


def test_online_rows_equal_the_newest_point_in_time_rows(recommender: Recommender, world: World):
    items = list(world.items[:7])
    online = OnlineFeatures(world.features, RELEASE).read("u02", items)
    moment = pd.Timestamp(START + 60 * DAY, unit="ms", tz="UTC")
    asked = pd.DataFrame({"user_id": "u02", "item_id": items, "event_timestamp": moment, "ranker_row": range(7)})
    [(_, offline)] = read_features(asked, feast_reader(world.features, RELEASE))
    assert online.to_pylist() == offline.select(online.column_names).to_pylist()


def test_a_company_with_integer_user_ids_is_read_and_served_alike(tmp_path: Path):
    world = make_world(tmp_path, user_id_type="int64")
    recommender = Recommender(world)
    served = recommender.recommend("101", seen=["i01"], count=3)
    assert served.has_embedding and served.row["user_events_total"] > 0
    assert len(served.recommendations) == 3


def test_the_example_reads_both_ways_with_plain_feast(recommender: Recommender, world: World):
    text = EXAMPLE.read_text()
    assert len(text.splitlines()) < 40
    assert "import ranking" not in text and "from store" not in text and "spoor" not in text.split('"""')[2]
    past = datetime.fromtimestamp((START + 25 * DAY) / 1000, UTC).isoformat()
    command = [sys.executable, str(EXAMPLE), str(world.features.feature_repo), RELEASE, "u01", "i01", "i02"]
    done = subprocess.run([*command, "--at", past], capture_output=True, text=True, check=False, cwd="/")
    assert done.returncode == 0, done.stderr
    online, historical = (line for line in done.stdout.splitlines() if line.startswith("[{"))
    assert '"embedding":[0.0,1.0,0.0,0.0]' in online and '"item_events_total"' in online
    assert '"label":1.0' in historical and '"item_embedding":[0.0,1.0,0.0,0.0]' in historical
