"""Judge streams past the spool: how far one came, and whether another would come through."""

from __future__ import annotations

from dataclasses import dataclass

from pyrep.errors import DatabaseBusyError, DatabaseError
from pyrep.tenant.capture import SpoolFullError
from pyrep.units import round_size

__all__ = ["Progress", "Trial"]

_MOST_FAILURES = 3
_PAUSE_SECONDS = 3600.0
_ROUND_BYTES = 1 << 20


@dataclass(slots=True)
class Progress:
    """Say how far one attempt came: pages and bytes of the file that is being made.

    ``total_pages`` are those of the database, ``files`` how many hold them.
    """

    total_pages: int = 0
    files: int = 1
    pages: int = 0
    size: int = 0

    def made(self, pages: int, size: int) -> None:
        """Note how many pages, in how many bytes, are made by now."""
        self.pages, self.size = pages, size

    @property
    def estimate(self) -> int:
        """Return how many bytes the database takes when compressed, as far as can be told."""
        return self.size * self.total_pages // max(1, self.pages)


class Trial:
    """Judge the attempts of one tenant; times are monotonic seconds.

    An attempt fails if R had to be let go while the network was not done.  The third in a row
    degrades the tenant; so does one that would have failed with twice the bandwidth too, and it
    is not repeated for an hour unless more room was made.
    """

    def __init__(self) -> None:
        self.failed = 0
        self._hopeless: DatabaseError | None = None
        self._capacity = 0
        self._until = 0.0

    def check(self, capacity: int, now: float) -> None:
        """Refuse an attempt that the last one proved hopeless.

        :raises SpoolFullError: nothing has changed since
        """
        if self._hopeless is not None and now < self._until and capacity <= self._capacity:
            raise SpoolFullError(self._hopeless.message, hint=self._hopeless.hint)

    def too_slow(
        self, name: str, progress: Progress, sent: int, capacity: int, now: float
    ) -> DatabaseError:
        """Return the error for an attempt of which ``sent`` bytes went through."""
        self.failed += 1
        needed = progress.estimate
        total = needed * progress.files
        hopeless = capacity + 2 * sent < total
        message = (
            f"{name}: the replica takes every page too slowly: after {round_size(sent)} of about "
            f"{round_size(total)} the WAL was past truncate-page-n, and was let go"
        )
        if self.failed < _MOST_FAILURES and not hopeless:
            return DatabaseBusyError(message, hint="It is tried again.")
        enough = -(-needed * 11 // 10 // _ROUND_BYTES) * _ROUND_BYTES
        error = SpoolFullError(
            message,
            hint=f"Set spool-limit to at least {round_size(enough)}, which holds the compressed "
            "database; or raise truncate-page-n, or the bandwidth to the replica.",
        )
        self._hopeless = error if hopeless else None
        self._capacity, self._until = capacity, now + _PAUSE_SECONDS
        return error

    def succeeded(self) -> None:
        """Forget the failures."""
        self.failed, self._hopeless = 0, None
