"""Events of one user at one time: their order, and times that keep it.

Files often know the second or the day of an event but not more. What is kept is the published order (a `pos` column,
else the order of rows) or an order drawn from a seed; the events then get distinct milliseconds in that order, because
a history orders its events by time. All functions work on arrays of one length, a user index per event.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from spoor.activity.hashing import mix_bits, old_names
from spoor.activity.history import Values

Int64s = npt.NDArray[np.int64]
_STEP = np.uint64(0x9E3779B97F4A7C15)  # splitmix64's: without it 0 would stay 0
_DAY_MS, _MINUTE_MS, _SECOND_MS = 86_400_000, 60_000, 1_000


def resolution_ms(times_ms: Int64s) -> int:
    """The coarsest of a day, a minute, a second and a millisecond that all times are multiples of; a day for none."""
    return next(unit for unit in (_DAY_MS, _MINUTE_MS, _SECOND_MS, 1) if not np.any(times_ms % unit))


def raise_times(users: Int64s, times_ms: Int64s, places: Int64s) -> Int64s:
    """int64[N]: times that never fall along a user's `places`. An event dated before its predecessor gets the
    predecessor's time; where the times agree with the places nothing changes."""
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
    """Events sorted by (user, time) → strictly increasing times of each user: what is not later than its predecessor
    comes 1 ms after it. A time depends on earlier events alone, so no gap tells what is still to come."""
    separate = times_ms.copy()
    late = np.flatnonzero((np.diff(times_ms) <= 0) & (np.diff(users) == 0))
    for user in np.unique(users[late]):
        start, end = np.searchsorted(users, [user, user + 1])
        steps = np.arange(end - start)
        separate[start:end] = np.maximum.accumulate(times_ms[start:end] - steps) + steps
    return separate


def spread_times(users: Int64s, times_ms: Int64s, *, resolution: int) -> Int64s:
    """As `separate_times`, but the k-th of m equal times gets k · resolution / m ms more: for a replay, in which they
    should not come all at once. A time then tells how many events share it: nothing to train on."""
    if not len(times_ms):
        return times_ms.copy()
    new_user = np.append(True, np.diff(users) != 0)
    groups = np.flatnonzero(new_user | np.append(True, np.diff(times_ms) != 0))
    sizes = np.diff(np.append(groups, len(times_ms)))
    rank = np.arange(len(times_ms)) - np.repeat(groups, sizes)
    return separate_times(users, times_ms + rank * resolution // np.repeat(sizes, sizes))


def shuffle_keys(user_hashes: npt.NDArray[np.integer], values: Values, *, seed: int) -> npt.NDArray[np.uint64]:
    """uint64[N]: what to sort a user's equal times by for an order drawn from `seed`, any whole number. A key depends
    on its own event and on the seed alone, so neither the order of rows nor other events move it. Names count by hash
    version 1, as in the orders that earlier releases were trained on."""
    key = np.full(len(values), seed % 2**64, np.uint64)
    names = old_names(values["action"]), old_names(values["surface"])
    for part in (user_hashes, values["timestamp"], values["item"], *names):
        key = mix_bits((key ^ part.astype(np.uint64)) + _STEP)
    return key
