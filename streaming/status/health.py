"""Whether a worker is alive and ready, from what its loop saw at its last look (streaming/worker.py looks).

Alive: no record of its partitions has waited for `stall_seconds` while the committed position stood, the broker has
answered within that time, and the loop runs. What waits counts from the first look that sees it: how long nothing came
before does not matter. The same rule ends the worker (`stall`) and answers /healthz (`not_alive`).
Ready: alive, partitions are assigned, and broker and store answered when they were last asked. A worker beyond the
number of partitions is assigned none, and ready: it stands by. A worker that was told to pause is alive and ready: a
restart would change nothing, and it does what it is to do.

The loop writes, threads that serve HTTP read: every change replaces a whole value, so neither waits for the other.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

SERVERS = ("broker", "store")


@dataclass(frozen=True)
class Place:
    """Where one partition stood, as the worker has committed it."""

    position: int  # offset of the next record to be handled
    end: int  # offset after the last record that may be read: where an open transaction begins, with read_committed
    moved_at: float  # clock time at which the position last moved, or stood at the end, or records began to wait there


class Health:
    """`clock`: seconds, monotonic."""

    def __init__(self, stall_seconds: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._stall_seconds = stall_seconds
        self._clock = clock
        self.paused = False  # by order: positions stand though records wait
        self._assigned = False
        self._looked_at: float | None = None  # None: the worker has not joined its group yet
        self._places: Mapping[int, Place] = {}
        self._problems: Mapping[str, str] = dict.fromkeys(SERVERS, "has not been asked yet")
        self._broker_answered_at: float | None = None  # or, before its first answer, the worker joined
        self._failure = ""

    @property
    def joined(self) -> bool:
        """Whether the group has given this worker its partitions at least once."""
        return self._looked_at is not None

    def assigned(self, partitions: Iterable[int]) -> None:
        """The group has given these partitions to this worker, perhaps none; what was known of others goes."""
        kept = set(partitions)
        self._places = {partition: place for partition, place in self._places.items() if partition in kept}
        self._looked_at = self._clock()
        self._broker_answered_at = self._broker_answered_at or self._looked_at
        self._assigned = True

    def revoked(self) -> None:
        """The group is about to share the partitions anew."""
        self._assigned = False

    def looked(self) -> None:
        """The worker's loop runs."""
        self._looked_at = self._clock()

    def positions(self, positions: Mapping[int, int], ends: Mapping[int, int]) -> None:
        """Both by partition, for every assigned one."""
        now, before = self._clock(), self._places
        self._places = {
            partition: Place(
                position,
                ends[partition],
                now if self.paused else _moved_at(before.get(partition), position, ends[partition], now),
            )
            for partition, position in positions.items()
        }

    def answered(self, server: str) -> None:
        self._problems = {**self._problems, server: ""}
        if server == "broker":
            self._broker_answered_at = self._clock()

    def silent(self, server: str, problem: str) -> None:
        """`problem` continues the server's name: `does not answer: …`."""
        self._problems = {**self._problems, server: problem}

    def failed(self, error: BaseException) -> None:
        """The worker is stopping because of this."""
        self._failure = f"the worker stops: {type(error).__name__}"

    def lag(self) -> dict[int, int]:
        """Records that wait, by partition."""
        return {partition: max(0, place.end - place.position) for partition, place in self._places.items()}

    def not_alive(self) -> list[str]:
        """Why an orchestrator should restart this worker; empty while it is alive. A worker that is still starting is
        alive: what it waits for has deadlines of its own."""
        if self._failure:
            return [self._failure]
        if self._looked_at is None:
            return []
        now = self._clock()
        problems = [
            f"partition {partition} has stood at offset {place.position} for {now - place.moved_at:.0f} s, "
            f"{place.end - place.position} records wait"
            for partition, place in self._stalled(now).items()
        ]
        if silence := self._silence(now):
            problems.append(f"the broker has not answered for {silence:.0f} s")
        if now - self._looked_at >= self._stall_seconds:
            problems.append(f"the worker's loop has not run for {now - self._looked_at:.0f} s")
        return problems

    def stall(self) -> str:
        """Why the worker should end itself; empty while it need not. Every reason is one of `not_alive`, too."""
        now = self._clock()
        if self._silence(now):
            return "the broker does not answer"
        return "events wait" if self._stalled(now) else ""

    def not_ready(self) -> list[str]:
        """Why this worker does not do its work now; empty while it does."""
        problems = self.not_alive()
        if not self._assigned:
            problems.append("partitions are not assigned yet")
        return problems + [f"the {server} {problem}" for server, problem in self._problems.items() if problem]

    def _stalled(self, now: float) -> dict[int, Place]:
        """Partitions with a record that has waited for too long."""
        return {
            partition: place
            for partition, place in sorted(self._places.items())
            if place.position < place.end and now - place.moved_at >= self._stall_seconds
        }

    def _silence(self, now: float) -> float:
        """Seconds since the broker's last answer, if it did not answer the last question and they are too many."""
        since = self._broker_answered_at
        if since is None or not self._problems["broker"] or now - since < self._stall_seconds:
            return 0.0
        return now - since


def _moved_at(before: Place | None, position: int, end: int, now: float) -> float:
    if before is None or before.position != position or position >= end or before.position >= before.end:
        return now
    return before.moved_at
