import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch

from spoor.activity.hashing import hash_items, hash_names
from spoor.activity.history import Histories
from spoor.activity.packing import pack
from spoor.base.errors import DataError
from spoor.encoder.release.tuning import trainable
from spoor.ranking.features.dataset import ROW, Scale
from spoor.ranking.features.online import history_reader
from spoor.ranking.ranker.rows import BatchMaker
from spoor.store.offline import open_offline
from spoor.store.rows import UserWrite
from tests.ranking.shop import T1, Shop, before, make_shop, read_histories, without
from tests.ranking.world import DAY, START, World, make_world


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    return make_shop(tmp_path_factory.mktemp("shop"), users=5)


def maker_of(shop: Shop, window: int = 32) -> BatchMaker:
    data = shop.data()
    _, vocabulary = trainable(shop.release, new_items=shop.items["item_id"].to_pylist())
    return BatchMaker(data, vocabulary, Scale.of(data.features), window=window)


def test_a_batch_holds_each_requests_own_history_frozen_at_its_start(shop):
    maker = maker_of(shop)
    impressions = maker.data.impressions
    _, vocabulary = trainable(shop.release, new_items=shop.items["item_id"].to_pylist())
    requests = np.array([7, 2, 9])
    batch, contexts = maker.batch(requests)
    row = 0
    for request in requests:
        mine = before(shop.events, int(impressions.times_ms[request]) + 1)
        mine = mine.filter(pa.compute.equal(mine["user_id"], impressions.user_ids[request]))
        expected = vocabulary.item_indexes(hash_items(mine["item_id"].to_pylist()))[-32:]
        for place in range(impressions.offsets[request], impressions.offsets[request + 1]):
            at = int(batch.candidate_context[row])
            found = batch.items[batch.offsets[at] : batch.offsets[at + 1]]
            assert found.tolist() == expected.tolist()
            assert maker.data.context_users[contexts[at]] == impressions.user_ids[request]
            item = vocabulary.item_indexes(hash_items([impressions.item_ids[place]]))[0]
            assert int(batch.candidates[row]) == item
            assert batch.labels[row].tolist() == impressions.labels[place].tolist()
            assert batch.shown_on[row] == 1 + list(vocabulary.surfaces).index(hash_names(["app"])[0])
            seconds = (impressions.times_ms[request] - mine["timestamp"].to_numpy()[-1]) / 1000
            assert float(batch.candidate_gaps[row]) == pytest.approx(np.log1p(seconds), rel=1e-5)
            row += 1
    assert row == len(batch.candidates)


def test_later_events_change_nothing_that_was_asked_before(shop):
    """The rows of the training window are the same whether the events after it have happened or not."""
    whole = shop.data()
    cut = Shop(before(shop.events, T1), shop.items, shop.release).data()
    assert whole.impressions.item_ids == cut.impressions.item_ids
    np.testing.assert_array_equal(whole.contexts.values, cut.contexts.values)
    np.testing.assert_array_equal(whole.impressions.labels, cut.impressions.labels)


def test_requests_of_one_revision_share_one_context(shop):
    impressions = shop.impressions()
    same = impressions.take(np.array([0, 0, 1]))

    from spoor.ranking.ranker.rows import _contexts

    contexts, users, place, stored = _contexts(same, lambda rows: read_histories(shop.events, rows))
    assert contexts.count == 2 and place.tolist() == [0, 0, 1] and stored.all()
    assert users == (same.user_ids[0], same.user_ids[2])


def test_a_request_whose_history_is_not_stored_is_marked_and_has_an_empty_one(shop):
    gone = shop.impressions().user_ids[2]
    data = shop.data(read=lambda rows: read_histories(without(shop.events, gone), rows))
    of_gone = np.array([user == gone for user in data.impressions.user_ids])
    np.testing.assert_array_equal(data.stored, ~of_gone)
    assert of_gone.any() and (data.contexts.lengths[data.request_contexts][of_gone] == 0).all()


