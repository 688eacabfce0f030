"""The baselines by the names that tables and the command line use."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from spoor.base.errors import UsageError
from spoor.encoder.baselines.item_knn import ItemKnn
from spoor.encoder.baselines.markov import Markov
from spoor.encoder.baselines.popularity import Popularity
from spoor.encoder.baselines.recent import Recent
from spoor.encoder.baselines.sasrec import Sasrec
from spoor.encoder.evaluation.scoring import Scorer

_FLOORS: dict[str, Callable[[], Scorer]] = {
    "popularity": Popularity,
    "recent": Recent,
    "markov": Markov,
    "item-knn": ItemKnn,
}
_REFIT_EPOCHS = {"sasrec": 0, "sasrec-refit": 1}
FLOORS = tuple(_FLOORS)  # each takes seconds
BASELINES = (*_FLOORS, *_REFIT_EPOCHS)


def make_baselines(names: Sequence[str], *, max_minutes: float = 60.0, seed: int = 0) -> dict[str, Scorer]:
    """Scorers by name, not yet prepared. `max_minutes` and `seed`: of SASRec. Raises UsageError for other names."""
    made: dict[str, Scorer] = {}
    for name in names:
        if name in _FLOORS:
            made[name] = _FLOORS[name]()
        elif name in _REFIT_EPOCHS:
            made[name] = Sasrec(refit_epochs=_REFIT_EPOCHS[name], max_minutes=max_minutes, seed=seed)
        else:
            raise UsageError(f"there is no baseline `{name}`", hint=f"choose among {', '.join(BASELINES)}, or none")
    return made
