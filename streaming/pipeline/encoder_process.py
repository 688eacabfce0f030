"""The encoders in a process of their own.

Every operation of PyTorch gives Python's lock away and asks for it again, which takes long while another thread runs
Python code: beside Faust's loop a batch was encoded at half the speed. Only arrays go between the two processes.

    request   release, histories                      → vectors, events used; or the error's text
    end       the worker closes its end, or has died  → the process ends

It can be killed at any time: nothing is lost, and the next `encode` starts another one.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Lock
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from spoor.activity.history import EVENT_DTYPE, Histories
from spoor.base.errors import DataError, InfrastructureError, SpoorError, UsageError
from spoor.kernels import backend
from spoor.kernels.settings import Choice

log = logging.getLogger(__name__)
Int64s = npt.NDArray[np.int64]
Frames = tuple[dict[str, Any], bytes, bytes]  # a request or a reply: what it is, and two arrays
_START_SECONDS = 120.0  # to import PyTorch and load the releases
_END_SECONDS = 5.0
_ERRORS = {kind.__name__: kind for kind in (UsageError, DataError, InfrastructureError)}


@dataclass(frozen=True)
class RemoteEncoder:
    """An encoder (store/writer.py) that works in `process`."""

    process: EncoderProcess
    release: str
    dimension: int
    max_events: int
    trained_through_ms: int

    def encode(self, histories: Histories) -> tuple[npt.NDArray[np.float32], Int64s]:
        """As `FrozenEncoder.encode`. Raises DataError with what that raised, and InfrastructureError where there is no
        process to ask."""
        recent = histories.newest(self.max_events)
        vectors, used = self.process.ask(self.release, recent)
        return np.frombuffer(vectors, np.float32).reshape(recent.count, self.dimension), np.frombuffer(used, np.int64)


class EncoderProcess:
    """Loads the named releases. `encoders`: one for each. Threads may share it, and wait for one another. It computes
    with the kernels that are chosen in this process.

    Raises as `encoder.inference.load_encoders`, and InfrastructureError where the process does not come up."""

    def __init__(self, releases_folder: Path, names: Sequence[str]) -> None:
        self._folder = releases_folder
        self._lock = Lock()
        self._closed = False
        self.encoders = self._start(names)

    def ask(self, release: str, histories: Histories) -> tuple[bytes, bytes]:
        """Vectors and events used, as bytes. Where the process has ended, another one is asked, once. Raises as
        `RemoteEncoder.encode`."""
        request = [json.dumps({"release": release}).encode(), histories.offsets.tobytes(), histories.values.tobytes()]
        with self._lock:
            try:
                reply, vectors, used = self._exchange(request)
            except (EOFError, OSError) as error:
                ended = self._ended()
                if self._closed:
                    raise ended from error
                log.warning("%s: another one is started", ended.message)
                reply, vectors, used = self._exchange_with_another(release, request)
        if "error" in reply:
            raise _error(reply)
        return vectors, used

    def close(self) -> None:
        """Ends the process for good. Who waits for it gets InfrastructureError."""
        self._closed = True  # first: a process that is just being started sees it
        self._process.kill()
        with self._lock:
            self._end()

    def _start(self, names: Sequence[str]) -> list[RemoteEncoder]:
        ours, theirs = socket.socketpair()
        with theirs:
            self._connection = Connection(ours.detach())
            self._process = self._spawn(theirs.fileno(), names)
        if self._closed:
            self._end()
            raise InfrastructureError("the encoders' process is closed")
        try:
            if not self._connection.poll(_START_SECONDS):
                self._end()
                raise InfrastructureError(
                    f"the encoders' process did not load {', '.join(names)} within {_START_SECONDS:.0f} s",
                    hint=f"see whether {self._folder} can be read",
                )
            hello = json.loads(self._connection.recv_bytes())
        except (EOFError, OSError) as error:
            raise self._ended() from error
        if "error" in hello:
            self._end()
            raise _error(hello)
        return [RemoteEncoder(self, **about) for about in hello["encoders"]]

    def _spawn(self, descriptor: int, names: Sequence[str]) -> subprocess.Popen[bytes]:
        # Who ends a service sends SIGTERM to each of its processes. The worker decides: the child never takes it.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        try:
            return subprocess.Popen(
                # -P and our own path: the same modules as here, whatever the working folder holds.
                [sys.executable, "-P", "-m", __name__, str(descriptor), backend.choice(), str(self._folder), *names],
                env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                pass_fds=[descriptor],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,  # the worker's own is for its summary
                process_group=0,  # Ctrl-C is for the worker, which has batches to finish
            )
        except OSError as error:
            raise InfrastructureError(
                f"the encoders' process cannot be started: {error.strerror or error}",
                hint="see whether memory, processes or open files of this machine are used up",
            ) from error
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def _exchange(self, request: Sequence[bytes]) -> Frames:
        try:
            _send(self._connection, request)
            return _receive(self._connection)
        except BaseException:  # a reply that stayed behind would be taken for the next one
            self._connection.close()
            raise

    def _exchange_with_another(self, release: str, request: Sequence[bytes]) -> Frames:
        try:
            self._start([release])  # it loads others when they are asked for: they may be retired by now
            return self._exchange(request)
        except (EOFError, OSError) as error:
            raise self._ended() from error
        except SpoorError as error:  # what was loaded before is a server that is away now
            raise InfrastructureError(error.message, hint=error.hint) from error

    def _ended(self) -> InfrastructureError:
        """Gives it the time to end by itself, and so to tell how."""
        self._connection.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_SECONDS)
        status = self._end()
        how = f"by signal {-status}" if status < 0 else f"with status {status}"
        return InfrastructureError(
            f"the encoders' process ended {how}",
            hint="its last lines on stderr say why; signal 9 may mean that memory was short",
        )

    def _end(self) -> int:
        """Returns the process's status."""
        self._connection.close()
        self._process.kill()
        return self._process.wait()


