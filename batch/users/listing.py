"""Lists of users by bucket, in files: sorts more users than fit into memory into work items.

The lists are in a folder of one run of a job and are removed at its end, because users may be deleted later. Lists of a
killed job are removed by the next job of the same name, or by a forget. A cluster's task that still runs after its
driver has ended stops (`require_run`): it must neither read missing lists as no users, nor report to another run.
"""

from __future__ import annotations

import json
import shutil
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Literal, get_args

from spoor.activity.hashing import buckets_of
from spoor.base.errors import InfrastructureError
from spoor.base.files import atomic_write, writing

LISTING_USERS = 100_000  # users sorted into buckets at a time
_RUNNING = "running"
Job = Literal["export", "verify", "verify-repair"]


def list_users(
    user_ids: Iterable[str], folder: Path, *, buckets: int, chunk_users: int = LISTING_USERS
) -> dict[int, int]:
    """Writes the ids to folder/<bucket>/<chunk>.json; returns the number of ids by bucket, ascending, without empty
    buckets. Duplicate ids are listed twice."""
    found: Counter[int] = Counter()
    remaining = iter(user_ids)
    number = 0
    while chunk := list(islice(remaining, chunk_users)):
        by_bucket: dict[int, list[str]] = {}
        for user, bucket in zip(chunk, buckets_of(chunk, buckets).tolist(), strict=True):
            by_bucket.setdefault(bucket, []).append(user)
        for bucket, users in by_bucket.items():
            atomic_write(folder / f"{bucket:02d}" / f"{number:08d}.json", json.dumps(users).encode())
            found[bucket] += len(users)
        number += 1
    return dict(sorted(found.items()))


def listed_users(folder: Path, bucket: int) -> list[str]:
    """The bucket's distinct ids, sorted."""
    users: set[str] = set()
    for chunk in _chunks(folder, bucket):
        users.update(chunk)
    return sorted(users)


def _chunks(folder: Path, bucket: int) -> Iterator[list[str]]:
    for path in sorted((folder / f"{bucket:02d}").glob("[!.]*.json")):
        yield json.loads(path.read_bytes())


@contextmanager
def listing_folder(state_folder: Path, job: Job) -> Iterator[Path]:
    """A folder of this run. Removes what earlier runs left before the block, and the folder after it. The caller holds
    the job's lock. Raises InfrastructureError."""
    folder = state_folder / "jobs" / job
    _remove(folder)
    run = folder / uuid.uuid4().hex
    atomic_write(run / _RUNNING, b"")
    try:
        yield run
    finally:
        with suppress(InfrastructureError):  # the next run that removes it reports the error
            _remove(folder)


def require_run(folder: Path) -> None:
    """A task calls it before it reads lists or reports. Raises InfrastructureError if the run has ended."""
    if not (folder / _RUNNING).exists():
        raise InfrastructureError(
            f"the run that this task belongs to has ended: `{folder}` is gone",
            hint="run the command again",
        )


def remove_listings(state_folder: Path) -> None:
    """Removes the lists of killed jobs. The caller holds the locks of all these jobs. Raises InfrastructureError."""
    for job in get_args(Job):
        _remove(state_folder / "jobs" / job)


def _remove(folder: Path) -> None:
    with writing(folder):
        if folder.exists():
            shutil.rmtree(folder)
