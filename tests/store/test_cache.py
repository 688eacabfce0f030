from spoor.store.cache import MAX_AGE_SECONDS, HistoryCache
from spoor.store.rows import StoredUser

ANN, BOB, CY = (StoredUser(name, 1, {}) for name in (b"ann", b"bob", b"cy"))


def test_the_least_recently_used_user_goes_first():
    cache = HistoryCache(2)
    cache.put("ann", ANN)
    cache.put("bob", BOB)
    assert cache.get("ann") is ANN
    cache.put("cy", CY)
    assert cache.get("bob") is None and cache.get("ann") is ANN and cache.get("cy") is CY and len(cache) == 2


def test_users_go_with_their_partition():
    cache = HistoryCache(10)
    cache.put("ann", ANN, partition=0)
    cache.put("bob", BOB, partition=1)
    cache.put("cy", CY)
    cache.drop_partition(0)
    assert cache.get("ann") is None and cache.get("bob") is BOB and cache.get("cy") is CY
    cache.clear()
    assert len(cache) == 0


def test_a_cache_of_no_users_holds_none():
    cache = HistoryCache(0)
    cache.put("ann", ANN)
    assert cache.get("ann") is None
    cache.drop("ann")


def test_an_entry_ends_an_hour_after_it_was_last_written():
    """A user whose row was removed for good begins at revision 1 again: what is older could take it for its own."""
    now = [0.0]
    cache = HistoryCache(10, clock=lambda: now[0])
    cache.put("ann", ANN)
    now[0] = MAX_AGE_SECONDS
    assert cache.get("ann") is ANN
    cache.put("bob", BOB)
    now[0] += 1
    assert cache.get("ann") is None and cache.get("bob") is BOB and len(cache) == 1