def _error(reply: dict[str, Any]) -> SpoorError:
    return _ERRORS.get(reply["kind"], DataError)(reply["error"], hint=reply["hint"])


def _send(connection: Connection, frames: Sequence[bytes]) -> None:
    for frame in frames:
        connection.send_bytes(frame)


def _receive(connection: Connection) -> Frames:
    return json.loads(connection.recv_bytes()), connection.recv_bytes(), connection.recv_bytes()


# -- the child


def serve(connection: Connection, releases_folder: Path, names: Sequence[str]) -> None:
    """Answers until the other end closes."""
    from spoor.encoder.release.inference import load_encoders

    try:
        encoders = {encoder.release: encoder for encoder in load_encoders(releases_folder, names)}
    except SpoorError as error:
        connection.send_bytes(_refusal(error, kind=type(error)))
        return
    about = ("release", "dimension", "max_events", "trained_through_ms")
    hello = [{name: getattr(encoder, name) for name in about} for encoder in encoders.values()]
    connection.send_bytes(json.dumps({"encoders": hello}).encode())
    while True:
        header, offsets, values = _receive(connection)
        histories = Histories(np.frombuffer(values, EVENT_DTYPE), np.frombuffer(offsets, np.int64))
        release = header["release"]
        try:
            if release not in encoders:
                (encoders[release],) = load_encoders(releases_folder, [release])
            vectors, used = encoders[release].encode(histories)
            reply = [b"{}", vectors.tobytes(), used.tobytes()]
        except Exception as error:  # whatever a model may raise is an answer
            away = release not in encoders or isinstance(error, InfrastructureError)
            reply = [_refusal(error, kind=InfrastructureError if away else DataError), b"", b""]
        _send(connection, reply)


def _refusal(error: Exception, *, kind: type[SpoorError]) -> bytes:
    ours = isinstance(error, SpoorError)
    text, hint = (error.message, error.hint) if ours else (f"{type(error).__name__}: {error}", "")
    return json.dumps({"error": text, "hint": hint, "kind": kind.__name__}).encode()


def main() -> None:
    descriptor, choice, folder, *names = sys.argv[1:]
    backend.force(cast(Choice, choice))
    with suppress(EOFError, OSError):  # the worker has closed its end, or has died
        serve(Connection(int(descriptor)), Path(folder), names)


if __name__ == "__main__":
    main()
