"""The encoders of a batch job, wherever its workers run."""

import pickle
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from spoor.activity.hashing import hash_items, hash_names
from spoor.activity.history import EVENT_DTYPE, Histories
from spoor.base.errors import UsageError
from spoor.batch.releases import encoders
from spoor.config import Settings, load_settings
from spoor.kernels import backend
from tests.releases import save_untrained_release


@pytest.fixture(autouse=True)
def kernels() -> Iterator[None]:
    yield
    backend.force("auto")


@pytest.mark.parametrize(("chosen", "answers"), [("triton", False), ("cpu", True), ("auto", True)])
def test_a_worker_computes_with_the_kernels_of_the_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chosen: str, answers: bool
) -> None:
    """Settings reach a worker pickled, and nothing else of the command's process does. Triton has no GPU here."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    save_untrained_release(tmp_path / "base-1", items=["i"], actions=["view"], surfaces=["home"])
    flags = {"features.releases_folder": str(tmp_path), "kernels.backend": chosen}
    settings: Settings = pickle.loads(pickle.dumps(load_settings(environ={}, flags=flags)))
    backend.force("cpu" if chosen == "triton" else "triton")  # what the process did before
    values = np.zeros(2, EVENT_DTYPE)
    values["timestamp"] = [1, 2]
    values["item"], values["action"] = hash_items(["i"])[0], hash_names(["view"])[0]
    histories = Histories(values, np.array([0, 2]))
    if answers:
        assert encoders(settings.features, settings.kernels, ["base-1"])["base-1"].encode(histories)[1].tolist() == [2]
    else:
        with pytest.raises(UsageError, match=r"kernels\.backend is triton, which needs tensors on a GPU"):
            encoders(settings.features, settings.kernels, ["base-1"])
