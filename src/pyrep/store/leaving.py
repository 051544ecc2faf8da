"""How a tenant goes: what can still be had of it is stored, then it is forgotten."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import replace

from pyrep.errors import DatabaseError, FencedError, PyrepError, ReplicaPermanentError
from pyrep.store.entry import Entry, Leaving, ManagedTenant, tenant_row
from pyrep.store.report import SYNC, UPLOAD, complain
from pyrep.store.shared import Shared

__all__ = ["Departures"]

_log = logging.getLogger(__name__)


class Departures:
    """Lead tenants out: the close on the sync pool, uploads and the end on the upload pool.

    ``patience`` (seconds) is how long uploads are tried; ``forget`` takes a tenant that is out
    of the list away from the rest of the store.
    """

    def __init__(self, shared: Shared, forget: Callable[[Entry], None], patience: float) -> None:
        self._shared = shared
        self._forget = forget
        self._patience = patience

    def begin(self, entry: Entry, done: Callable[[ManagedTenant], None]) -> None:
        """Let a tenant go; ``done`` is called by a thread of the store when it is gone."""
        deadline = self._shared.clock.monotonic() + self._patience
        entry.leaving = Leaving(done, deadline)
        self._shared.schedule(SYNC, entry.tenant.name)

    def keep(self, name: str) -> bool:
        """Let a tenant that is leaving stay after all; False if it is gone."""
        with self._shared.lock:
            entry = self._shared.entries.get(name)
            if entry is not None:
                entry.leaving = None
            return entry is not None

    def close(self, entry: Entry, leaving: Leaving) -> None:
        """Close the database, on the sync pool."""
        tenant, shared = entry.tenant, self._shared
        if not leaving.closed:
            self._close(tenant, leaving, going=True)
            leaving.closed = True
            shared.leave(tenant.name)
            shared.schedule(UPLOAD, tenant.name, self._patience)
        shared.submit(UPLOAD, tenant.name)

    def upload(self, entry: Entry, leaving: Leaving) -> None:
        """Upload a file, or end; on the upload pool, so that no listing or upload runs on."""
        if not leaving.closed:
            return  # the sync pool has it
        tenant = entry.tenant
        late = self._shared.clock.monotonic() >= leaving.deadline
        if tenant.pending and not late and tenant.upload_next():
            self._shared.submit(UPLOAD, tenant.name)
        else:
            self._end(entry, leaving)

    def _close(self, tenant: ManagedTenant, leaving: Leaving, *, going: bool) -> None:
        """Close the database; what goes wrong where everything may be gone is said at the end."""
        try:
            tenant.close(going=going)
        except (PyrepError, OSError) as error:
            leaving.trouble = leaving.trouble or str(error)

    def upload_failed(self, entry: Entry, leaving: Leaving, error: Exception) -> None:
        """Try again until the time is over, unless that is hopeless."""
        shared, name = self._shared, entry.tenant.name
        if isinstance(error, DatabaseError):
            leaving.trouble = leaving.trouble or str(error)
        else:
            complain(shared.limiter, entry.tenant, UPLOAD, error)
        if isinstance(error, FencedError | DatabaseError | ReplicaPermanentError):
            leaving.deadline = shared.clock.monotonic()
            shared.submit(UPLOAD, name)
            return
        entry.upload_backoff = entry.upload_backoff.failed()
        left = leaving.deadline - shared.clock.monotonic()  # that is the last time, not one more
        shared.schedule(UPLOAD, name, min(left, entry.upload_backoff.delay(shared.random)))

    def _end(self, entry: Entry, leaving: Leaving) -> None:
        shared, tenant = self._shared, entry.tenant
        with shared.lock:
            if entry.leaving is not leaving:
                return  # it came back
            del shared.entries[tenant.name]
        try:
            self._finish(entry, leaving)
        finally:
            leaving.done(tenant)

    def _finish(self, entry: Entry, leaving: Leaving) -> None:
        shared, tenant = self._shared, entry.tenant
        pending = tenant.status().pending_files
        self._close(tenant, leaving, going=False)
        if pending or leaving.trouble:
            _tell(tenant, pending, leaving.trouble)
        self._forget(entry)
        row = replace(tenant_row(tenant), status="absent", error="", lag_seconds=0.0)
        shared.catalog.save_tenant(replace(row, pending_files=0, pending_bytes=0))
        if entry.park is not None:
            entry.park.answer(True, f"{tenant.name} is managed no longer")


def _tell(tenant: ManagedTenant, pending: int, trouble: str) -> None:
    """Say in one line what of a database that went is not stored."""
    extra: dict[str, object] = {"db": tenant.name, "op": "close", "pending": pending}
    if trouble:
        extra["error"] = trouble
    if not os.path.lexists(tenant.spec.state_path):
        _log.info("a database was deleted with what was staged of it", extra=extra)
        return
    if pending:
        extra["hint"] = "What is staged is uploaded if it comes back with its state directory."
    _log.warning("a database that went was not stored to its end", extra=extra)
