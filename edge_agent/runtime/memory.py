"""Memory that a closed network leaves with the allocator goes back to the system.

A closed session frees its weights, but the C library keeps freed pages for later.  On a device that
swaps versions, "later" is the next version's peak on top of them.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache


def give_back() -> bool:
    """Return what the allocator holds unused.  To be called after a session was closed.

    Takes milliseconds without the interpreter's lock, so call it on a worker thread.  No garbage
    collection is forced: a session is in no reference cycle, so closing it frees it.

    Returns:
        Whether anything was returned; False where the C library cannot (no glibc).
    """
    trim = _malloc_trim()
    return trim is not None and trim(0) == 1


@cache
def _malloc_trim() -> Callable[[int], int] | None:
    """glibc's `malloc_trim`, or None.  Source: malloc_trim(3)."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError, TypeError):  # TypeError: Windows has no library None
        return None
    trim.argtypes = [ctypes.c_size_t]
    trim.restype = ctypes.c_int
    call: Callable[[int], int] = trim
    return call
