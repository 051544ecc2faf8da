"""How long to wait after a failure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

__all__ = ["Backoff"]

_MAX_DOUBLINGS = 62


@dataclass(frozen=True, slots=True)
class Backoff:
    """Double the wait with each failure in a row, up to a limit; times in seconds.

    A wait is drawn between half and the whole of it, so that many that failed together do not
    all come back together.
    """

    first: float = 1.0
    limit: float = 300.0
    failures: int = 0

    def failed(self) -> Backoff:
        """Return the value after one more failure."""
        return replace(self, failures=self.failures + 1)

    def succeeded(self) -> Backoff:
        """Return the value after a success."""
        return replace(self, failures=0) if self.failures else self

    def delay(self, random: Callable[[], float]) -> float:
        """Return the seconds to wait now, 0.0 if nothing failed; ``random`` gives [0, 1)."""
        if not self.failures:
            return 0.0
        whole = min(self.limit, self.first * 2.0 ** min(self.failures - 1, _MAX_DOUBLINGS))
        return whole * (0.5 + random() / 2)
