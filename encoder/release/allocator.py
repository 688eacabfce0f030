"""Memory that a forward pass frees is kept for the next one, which asks for the same again.

glibc gives large blocks back to the system as soon as they are free. To get them again, zeroed page by page, is a
quarter of the time of encoding on a processor.
"""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_LARGE_BLOCK_BYTES = 32 * 2**20  # larger ones go back: what a pass holds at once must not be kept twice over
_KEPT_BYTES = 64 * 2**20  # at the end of each thread's heap


def keep_freed_memory() -> None:
    """For the whole process. Does nothing where malloc is not glibc's."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGE_BLOCK_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
