"""95 % intervals by bootstrap over users: the variation expected with other users of the same population.

Users are drawn with replacement, each with all of the user's questions, since questions of one user are not
independent. All columns share the draws, so the difference of two columns is a paired comparison.

Legend: U users, P questions, K columns (metrics of scorers), B draws.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float64]
DRAWS = 1_000
_BOUNDS = (2.5, 97.5)


def user_sums(values: Values, users: npt.NDArray[np.int64]) -> tuple[Values, Values]:
    """`values` float64[P, K] and `users` int64[P] → per user with a question, sums float64[U, K], counts float64[U]."""
    _, place, counts = np.unique(users, return_inverse=True, return_counts=True)
    sums = np.empty((len(counts), values.shape[1]))
    for column in range(values.shape[1]):
        sums[:, column] = np.bincount(place, weights=values[:, column], minlength=len(counts))
    return sums, counts.astype(np.float64)


def user_draws(users: int, *, seed: int, draws: int = DRAWS) -> Iterator[Values]:
    """Yields B arrays float64[U]: how often each user was drawn, in U draws with replacement."""
    rng = np.random.default_rng(seed)
    for _ in range(draws):
        yield np.bincount(rng.integers(0, users, users), minlength=users).astype(np.float64)


def bootstrap_means(sums: Values, counts: Values, *, seed: int, draws: int = DRAWS) -> Values:
    """float64[B, K]: the mean per question in each draw. [0, K] without users."""
    if not len(counts):
        return np.empty((0, sums.shape[1]))
    return np.stack([(times @ sums) / (times @ counts) for times in user_draws(len(counts), seed=seed, draws=draws)])


def interval(means: Values) -> tuple[float, float]:
    """The middle 95 % of `means` float64[B]; (0, 0) if empty."""
    if not len(means):
        return 0.0, 0.0
    low, high = np.percentile(means, _BOUNDS)
    return float(low), float(high)
