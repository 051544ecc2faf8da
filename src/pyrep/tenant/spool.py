"""How many bytes all tenants together may hold in staged files."""

from __future__ import annotations

import sys
import threading

__all__ = ["Spool"]


class Spool:
    """Count the staged bytes of every tenant against one limit, in bytes."""

    def __init__(self, limit: int = sys.maxsize) -> None:
        self.limit = limit
        self._lock = threading.Lock()
        self._held: dict[str, int] = {}  # guarded by _lock
        self._total = 0  # guarded by _lock
        self._claimed: dict[str, int] = {}  # guarded by _lock
        self._kept: dict[str, int] = {}  # guarded by _lock
        self._kept_total = 0  # guarded by _lock

    def hold(self, name: str, size: int) -> None:
        """Note that a tenant holds ``size`` bytes now."""
        with self._lock:
            self._total += size - self._held.pop(name, 0)
            if size:
                self._held[name] = size

    def claim(self, name: str, size: int) -> bool:
        """Take ``size`` bytes for what a tenant is about to write; False if they are not left.

        They stay taken until ``unclaim``, so that all tenants together never write past the limit.
        """
        with self._lock:
            if self._total + size > self.limit:
                return False
            self._total += size
            self._claimed[name] = self._claimed.get(name, 0) + size
            return True

    def unclaim(self, name: str) -> None:
        """Give back what was claimed: it is held by now, or was thrown away."""
        with self._lock:
            self._total -= self._claimed.pop(name, 0)

    def keep(self, name: str, size: int) -> None:
        """Note that a tenant keeps ``size`` bytes now that may go when room is needed."""
        with self._lock:
            self._kept_total += size - self._kept.pop(name, 0)
            if size:
                self._kept[name] = size

    @property
    def crowded(self) -> bool:
        """Return whether all that is held and kept goes beyond the limit."""
        with self._lock:
            return self._total + self._kept_total > self.limit

    @property
    def left(self) -> int:
        """Return how many bytes may still be staged."""
        with self._lock:
            return self.limit - self._total
