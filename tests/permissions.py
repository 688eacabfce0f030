"""Root may write anywhere; here it may not, so that tests of read-only folders hold whoever runs them."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

_VERSION_3 = 0x20080522
_CAP_DAC_OVERRIDE = 1 << 1
_libc = ctypes.CDLL(None, use_errno=True)


@contextmanager
def bound_by_permissions() -> Iterator[None]:
    """Takes from this thread the right to pass over file permissions, and gives it back (capabilities(7))."""
    header = (ctypes.c_uint32 * 2)(_VERSION_3, 0)
    before = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; twice
    _call(_libc.capget, header, before)
    bound = (ctypes.c_uint32 * 6)(*before)
    bound[0] &= ~_CAP_DAC_OVERRIDE
    _call(_libc.capset, header, bound)
    try:
        yield
    finally:
        _call(_libc.capset, header, before)


def _call(function, *arguments) -> None:
    if function(*arguments) != 0:
        raise OSError(ctypes.get_errno(), "the capabilities of this thread cannot be changed")
