"""Give memory that was freed back to the system."""

from __future__ import annotations

import ctypes

__all__ = ["give_back"]

_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)


def give_back() -> bool:
    """Let the C library return what it holds of freed memory; return whether it can.

    SQLite's caches of a thousand databases lie between other small things, so glibc keeps most of
    that memory for itself when they are closed.
    """
    if _trim is None:  # another C library
        return False
    _trim(0)
    return True
