"""Keeps the memory that a forward pass frees for the next one, which needs the same amount.

glibc returns large freed blocks to the system at once. Getting them back, zeroed page by page, takes a quarter of the
encoding time on a CPU.
"""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_LARGE_BLOCK_BYTES = 32 * 2**20  # larger blocks are returned: keeping them could double a pass's memory
_KEPT_BYTES = 64 * 2**20  # free memory kept at the end of each thread's heap


def keep_freed_memory() -> None:
    """Applies to the whole process. Does nothing if malloc is not glibc's."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGE_BLOCK_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
