"""Time as a seam: wall clock in aware UTC, monotonic seconds, interruptible waits."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime
from typing import Protocol

__all__ = ["Clock", "SystemClock", "from_ms", "to_ms"]


class Clock(Protocol):
    """Tell the time and wait; tests put a clock of their own in."""

    def now(self) -> datetime:
        """Return the wall-clock time, aware and in UTC."""

    def monotonic(self) -> float:
        """Return seconds that never go backwards."""

    def wait(self, event: threading.Event, timeout: float | None) -> bool:
        """Wait for ``event`` at most ``timeout`` seconds; return whether it is set."""


class SystemClock:
    """Be the machine's clock."""

    def now(self) -> datetime:
        """Return the wall-clock time, aware and in UTC."""
        return datetime.now(UTC)

    def monotonic(self) -> float:
        """Return seconds that never go backwards, those in which the machine slept too.

        Else one that woke up would look like one whose wall clock was set.
        """
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def wait(self, event: threading.Event, timeout: float | None) -> bool:
        """Wait for ``event`` at most ``timeout`` seconds; return whether it is set."""
        return event.wait(timeout)


def to_ms(moment: datetime) -> int:
    """Return milliseconds since the epoch, rounded down (the resolution of an LTX header)."""
    return int(moment.timestamp() * 1000)


def from_ms(ms: int) -> datetime:
    """Return the aware UTC time of ``ms`` milliseconds since the epoch."""
    return datetime.fromtimestamp(ms // 1000, UTC).replace(microsecond=ms % 1000 * 1000)
