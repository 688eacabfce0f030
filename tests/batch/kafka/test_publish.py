"""The journal of users to be published: who holds a note, who may publish and remove it."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from spoor.base.errors import InfrastructureError
from spoor.batch.kafka.publish import Journal

TASK = """
import sys
from pathlib import Path
from spoor.batch.kafka.publish import Journal
with Journal(Path(sys.argv[1])).noted(["ann", "bo\\u00eb"]) as note:
    print("noted", flush=True)
    if sys.stdin.readline().strip() == "done":
        note.done()
print("ended", flush=True)
"""


class Published:
    """A publisher that keeps what it was asked for."""

    def __init__(self) -> None:
        self.users: list[str] = []

    def publish_users(self, user_ids: Sequence[str]) -> int:
        self.users += user_ids
        return len(user_ids)


@contextmanager
def task(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A process of its own that has noted two users, as a worker of a cluster whose driver may be dead."""
    command = [sys.executable, "-c", TASK, str(folder)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    process: Any = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stdout.readline() == "noted\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def publish_left(folder: Path) -> list[str]:
    published: Any = Published()
    Journal(folder).publish_left(published)
    return published.users


def test_a_note_is_left_alone_while_its_writer_lives_and_published_when_it_was_killed(tmp_path: Path) -> None:
    with task(tmp_path) as process:
        assert publish_left(tmp_path) == [] and len(os.listdir(tmp_path)) == 1
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert Journal(tmp_path).left
        assert publish_left(tmp_path) == ["ann", "boë"]
        assert not Journal(tmp_path).left


def test_a_task_that_outlives_its_driver_finds_its_note(tmp_path: Path) -> None:
    with task(tmp_path) as process:
        publish_left(tmp_path)
        out, _ = process.communicate("done\n")
        assert (out, process.returncode) == ("ended\n", 0)
    assert os.listdir(tmp_path) == []


def test_a_task_whose_notes_were_removed_by_hand_ends_cleanly(tmp_path: Path) -> None:
    with task(tmp_path / "notes") as process:
        for path in (tmp_path / "notes").iterdir():
            path.unlink()
        (tmp_path / "notes").rmdir()
        out, _ = process.communicate("done\n")
        assert (out, process.returncode) == ("ended\n", 0)


def test_a_note_stays_for_the_next_job_where_the_write_fails_or_there_is_no_publisher(tmp_path: Path) -> None:
    journal, published = Journal(tmp_path), Published()
    publisher: Any = published
    with pytest.raises(RuntimeError), journal.published(["ann"], publisher):
        raise RuntimeError
    with journal.published(["bob"], None):
        pass
    with journal.published(["cy"], publisher):
        assert publish_left(tmp_path) in (["ann", "bob"], ["bob", "ann"])  # not this block's, in the same process
    assert published.users == ["cy"] and os.listdir(tmp_path) == []


def test_half_a_note_of_a_killed_job_goes(tmp_path: Path) -> None:
    (tmp_path / ".0123.json").write_text('["an')
    assert Journal(tmp_path).left
    assert publish_left(tmp_path) == [] and os.listdir(tmp_path) == []


def test_a_journal_that_cannot_be_written_is_an_infrastructure_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InfrastructureError, match="cannot write"), Journal(tmp_path / "file" / "notes").noted(["ann"]):
        pass
