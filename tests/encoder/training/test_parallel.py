"""Two processes end where one does."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from spoor.base.errors import UsageError
from spoor.encoder.model.config import MODEL_CONFIGS
from spoor.encoder.release.folder import load_release
from spoor.encoder.training.parallel import gpu_of
from spoor.encoder.training.plan import PretrainRequest
from spoor.encoder.training.run import run_pretrain
from spoor.encoder.training.settings import PretrainSettings
from tests.encoder.training.test_run import circle

REPOSITORY = Path(__file__).parents[3]
RUN = """
import sys
import pyarrow.parquet as pq
import torch
from pathlib import Path
from spoor.encoder.training.plan import PretrainRequest
from spoor.encoder.training.run import run_pretrain
from tests.encoder.training.test_parallel import settings, without_dropout
torch.set_num_threads(1)
folder = Path(sys.argv[1])
without_dropout()
events = pq.read_table(folder / "events.parquet")
run_pretrain(PretrainRequest(events, out=folder / "two", settings=settings(sys.argv[2])))
"""


def settings(table_updates) -> PretrainSettings:
    return PretrainSettings(
        model="tiny",
        epochs=2,
        token_budget=200,
        uniform_negatives=16,
        multi_token_weight=0.5,
        table_updates=table_updates,
    )


def without_dropout() -> None:
    """Each process draws its own dropout, so only a model without any can be compared."""
    MODEL_CONFIGS["tiny"] = replace(MODEL_CONFIGS["tiny"], dropout=0.0, input_dropout=0.0)


@pytest.mark.parametrize("table_updates", ["dense", "sparse"])
def test_two_processes_end_at_the_weights_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, table_updates: str
) -> None:
    monkeypatch.setitem(MODEL_CONFIGS, "tiny", MODEL_CONFIGS["tiny"])  # undone after the test
    without_dropout()
    pq.write_table(circle(), tmp_path / "events.parquet")
    (tmp_path / "run.py").write_text(RUN)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*torchrun, str(tmp_path / "run.py"), str(tmp_path), table_updates],
        cwd=REPOSITORY,
        env={"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    run_pretrain(PretrainRequest(circle(), out=tmp_path / "one", settings=settings(table_updates)))
    one, two = (load_release(tmp_path / name) for name in ("one", "two"))
    assert two.metrics["steps"] == one.metrics["steps"] > 10
    for name, value in one.weights.items():
        np.testing.assert_allclose(two.weights[name], value, atol=2e-5, err_msg=name)


@pytest.mark.parametrize(
    ("local_rank", "here", "gpus", "expected"),
    [(0, 1, 0, None), (3, 4, 0, None), (0, 2, 2, 0), (1, 2, 2, 1), (2, 3, 8, 2)],
)
def test_each_process_takes_a_gpu_of_its_own(local_rank: int, here: int, gpus: int, expected: int | None) -> None:
    assert gpu_of(local_rank, here=here, gpus=gpus) == expected


def test_more_processes_than_gpus_are_refused() -> None:
    with pytest.raises(UsageError, match="started 4 processes on this machine, which has 2 GPUs") as caught:
        gpu_of(0, here=4, gpus=2)
    assert caught.value.hint == "start it with --nproc-per-node 2"
