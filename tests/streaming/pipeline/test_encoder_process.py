"""The encoders' process: the same vectors, errors that keep their kind, and an end for every beginning."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import numpy as np
import psutil
import pytest

from spoor.activity.hashing import hash_items, hash_names
from spoor.activity.history import EVENT_DTYPE, Histories
from spoor.base.errors import DataError, InfrastructureError, UsageError
from spoor.encoder.release.inference import load_encoders
from spoor.kernels import backend
from spoor.streaming.pipeline.encoder_process import EncoderProcess
from tests.conftest import wait_until
from tests.streaming.conftest import ITEMS, RELEASE


@pytest.fixture
def process(untrained_release: Path) -> Iterator[EncoderProcess]:
    with closing(EncoderProcess(untrained_release, [RELEASE])) as process:
        yield process


def histories_of(*lengths: int) -> Histories:
    rng = np.random.default_rng(0)
    values = np.zeros(sum(lengths), EVENT_DTYPE)
    values["timestamp"] = 1_700_000_000_000 + np.arange(len(values))
    values["item"] = hash_items(ITEMS)[rng.integers(0, len(ITEMS), len(values))]
    values["action"], values["surface"] = hash_names(["view"])[0], hash_names(["home"])[0]
    return Histories(values, np.concatenate([[0], np.cumsum(lengths)]))


def test_it_encodes_as_the_encoder_in_this_process(process: EncoderProcess, untrained_release: Path):
    (here,), (there,) = load_encoders(untrained_release, [RELEASE]), process.encoders
    about = ("release", "dimension", "max_events", "trained_through_ms")
    assert [getattr(there, name) for name in about] == [getattr(here, name) for name in about]
    for histories in (histories_of(3, 0, 2 * here.max_events, 1), histories_of(0, 0), Histories.empty(0)):
        (vectors, used), (found, found_used) = here.encode(histories), there.encode(histories)
        np.testing.assert_array_equal(found, vectors)
        np.testing.assert_array_equal(found_used, used)


def test_one_that_was_killed_is_started_again(process: EncoderProcess):
    (encoder,) = process.encoders
    before, _ = encoder.encode(histories_of(3, 1))
    _child().kill()
    after, _ = encoder.encode(histories_of(3, 1))
    np.testing.assert_array_equal(after, before)


def test_one_that_does_not_come_up_again_is_a_server_that_is_away(process: EncoderProcess, monkeypatch):
    (encoder,) = process.encoders
    _child().kill()
    monkeypatch.setattr("spoor.streaming.pipeline.encoder_process.sys.executable", "/bin/false")
    with pytest.raises(InfrastructureError, match="the encoders' process ended with status 1"):
        encoder.encode(histories_of(1))
    monkeypatch.undo()
    assert encoder.encode(histories_of(1))[1].tolist() == [1]  # the next try is a new one


def test_a_release_that_cannot_be_loaded_again_is_a_server_that_is_away(untrained_release: Path, tmp_path: Path):
    """And no encode that failed: histories would go on without embeddings for as long as the folder is away."""
    folder = tmp_path / "releases"
    shutil.copytree(untrained_release, folder)
    with closing(EncoderProcess(folder, [RELEASE])) as process:
        (encoder,) = process.encoders
        folder.rename(tmp_path / "away")
        assert encoder.encode(histories_of(1))[1].tolist() == [1]
        _child().kill()
        for _ in range(2):
            with pytest.raises(InfrastructureError, match=RELEASE):
                encoder.encode(histories_of(1))
        (tmp_path / "away").rename(folder)
        assert encoder.encode(histories_of(1))[1].tolist() == [1]


def test_after_a_restart_each_release_is_loaded_when_it_is_asked_for(process: EncoderProcess):
    with pytest.raises(InfrastructureError, match="gone"):
        process.ask("gone", histories_of(1))
    assert process.encoders[0].encode(histories_of(1))[1].tolist() == [1]


def test_a_process_that_fails_by_itself_tells_its_own_status(untrained_release: Path, tmp_path: Path, monkeypatch):
    (tmp_path / "torch.py").write_text("raise RuntimeError('no such library')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InfrastructureError, match="ended with status 1"):
        EncoderProcess(untrained_release, [RELEASE])


def test_one_that_hangs_while_it_starts_is_given_up(untrained_release: Path, tmp_path: Path, monkeypatch):
    (tmp_path / "torch.py").write_text("import signal; signal.pause()")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("spoor.streaming.pipeline.encoder_process._START_SECONDS", 0.5)
    with pytest.raises(InfrastructureError, match="did not load base-1 within"):
        EncoderProcess(untrained_release, [RELEASE])
    assert not _children()


def test_a_reply_that_was_not_read_is_not_the_answer_to_the_next_request(process: EncoderProcess, monkeypatch):
    (encoder,) = process.encoders
    with monkeypatch.context() as patch:
        patch.setattr(
            "spoor.streaming.pipeline.encoder_process._receive", lambda connection: (_ for _ in ()).throw(MemoryError())
        )
        with pytest.raises(MemoryError):
            encoder.encode(histories_of(3, 5))
    assert encoder.encode(histories_of(1, 1))[1].tolist() == [1, 1]


def test_what_is_wrong_with_a_release_keeps_its_kind_and_hint(untrained_release: Path, tmp_path: Path):
    with pytest.raises(UsageError, match="nothing") as raised:
        EncoderProcess(untrained_release, ["nothing"])
    assert raised.value.hint
    assert not _children()


def test_what_an_encoder_raises_is_the_answer_of_this_encode_alone(process: EncoderProcess):
    (encoder,) = process.encoders
    bad = histories_of(2)
    bad = Histories(bad.values, np.array([0, 5]))  # an offset behind the last event
    with pytest.raises(DataError, match="Error: "):
        encoder.encode(bad)
    assert encoder.encode(histories_of(1))[1].tolist() == [1]


def test_the_end_is_the_end(untrained_release: Path):
    process = EncoderProcess(untrained_release, [RELEASE])
    process.close()
    assert not _children()
    with pytest.raises(InfrastructureError, match="the encoders' process ended"):
        process.encoders[0].encode(histories_of(1))
    assert not _children()
    process.close()  # twice is once


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_it_ends_with_the_process_that_began_it(untrained_release: Path, end: signal.Signals):
    script = f"""
