"""Events of one user at one time: their order, and times that keep it.

Times in files are often whole seconds or days. Events of equal time keep the published order (a `pos` column, else the
row order) or get one drawn from a seed. They then get distinct milliseconds in that order, because a history orders its
events by time. All functions take arrays of one length, with a user index per event.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from spoor.activity.hashing import mix_bits, old_names
from spoor.activity.history import Values

Int64s = npt.NDArray[np.int64]
_STEP = np.uint64(0x9E3779B97F4A7C15)  # splitmix64's increment: without it 0 would stay 0
_DAY_MS, _MINUTE_MS, _SECOND_MS = 86_400_000, 60_000, 1_000


def resolution_ms(times_ms: Int64s) -> int:
    """The coarsest of day, minute, second and millisecond that divides all times; a day if there are none."""
    return next(unit for unit in (_DAY_MS, _MINUTE_MS, _SECOND_MS, 1) if not np.any(times_ms % unit))


def raise_times(users: Int64s, times_ms: Int64s, places: Int64s) -> Int64s:
    """int64[N]: times that never fall along a user's `places`. An event dated before its predecessor gets the
    predecessor's time; all others are unchanged."""
    order = np.lexsort((times_ms, places, users))
    sorted_users, sorted_times = users[order], times_ms[order]
    falls = (np.diff(sorted_times) < 0) & (np.diff(sorted_users) == 0)
    for user in np.unique(sorted_users[1:][falls]):
        start, end = np.searchsorted(sorted_users, [user, user + 1])
        sorted_times[start:end] = np.maximum.accumulate(sorted_times[start:end])
    raised = np.empty_like(times_ms)
    raised[order] = sorted_times
    return raised


def separate_times(users: Int64s, times_ms: Int64s) -> Int64s:
    """Events sorted by (user, time) → strictly increasing times of each user: an event that is not later than its
    predecessor gets the predecessor's time + 1 ms. A time depends only on earlier events, so gaps reveal nothing about
    later ones."""
    separate = times_ms.copy()
    late = np.flatnonzero((np.diff(times_ms) <= 0) & (np.diff(users) == 0))
    for user in np.unique(users[late]):
        start, end = np.searchsorted(users, [user, user + 1])
        steps = np.arange(end - start)
        separate[start:end] = np.maximum.accumulate(times_ms[start:end] - steps) + steps
    return separate


def spread_times(users: Int64s, times_ms: Int64s, *, resolution: int) -> Int64s:
    """Like `separate_times`, but the k-th of m equal times gets k · resolution / m ms more, so that a replay does not
    send them all at once. A time then reveals how many events share it: do not train on it."""
    if not len(times_ms):
        return times_ms.copy()
    new_user = np.append(True, np.diff(users) != 0)
    groups = np.flatnonzero(new_user | np.append(True, np.diff(times_ms) != 0))
    sizes = np.diff(np.append(groups, len(times_ms)))
    rank = np.arange(len(times_ms)) - np.repeat(groups, sizes)
    return separate_times(users, times_ms + rank * resolution // np.repeat(sizes, sizes))


def shuffle_keys(user_hashes: npt.NDArray[np.integer], values: Values, *, seed: int) -> npt.NDArray[np.uint64]:
    """uint64[N]: sort keys that give a user's equal times an order drawn from `seed`, any integer. A key depends only
    on its event and the seed, so neither the row order nor other events change it. Names are hashed by version 1, as in
    the orders on which earlier releases were trained."""
    key = np.full(len(values), seed % 2**64, np.uint64)
    names = old_names(values["action"]), old_names(values["surface"])
    for part in (user_hashes, values["timestamp"], values["item"], *names):
        key = mix_bits((key ^ part.astype(np.uint64)) + _STEP)
    return key
