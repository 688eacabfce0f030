"""First checks of user input: text as bytes, and the paths of files and folders.

Text is UTF-8, with or without the byte order mark that Windows' editors write. A path is local: a URL would become a
folder called `s3:` in the working folder, and be lost with the container.
"""

from __future__ import annotations

import re
from pathlib import Path

from spoor.base.errors import UsageError
from spoor.base.files import read_at_most

_MARKS = {  # UTF-32 first: its little-endian mark begins with that of UTF-16
    b"\xff\xfe\0\0": "UTF-32",
    b"\0\0\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
_URL = re.compile(r"\s*([a-z][a-z0-9+.-]+):/+(.*)", re.IGNORECASE | re.DOTALL)  # pathlib makes s3:/ of s3://


def decode_text(data: bytes) -> str:
    """UTF-8 without its byte order mark. Raises ValueError that names another encoding, or the first bad byte and its
    line."""
    if name := foreign_encoding(data):
        raise ValueError(f"it is {name}, expected UTF-8: save it as UTF-8")
    if b"\0" in data:
        raise ValueError("it has zero bytes, as UTF-16 without a byte order mark does: save it as UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(f"it is not UTF-8: line {line} has the byte 0x{data[error.start]:02x}") from None


def foreign_encoding(start: bytes) -> str | None:
    """The encoding in the byte order mark of a text, if it is UTF-16 or UTF-32; else None."""
    return next((name for mark, name in _MARKS.items() if start.startswith(mark)), None)


def read_text(path: Path, most_bytes: int) -> str:
    """The whole file. Raises ValueError (too large, not UTF-8) and OSError."""
    return decode_text(read_at_most(path, most_bytes))


def refuse_url(text: str, what: str) -> None:
    """Raises UsageError if `text` is a URL. `what`: the expected file or folder, for the message."""
    if found := _URL.match(text):
        scheme, rest = found[1].lower(), found[2]
        local = f"write the path without `{scheme}:`: /{rest.removeprefix('localhost/')}"
        raise UsageError(
            f"{what}: `{text}` is a URL, expected a local path",
            hint=local
            if scheme == "file"
            else f"mount what `{scheme}:` names into the file system, and give that path",
        )
