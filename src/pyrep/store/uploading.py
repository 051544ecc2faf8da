"""What the upload pool does with a tenant: list its replica once, upload what is staged."""

from __future__ import annotations

from pyrep.errors import FencedError
from pyrep.store.entry import Entry
from pyrep.store.leaving import Departures
from pyrep.store.report import LIST, STREAM, SYNC, UPLOAD, complain, recovered
from pyrep.store.shared import Shared

__all__ = ["UploadWork"]

_FILES_PER_TURN = 16


class UploadWork:
    """Give a tenant its turn; the pool lets one thread at a time have the same tenant."""

    def __init__(self, shared: Shared, departures: Departures) -> None:
        self._shared = shared
        self._departures = departures

    def run(self, name: str) -> None:
        """List a tenant's replica if that is due, and upload what is staged."""
        entry = self._shared.entries.get(name)
        if entry is None:
            return
        tenant = entry.tenant
        if entry.leaving is not None and self._shared.drain is None:
            self._departures.upload(entry, entry.leaving)
            return
        if tenant.needs_survey or entry.wants_survey:
            tenant.survey()
            entry.wants_survey = False
            _answer(entry, True, f"{name}: its replica was listed, the catalog says what is there")
            self._succeeded(entry, LIST)
            self._shared.submit(SYNC, name)  # it waited for this
        for _ in range(_FILES_PER_TURN):
            if not tenant.upload_next():
                break
            self._succeeded(entry, UPLOAD)
            if self._shared.waiting.is_covered(name):
                self._shared.waiting.settle(name, tenant.status().durable_txid)
        if tenant.pending:
            self._shared.submit(UPLOAD, name)  # after the others
            return
        if tenant.wants_stream:
            self._shared.submit(STREAM, name)  # it may have waited for this
        if entry.held_since:
            entry.next_sync = 0.0
            self._shared.submit(SYNC, name)
        self._shared.record(entry)
        if self._shared.drain is not None and self._shared.drain.uploaded(entry):
            self._shared.submit(SYNC, name)

    def _succeeded(self, entry: Entry, op: str) -> None:
        entry.upload_backoff = entry.upload_backoff.succeeded()
        recovered(self._shared.limiter, entry.tenant, op)

    def failed(self, name: str, error: Exception) -> None:
        """Say what is wrong and when it is tried again."""
        shared = self._shared
        entry = shared.entries.get(name)
        if entry is None:
            return
        if entry.leaving is not None and shared.drain is None:
            self._departures.upload_failed(entry, entry.leaving, error)
            return
        entry.error = str(error)
        op = LIST if entry.tenant.needs_survey or entry.wants_survey else UPLOAD
        if op == LIST:
            _answer(entry, False, str(error))
        complain(shared.limiter, entry.tenant, op, error)
        shared.record(entry)
        if entry.tenant.needs_survey and entry.park is not None:
            park, entry.park = entry.park, None
            park.answer(False, str(error))
        retry = 0.0
        if shared.drain is not None:
            retry = shared.drain.upload_failed(entry, error)
        if isinstance(error, FencedError):
            shared.leave(name)  # only take_over ends it
            shared.waiting.fail(name, error)
            return
        entry.upload_backoff = entry.upload_backoff.failed()
        delay = retry if shared.drain else entry.upload_backoff.delay(shared.random)
        if delay >= 0:
            shared.schedule(UPLOAD, name, delay)


def _answer(entry: Entry, ok: bool, text: str) -> None:
    """Tell whoever asked for a listing what came of it."""
    while entry.list_answers:
        entry.list_answers.pop()(ok, text)
