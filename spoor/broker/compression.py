"""Errors for compressed records whose codec is not installed.

aiokafka (the stream) and kafka-python (everything else) decompress with different packages. Both are dependencies of
Spoor, but a hand-made environment may lack them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from spoor.base.errors import InfrastructureError

_PACKAGES = {
    "aiokafka": {"lz4": "cramjam", "snappy": "cramjam", "zstd": "cramjam"},
    "kafka": {"lz4": "lz4", "snappy": "python-snappy", "zstd": "zstandard"},
}


def missing_codec(error: BaseException) -> InfrastructureError | None:
    """The error to raise instead of `error`, if a client's UnsupportedCodecError is `error` or its cause; else None."""
    for cause in _causes(error):
        if type(cause).__name__ == "UnsupportedCodecError":  # each client has its own class
            return _missing(library=type(cause).__module__.partition(".")[0], text=str(cause))
    return None


def _missing(*, library: str, text: str) -> InfrastructureError:
    found = re.search(r"\b(gzip|lz4|snappy|zstd)\b", text)
    package = _PACKAGES.get(library, {}).get(found[1]) if found else None
    if found is None or package is None:
        return InfrastructureError(
            f"records on the topic are compressed with a codec that cannot be read here: {text}",
            hint="set compression.type of the topic's producers to gzip, lz4, snappy, zstd or none",
        )
    return InfrastructureError(
        f"records on the topic are compressed with {found[1]}, and its codec `{package}` is not installed",
        hint=f"pip install {package}, then run the command again: nothing was lost",
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
