"""What operators ask of a store while it runs."""

from __future__ import annotations

from collections.abc import Callable

from pyrep.store.entry import Entry, ParkRequest
from pyrep.store.report import SYNC
from pyrep.store.shared import Shared
from pyrep.store.tally import Tally, fenced_matches

__all__ = ["Answer", "Operators"]

_PARK_PATIENCE_SECONDS = 3.0

Answer = Callable[[bool, str], None]


class Operators:
    """Take commands from any thread; they run on the sync pool, in the tenant's turn."""

    def __init__(
        self, shared: Shared, wake: Callable[[str], None], relist: Callable[[str], None]
    ) -> None:
        self._shared = shared
        self._wake = wake
        self._relist = relist

    def park(self, name: str, answer: Answer) -> None:
        """Sync a database and close it now; ``answer(ok, text)`` is called when that is done."""
        entry = self._shared.find(name)
        if entry is None:
            answer(False, f"no such database: {name}")
            return
        force_at = self._shared.clock.monotonic() + _PARK_PATIENCE_SECONDS
        self._command(entry, lambda: self._begin_park(entry, ParkRequest(answer, force_at)))

    def _begin_park(self, entry: Entry, request: ParkRequest) -> None:
        tenant = entry.tenant
        if entry.park is not None:
            request.answer(False, f"{tenant.name}: is being parked already")
        elif not tenant.attached and not tenant.changed():
            request.answer(True, f"{tenant.name} is parked")
        else:
            entry.park = request
            entry.next_sync = 0.0

    def take_over(self, pattern: str, answer: Answer) -> None:
        """End the fencing of a database, or of all fenced ones that a glob matches."""
        entry = self._shared.find(pattern)
        chosen = [entry] if entry else fenced_matches(self._shared.all_entries(), pattern)
        if not chosen:
            answer(False, f"no such database, and no fenced one that matches: {pattern}")
            return
        tally = Tally(len(chosen), answer)
        for entry in chosen:
            self._command(entry, lambda entry=entry: tally.run(entry.tenant))  # type: ignore[misc]
            self._wake(entry.tenant.name)

    def list_again(self, name: str, answer: Answer) -> None:
        """List a replica, so that the catalog says what is there; ``answer`` is called after."""
        entry = self._shared.find(name)
        if entry is None:
            answer(False, f"no such database: {name}")
            return
        entry.list_answers.append(answer)
        self._relist(entry.tenant.name)

    def _command(self, entry: Entry, command: Callable[[], None]) -> None:
        entry.commands.append(command)
        self._shared.schedule(SYNC, entry.tenant.name)
