"""What the demo says of a worker that does not do what it waits for."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from spoor.base.errors import InfrastructureError
from spoor.demo.processes import Worker


@pytest.fixture
def demo(tmp_path: Path) -> Any:
    return SimpleNamespace(folder=tmp_path, config=tmp_path / "spoor.toml")


def test_a_worker_that_ends_is_told_from_one_that_takes_too_long(demo: Any, monkeypatch: pytest.MonkeyPatch):
    """There is no settings file: `spoor stream` ends at once."""
    with (
        Worker(demo, seconds=60) as worker,
        pytest.raises(InfrastructureError, match="the worker ended with exit code 2 before it had joined") as ended,
    ):
        worker.wait_for(lambda: False, "joined the group")
    assert "there is no settings file" in ended.value.message and "stream.log" in ended.value.hint
    monkeypatch.setattr("spoor.demo.processes.WORKER_SECONDS", 0.0)
    with Worker(demo, seconds=60) as worker, pytest.raises(InfrastructureError, match=r"has not caught up within 0 s"):
        worker.wait_for(lambda: False, "caught up")
