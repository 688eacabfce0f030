"""Locks between processes, released when their process dies."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from spoor.base.errors import InfrastructureError


@contextmanager
def exclusive(path: Path, *, job: str) -> Iterator[None]:
    """Holds the lock file `path` while the block runs. Raises InfrastructureError if a living process holds it.

    The lock is the kernel's (flock), so it ends with its process; the file's text only names the holder.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise InfrastructureError(
            f"cannot open lock file `{path}`: {error.strerror}", hint="check permissions of the state folder"
        ) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip() or "another process"
            raise InfrastructureError(
                f"`{job}` already runs: {holder} holds `{path}`",
                hint="wait for it to end, or stop that process",
            ) from None
        _tell_holder(descriptor)
        yield
    finally:
        os.close(descriptor)


def _tell_holder(descriptor: int) -> None:
    started = datetime.now(UTC).isoformat(timespec="seconds")
    with suppress(OSError):  # a full disk does not affect the lock; the job's first write reports it
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()}, started {started}\n".encode(), 0)
