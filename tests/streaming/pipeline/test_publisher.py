"""Publication ends with the store's rows as the last ones, whoever writes meanwhile."""

import asyncio
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from spoor.base.errors import InfrastructureError
from spoor.store.rows import EmbeddingRow, Version, embedding_row_from_record
from spoor.streaming.pipeline.publisher import Publisher

RELEASES = ("base-1", "base-2")


def row(user: str, revision: int, release: str = "base-1") -> EmbeddingRow:
    vector = np.array([1, 0], np.float32)
    return EmbeddingRow(user, vector, revision, 1, 10, 20, 30, release)


class Store:
    """Rows in memory; `between` is called before each read, as another worker that writes meanwhile."""

    def __init__(self, *rows: EmbeddingRow, between: Callable[["Store"], None] = lambda store: None) -> None:
        self.rows = {(r.model_version, r.user_id): r for r in rows}
        self.between = between

    def put(self, row: EmbeddingRow) -> None:
        self.rows[row.model_version, row.user_id] = row

    def read_versions(self, user_ids: Sequence[str], releases: Sequence[str]) -> list[dict[str, Version | None]]:
        self.between(self)
        return [{release: self._version(release, user) for release in releases} for user in user_ids]

    def read_embeddings(self, release: str, user_ids: Sequence[str]) -> list[EmbeddingRow | None]:
        return [self.rows.get((release, user)) for user in user_ids]

    def _version(self, release: str, user: str) -> Version | None:
        found = self.rows.get((release, user))
        return None if found is None else (found.revision, found.computed_at_ms)


class Topic:
    """Collects what is sent; acknowledges when asked to wait, or fails."""

    def __init__(self, failure: Exception | None = None) -> None:
        self.sent: list[tuple[str, str, int | None]] = []
        self.failure = failure
        self.unanswered = 0

    async def send(self, topic: str, key: bytes, value: bytes | None):
        found = None if value is None else embedding_row_from_record(value)
        assert found is None or found.user_id.encode() == key
        self.sent.append((topic, key.decode(), None if found is None else found.revision))
        self.unanswered += 1
        return self._acknowledge()

    async def _acknowledge(self) -> None:
        self.unanswered -= 1
        if self.failure is not None:
            raise self.failure

    @property
    def last(self) -> dict[tuple[str, str], int | None]:
        return {(topic, user): revision for topic, user, revision in self.sent}


def publish(
    rows: dict[str, list[EmbeddingRow]], store: Store, topic: Topic, *, coming: frozenset[str] = frozenset()
) -> int:
    async def in_thread(function, *args):
        assert topic.unanswered == 0, "read before the publication was acknowledged"
        return await asyncio.to_thread(function, *args)

    topics = {release: f"out.{release}" for release in RELEASES}
    publisher = Publisher(topics, send=topic.send, reads=store, in_thread=in_thread, coming=lambda: coming)
    return asyncio.run(publisher.publish(rows))


def test_every_row_goes_to_the_topic_of_its_release_once():
    rows = {"base-1": [row("a", 1), row("b", 4)], "base-2": [row("a", 1, "base-2")]}
    topic = Topic()
    assert publish(rows, Store(*rows["base-1"], *rows["base-2"]), topic) == 0
    assert sorted(topic.sent) == [("out.base-1", "a", 1), ("out.base-1", "b", 4), ("out.base-2", "a", 1)]


@pytest.mark.parametrize("rows", [{}, {"base-1": []}])
def test_nothing_to_publish_is_nothing_sent(rows):
    topic = Topic()
    assert publish(rows, Store(), topic) == 0
    assert topic.sent == []


def test_who_moved_on_meanwhile_is_published_again_with_the_stored_row():
    topic = Topic()
    store = Store(row("a", 2), row("b", 1))
    assert publish({"base-1": [row("a", 1), row("b", 1)]}, store, topic) == 1
    assert topic.last == {("out.base-1", "a"): 2, ("out.base-1", "b"): 1}


def test_who_comes_with_a_later_batch_of_this_worker_is_left_to_it_unless_the_row_is_gone():
    topic = Topic()
    store = Store(row("a", 2), row("b", 2))
    rows = {"base-1": [row("a", 1), row("b", 1), row("gone", 1)]}
    assert publish(rows, store, topic, coming=frozenset(["a", "gone"])) == 2
    assert topic.last == {("out.base-1", "a"): 1, ("out.base-1", "b"): 2, ("out.base-1", "gone"): None}


def test_publication_goes_on_until_nobody_moves():
    def write(store: Store) -> None:
        if store.rows["base-1", "a"].revision < 4:
            store.put(row("a", store.rows["base-1", "a"].revision + 1))

    topic = Topic()
    assert publish({"base-1": [row("a", 1)]}, Store(row("a", 1), between=write), topic) == 3
    assert topic.last == {("out.base-1", "a"): 4}


def test_a_user_that_never_rests_is_an_error_and_not_an_older_row_at_the_end_of_the_topic():
    topic = Topic()
    store = Store(row("a", 1), between=lambda s: s.put(row("a", s.rows["base-1", "a"].revision + 1)))
    with pytest.raises(InfrastructureError, match="user 'a' was changed by others 100 times"):
        publish({"base-1": [row("a", 1)]}, store, topic)


def test_a_failed_acknowledgement_is_raised_after_all_were_answered():
    topic = Topic(failure=ConnectionError("gone"))
    with pytest.raises(ConnectionError, match="gone"):
        publish({"base-1": [row("a", 1), row("b", 1)]}, Store(), topic)
    assert topic.unanswered == 0


def test_a_user_that_was_forgotten_meanwhile_ends_with_a_record_without_value():
    topic = Topic()
    assert publish({"base-1": [row("a", 1)]}, Store(), topic) == 1
    assert topic.sent == [("out.base-1", "a", 1), ("out.base-1", "a", None)]


def test_a_forgotten_user_that_comes_back_meanwhile_ends_with_the_new_row():
    def come_back(store: Store) -> None:
        if len(topic.sent) == 2:
            store.put(row("a", 3))

    topic = Topic()
    assert publish({"base-1": [row("a", 1)]}, Store(between=come_back), topic) == 2
    assert [revision for _, _, revision in topic.sent] == [1, None, 3]