@pytest.mark.parametrize("change", [lambda t: t.slice(1), lambda t: pa.concat_tables([t, t])], ids=["lost", "twice"])
def test_a_read_that_loses_or_repeats_a_request_is_an_error(shop, change):
    with pytest.raises(DataError, match="histories returned"):
        shop.data(read=lambda rows: change(read_histories(shop.events, rows)))


def test_what_a_user_does_in_a_request_and_later_changes_nothing_that_is_read_for_it(shop):
    """The answer and everything after it: taken out of the log, they change labels alone."""
    impressions = shop.impressions()
    request = int(impressions.row_requests[np.flatnonzero(impressions.labels[:, 0])[3]])
    user, time = impressions.user_ids[request], int(impressions.times_ms[request])
    mine = pc.and_(pc.equal(shop.events["user_id"], user), pc.greater(shop.events["timestamp"], time))
    silent = Shop(
        shop.events.filter(pc.invert(pc.and_(mine, pc.not_equal(shop.events["action"], "view")))),
        shop.items,
        shop.release,
    )
    _, vocabulary = trainable(shop.release, new_items=shop.items["item_id"].to_pylist())
    found = []
    for data in (shop.data(), silent.data()):
        at = [number for number, who in enumerate(data.impressions.user_ids) if who == user]
        one = next(number for number in at if int(data.impressions.times_ms[number]) == time)
        found.append(BatchMaker(data, vocabulary, Scale.of(shop.data().features), window=32).batch(np.array([one]))[0])
    talked, said_nothing = (vars(batch) for batch in found)
    assert not torch.equal(talked.pop("labels"), said_nothing.pop("labels"))
    for name, value in talked.items():
        assert torch.equal(value, said_nothing[name]), name


def test_batches_take_whole_requests_within_their_rows(shop):
    maker = maker_of(shop)
    order = np.random.default_rng(0).permutation(maker.data.impressions.requests)
    pieces = list(maker.batches(order, rows=10))
    assert np.concatenate(pieces).tolist() == order.tolist()
    lengths = np.diff(maker.data.impressions.offsets)
    assert all(lengths[piece].sum() <= 10 for piece in pieces)
    assert [len(piece) for piece in maker.batches(order[:3], rows=1)] == [1, 1, 1]
    assert list(maker.batches(order[:0], rows=5)) == []


def test_the_window_keeps_the_newest_events(shop):
    full, short = maker_of(shop).batch(np.array([5])), maker_of(shop, window=3).batch(np.array([5]))
    assert short[0].items.tolist() == full[0].items[-3:].tolist()
    assert float(short[0].log_gaps[0]) == 0.0


def test_histories_are_read_from_feast_at_their_point_in_time(tmp_path):
    """Known before the request: read. Known later, or of another user: not."""
    world: World = make_world(tmp_path, users=3)
    events = Histories.empty(1)
    values = np.zeros(3, events.values.dtype)
    values["timestamp"] = [START + k * DAY for k in (1, 2, 3)]
    values["item"] = [5, 6, 7]
    writes = []
    for revision in (1, 2, 3):
        history = Histories(values[:revision], np.array([0, revision]))
        time = int(values["timestamp"][revision - 1])
        writes.append(UserWrite("u00", 0, revision, pack(history)[0], revision, time, time, []))
    open_offline(world.features).write_histories("all", writes)
    times = [START, START + DAY, START + 2 * DAY + 5, START + 30 * DAY]
    asked = pd.DataFrame(
        {
            "user_id": ["u00", "u00", "u00", "u01"],
            "event_timestamp": pd.to_datetime(times, unit="ms", utc=True),
            ROW: np.arange(4),
        }
    )
    found = history_reader(world.features)(asked).sort_by(ROW)
    assert found["revision"].to_pylist() == [None, 1, 2, None]
    assert found["history"].to_pylist() == [None, writes[0].history, writes[1].history, None]