import signal
from pathlib import Path
from spoor.streaming.pipeline.encoder_process import EncoderProcess
process = EncoderProcess(Path({str(untrained_release)!r}), [{RELEASE!r}])
print(process._process.pid, flush=True)
signal.pause()
"""
    owner = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert owner.stdout is not None
    with owner.stdout:
        child = psutil.Process(int(owner.stdout.readline()))
    owner.send_signal(end)
    owner.wait(60)
    wait_until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, "the encoders' process ends")


def test_signals_that_are_meant_for_the_worker_leave_it_at_work(process: EncoderProcess):
    child = _child()
    child.send_signal(signal.SIGTERM)
    assert process.encoders[0].encode(histories_of(1))[1].tolist() == [1]
    assert _child() == child
    assert os.getpgid(child.pid) != os.getpgid(0)  # Ctrl-C goes to the group of the terminal


def test_modules_of_the_working_folder_are_not_taken(untrained_release: Path, tmp_path: Path, monkeypatch):
    for room in ("encoder", "activity"):
        (tmp_path / room).mkdir()
        (tmp_path / room / "__init__.py").write_text("raise SystemExit('not this one')")
    monkeypatch.chdir(tmp_path)
    with closing(EncoderProcess(untrained_release, [RELEASE])) as process:
        assert process.encoders[0].release == RELEASE


def _children() -> list[psutil.Process]:
    """Encoders' processes that this one has. (A server that another test has killed may be a zombie yet.)"""
    found = []
    for child in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):  # so is psutil.ZombieProcess
            if any("encoder_process" in part for part in child.cmdline()):
                found.append(child)
    return found


def test_it_computes_with_the_kernels_of_the_settings(untrained_release: Path, monkeypatch):
    """Triton has no GPU here: a process that follows the choice says so, one that does not would answer."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    backend.force("triton")
    try:
        with pytest.raises(UsageError, match=r"kernels\.backend is triton, which needs tensors on a GPU"):
            EncoderProcess(untrained_release, [RELEASE])
    finally:
        backend.force("auto")
    with closing(EncoderProcess(untrained_release, [RELEASE])) as process:
        assert process.encoders[0].encode(histories_of(3, 1))[1].tolist() == [3, 1]


def _child() -> psutil.Process:
    (child,) = _children()
    return child
