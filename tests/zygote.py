"""Processes of `spoor` that start in a fraction of a second: forked from one that has imported everything.

A worker's start costs six to ten seconds of a core for its imports. The zygote imports the command line's rooms once,
with one thread and without a connection, and forks a child for every start. The child runs the `main` of `program` with
its own arguments, environment, output and process group. That is the product's own main; one thing differs: the process
in which a worker encodes is forked (by a stem that the child sets aside first) where `encoder_process.py`
would start Python anew. tests/streaming has genuine starts too.

    harness → zygote    one JSON object a line: {"arguments", "folder", "environment", "stdout", "stderr", "marks",
                        "fail_point", "program", "worker"}
    zygote → harness    {"started": pid} in the order of the requests; {"ended": pid, "status": n} when one is reaped;
                        {"adopted": n}: so many orphans (encoders whose worker is dead) live now
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import inspect
import json
import logging
import mmap
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).parents[1]
MARK_BYTES = 16  # [0] batches under way, [1] the place that was reached last, from 8 on: batches handled (u64)
PLACES = ("", "before-read", "after-encode", "after-write", "after-publish", "during-rebalance")
_MODULES = (
    "spoor.cli",
    "spoor.broker.create_topics",
    "spoor.services.local",
    "spoor.operations.orders",
    "spoor.operations.releases",
    "spoor.streaming.orders.control",
    "spoor.streaming.pipeline.encoder_process",
    "spoor.streaming.orders.handover",
    "spoor.streaming.pipeline.stores",
    "spoor.streaming.worker",
    "spoor.store.online",
    "spoor.store.repo",
    "spoor.batch.kafka.archive",
    "spoor.batch.kafka.archive_embeddings",
    "spoor.batch.users.backfill",
    "spoor.batch.forget.forget",
    "spoor.batch.users.verify",
    "spoor.encoder.release.inference",
    # What these libraries import when they are first used.
    "duckdb",
    "faust.app.router",
    "faust.assignor.partition_assignor",
    "faust.fixups.django",
    "faust.stores.base",
    "faust.tables.manager",
    "faust.transport.utils",
    "faust.worker",
    "feast.infra.offline_stores.duckdb",
    "feast.infra.registry.file",
    "feast.repo_operations",
)
ENCODERS = "spoor.streaming.pipeline.encoder_process"
_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER


# -- the harness's side


class Forked:
    """A child of the zygote, with what the tests use of subprocess.Popen."""

    def __init__(self, zygote: Zygote, pid: int, arguments: Sequence[str], stdout: Path, marks: Path) -> None:
        self.args = list(arguments)
        self.pid = pid
        self.stdout_file = stdout
        self.marks_file = marks
        self.returncode: int | None = None
        self.ended = threading.Event()
        self._zygote = zygote

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if not self.ended.wait(timeout):
            raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def communicate(self, timeout: float | None = None) -> tuple[bytes, None]:
        self.wait(timeout)
        return self.stdout_file.read_bytes(), None

    @property
    def under_way(self) -> int:
        """Batches that the worker had begun and not ended, now or when it died."""
        return self._mark(0)

    @property
    def place(self) -> str:
        """The last of PLACES that the worker reached."""
        return PLACES[self._mark(1)]

    @property
    def handled(self) -> int:
        return int.from_bytes(self._marks()[8:16], "little")

    def _mark(self, at: int) -> int:
        return self._marks()[at]

    def _marks(self) -> bytes:
        return self.marks_file.read_bytes().ljust(MARK_BYTES, b"\0")


class Zygote:
    """One for a whole session; `stop` ends it and every child that still lives."""

    def __init__(self, folder: Path) -> None:
        ours, theirs = socket.socketpair()
        self._folder = folder
        self._log = (folder / "zygote.log").open("wb")
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.zygote", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
                cwd=ROOT,
            )
        self._socket = ours
        self._children: dict[int, Forked] = {}
        self._early: dict[int, int] = {}  # statuses of children whose start has not been answered yet
        self._waiting: deque[Callable[[int], None]] = deque()
        self._lock = threading.Lock()
        self.orphans = 0
        self.starts = 0
        threading.Thread(target=self._listen, daemon=True).start()

    def start(
        self,
        arguments: Sequence[str],
        *,
        folder: Path,
        stdout: Path,
        stderr: Path,
        environment: Mapping[str, str] | None = None,
        fail_point: str = "",
        program: str = "spoor.cli",
        descriptors: Sequence[int] = (),
    ) -> Forked:
        """Returns once the child is forked. `environment` is added to the zygote's own. The numbers that `descriptors`
        have in the child are its first arguments."""
        marks = stderr.with_suffix(".marks")
        if program != ENCODERS:
            marks.write_bytes(bytes(MARK_BYTES))
            for file in (stdout, stderr):  # a child may be killed before it opens them
                file.touch()
        request = {
            "arguments": list(arguments),
            "folder": str(folder),
            "environment": dict(environment or {}),
            "stdout": str(stdout),
            "stderr": str(stderr),
            "marks": str(marks),
            "fail_point": fail_point,
            "program": program,
            "worker": program != ENCODERS and (program != "spoor.cli" or "stream" in arguments),
        }
        started, found = threading.Event(), []

        def answered(pid: int) -> None:
            child = Forked(self, pid, arguments, stdout, marks)
            self._children[pid] = child
            found.append(child)
            started.set()

        with self._lock:
            self._waiting.append(answered)
            socket.send_fds(self._socket, [json.dumps(request).encode() + b"\n"], list(descriptors))
        if not started.wait(60):
            raise AssertionError(f"the zygote does not answer: {self.log()[-3000:]}")
        self.starts += 1
        return found[0]

    def start_encoders(self, command: Sequence[str], *, pass_fds: Sequence[int], **_: Any) -> Forked:
        """In place of subprocess.Popen for a worker that runs in the process of the tests."""
        choice_and_releases = command[command.index(ENCODERS) + 2 :]
        nowhere = Path(os.devnull)
        return self.start(
            choice_and_releases,
            program=ENCODERS,
            descriptors=pass_fds,
            folder=self._folder,
            stdout=nowhere,
            stderr=nowhere,
        )

    def log(self) -> str:
        return (self._folder / "zygote.log").read_text(errors="replace")

    def stop(self) -> None:
        for child in list(self._children.values()):
            child.send_signal(signal.SIGCONT)
            child.kill()
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        try:
            self._process.wait(15)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

    def _listen(self) -> None:
        with self._socket.makefile("rb") as lines:
            for line in lines:
                told = json.loads(line)
                if "started" in told:
                    self._waiting.popleft()(told["started"])
                elif "ended" in told:
                    child = self._children.pop(told["ended"])
                    child.returncode = told["status"]
                    child.ended.set()
                else:
                    self.orphans = told["adopted"]


# -- the zygote


def serve(descriptor: int) -> None:
    """Answers until the harness closes its end."""
    for module in _MODULES:
        importlib.import_module(module)
    inspect.getmodule(inspect.currentframe())  # looks at every module's file once: Faust asks for it in each worker
    ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)  # encoders whose worker is dead become ours: they are counted
    threads = [Path(f"/proc/self/task/{thread}/comm").read_text().strip() for thread in os.listdir("/proc/self/task")]
    lost = [name for name in threads[1:] if name != "jemalloc_bg_thd"]  # jemalloc itself sees to its thread in a fork
    assert not lost, f"a fork would lose the threads {lost}"
    gc.collect()
    gc.freeze()
    harness = socket.socket(fileno=descriptor)
    children: set[int] = set()
    adopted = 0
    received = b""
    while True:
        readable, _, _ = select.select([harness], [], [], 0.02)
        if readable:
            data, descriptors, _, _ = socket.recv_fds(harness, 1 << 16, 4)
            if not data:
                break
            *requests, received = (received + data).split(b"\n")
            for n, request in enumerate(requests):
                of_request = descriptors if n == len(requests) - 1 else []  # the kernel ends a read with them
                pid = os.fork()
                if pid == 0:
                    harness.close()
                    _run(json.loads(request), of_request)
                children.add(pid)
                _tell(harness, {"started": pid})
            for descriptor in descriptors:
                os.close(descriptor)
        while (found := _reaped()) is not None:
            pid, status = found
            if pid in children:
                children.remove(pid)
                _tell(harness, {"ended": pid, "status": status})
        if (orphans := _children_of_mine() - len(children)) != adopted:
            adopted = orphans
            _tell(harness, {"adopted": adopted})
    for pid in children:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _tell(harness: socket.socket, what: Mapping[str, int]) -> None:
    harness.sendall(json.dumps(what).encode() + b"\n")


def _reaped() -> tuple[int, int] | None:
    try:
        pid, status = os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return None
    return (pid, os.waitstatus_to_exitcode(status)) if pid else None


def _children_of_mine() -> int:
    return len(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


# -- a child


def _run(request: Mapping[str, Any], descriptors: Sequence[int]) -> None:
    """Does not return."""
    status: Any = 0
    try:
        os.setpgid(0, 0)
        os.chdir(request["folder"])
        for descriptor, file in ((1, request["stdout"]), (2, request["stderr"])):
            os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), descriptor)
        os.environ.update(request["environment"])
        logging.getLogger().handlers.clear()  # a library has set one up while it was imported
        if request["worker"]:
            _stand_in_for_the_encoders_start(_stem())
            _die_at(request["fail_point"])
            _note_places(request["marks"])
        arguments = [*map(str, descriptors), *request["arguments"]]
        if request["program"] == ENCODERS:
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
            sys.argv = [ENCODERS, *arguments]
            importlib.import_module(ENCODERS).main()
        else:
            importlib.import_module(request["program"]).main(arguments)
    except SystemExit as ended:
        status = ended.code
    except BaseException:
        import traceback

        traceback.print_exc()
        status = 71
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status if isinstance(status, int) else int(status is not None))


def _stem() -> tuple[int, socket.socket]:
    """A process that waits, without a thread, for the order to become the encoders' process; it ends with its
    worker."""
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid:
        theirs.close()
        return pid, ours
    try:
        ours.close()
        os.setpgid(0, 0)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        message, descriptors, _, _ = socket.recv_fds(theirs, 1 << 16, 1)
        if message:
            from spoor.streaming.pipeline import encoder_process

            sys.argv = ["encoder_process", str(descriptors[0]), *json.loads(message)]
            encoder_process.main()
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(0)


class _Stem:
    """What `EncoderProcess` uses of subprocess.Popen."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._status: int | None = None

    def kill(self) -> None:
        if self._status is None:
            os.kill(self.pid, signal.SIGKILL)

    def wait(self, timeout: float | None = None) -> int:
        if self._status is None:
            if timeout is not None and not self._ends_within(timeout):
                raise subprocess.TimeoutExpired("encoders", timeout)
            self._status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self._status

    def _ends_within(self, seconds: float) -> bool:
        descriptor = os.pidfd_open(self.pid)
        try:
            return bool(select.select([descriptor], [], [], seconds)[0])
        finally:
            os.close(descriptor)


