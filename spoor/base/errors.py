"""Every error that Spoor raises on purpose, by what the caller can do about it.

SpoorError
├── UsageError            exit 2  a wrong argument or setting: change it
├── InfrastructureError   exit 3  a server, disk or folder is unavailable: restore it, run again
├── ProblemsFound         exit 1  the command worked and found problems in the data
├── Declined              exit 1  confirmation declined: nothing was changed
└── DataError             exit 1  bytes, rows or files break a contract: repair or replace them
    └── EventError                one event was refused
"""

from __future__ import annotations


class SpoorError(Exception):
    """`message` says what was found and expected, `hint` what to do next."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(SpoorError):
    exit_code = 2


class InfrastructureError(SpoorError):
    exit_code = 3


class ProblemsFound(SpoorError):
    exit_code = 1


class Declined(SpoorError):
    exit_code = 1


class DataError(SpoorError):
    exit_code = 1


class EventError(DataError):
    """One event was refused. `reason` is a stable code for counters and dead letters."""

    def __init__(self, *, reason: str, field: str, found: str, expected: str) -> None:
        super().__init__(f"{field}: found {found}, expected {expected}")
        self.reason = reason
        self.field = field
        self.found = found
        self.expected = expected
