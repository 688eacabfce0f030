"""Writes dead letters to their topic, each in the fullest form that the topic takes (dead_letters.py).

A topic's max.message.bytes counts the compressed batch, so a record of any size may have come in by the activity topic,
and its letter may be too large for the other. What a letter is then was known before (`most_bytes`), or the broker says
it: its answer decides, since the topic's configuration may be unreadable or change.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from aiokafka.errors import MessageSizeTooLargeError, RecordListTooLargeError

from spoor.base.errors import InfrastructureError
from spoor.streaming.pipeline.publisher import Send
from spoor.streaming.records.dead_letters import DeadLetter, encode_dead_letter, fitting_records

log = logging.getLogger(__name__)

_TOGETHER_BYTES = 32 * 1024  # letters of smaller records are encoded on the loop, and share the producer's batches
_TOO_LARGE = (MessageSizeTooLargeError, RecordListTooLargeError)


class DeadLetterWriter:
    """`send` hands a record to the producer, `in_thread` runs a call off the loop. `most_bytes`: the topic's
    max.message.bytes, as far as it is known."""

    def __init__(self, topic: str, *, send: Send, in_thread: Callable[..., Awaitable[Any]], most_bytes: int) -> None:
        self._topic = topic
        self._send = send
        self._in_thread = in_thread
        self._most_bytes = most_bytes

    async def write(self, letters: Sequence[DeadLetter]) -> None:
        """Returns when every letter is acknowledged. Raises what the producer raises, and InfrastructureError where the
        topic takes not even a reference."""
        small = [letter for letter in letters if _size(letter) <= _TOGETHER_BYTES]
        alone = [letter for letter in letters if _size(letter) > _TOGETHER_BYTES]
        failure: BaseException | None = None
        waiting = [await self._send(self._topic, *encode_dead_letter(letter)) for letter in small]
        for letter, outcome in zip(small, await asyncio.gather(*waiting, return_exceptions=True), strict=True):
            if isinstance(outcome, _TOO_LARGE):  # perhaps only the batch in which the producer put it
                alone.append(letter)
            elif isinstance(outcome, BaseException):
                failure = failure or outcome
        if failure is not None:
            raise failure
        for letter in alone:
            await self._write_alone(letter)

    async def _write_alone(self, letter: DeadLetter) -> None:
        records = fitting_records(letter, self._most_bytes)
        while record := await self._in_thread(next, records, None):  # compressing takes a while
            form, key, value = record
            try:
                await (await self._send(self._topic, key, value))
            except _TOO_LARGE:
                continue
            if form == "reference":
                log.warning(
                    "dead letter %s does not fit into %s: it refers to its record, which is kept as long as the "
                    "retention of %s keeps it",
                    letter.origin, self._topic, letter.topic,
                )  # fmt: skip
            return
        raise InfrastructureError(
            f"topic `{self._topic}` refuses dead letter {letter.origin} for its size, although it only refers to its "
            "record",
            hint=f"kafka-configs --bootstrap-server BROKER --entity-type topics --entity-name {self._topic} --alter "
            "--add-config max.message.bytes=1048588, then start the worker again: nothing was lost",
        )


def _size(letter: DeadLetter) -> int:
    return len(letter.key or b"") + len(letter.value or b"")