def _stand_in_for_the_encoders_start(stem: tuple[int, socket.socket]) -> None:
    """The first start takes the stem, with the arguments that Python would have got; later ones (a reload, an encoder
    that was killed) start Python anew."""
    from spoor.streaming.pipeline import encoder_process

    stems = [stem]

    def start(command: Sequence[str], *, pass_fds: Sequence[int], **options: Any) -> Any:
        if not stems:
            return subprocess.Popen(command, pass_fds=pass_fds, **options)
        pid, order = stems.pop()
        descriptor, *arguments = command[command.index(ENCODERS) + 1 :]
        assert [int(descriptor)] == list(pass_fds)
        with order:
            socket.send_fds(order, [json.dumps(arguments).encode()], list(pass_fds))
        return _Stem(pid)

    encoder_process.subprocess = SimpleNamespace(**vars(subprocess) | {"Popen": start})


def _note_places(file: str) -> None:
    """Where the worker is, in a file that outlives it."""
    from spoor.streaming.pipeline.processor import BatchProcessor

    with open(file, "r+b") as opened:
        marks = mmap.mmap(opened.fileno(), MARK_BYTES)
    handle, reached = BatchProcessor.handle, BatchProcessor.reached

    async def noted(self: BatchProcessor, messages: Any, *more: Any) -> None:
        marks[0] += 1
        try:
            await handle(self, messages, *more)
        finally:
            marks[0] -= 1
        marks[8:16] = (int.from_bytes(marks[8:16], "little") + 1).to_bytes(8, "little")

    def noted_place(self: BatchProcessor, place: str) -> None:
        if place in PLACES:
            marks[1] = PLACES.index(place)
        reached(self, place)

    BatchProcessor.handle, BatchProcessor.reached = noted, noted_place


def _die_at(fail_point: str) -> None:
    if fail_point:
        from tests.fail_points import FailPoint

        FailPoint(fail_point).install()


if __name__ == "__main__":
    serve(int(sys.argv[1]))
