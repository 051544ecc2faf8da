"""Verify many replicas with a bounded pool, as far as a budget of time or bytes goes."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from pyrep.clock import Clock, SystemClock
from pyrep.errors import PyrepError
from pyrep.restore.source import in_order
from pyrep.storage.base import ReplicaClient
from pyrep.verify.chain import Verification
from pyrep.verify.replica import Known, VerifyOptions, verify_replica

__all__ = ["Budget", "VerifyItem", "VerifyResult", "verify_all"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Budget:
    """Say after how many seconds or bytes no further replica is begun (0: no such limit)."""

    seconds: float = 0.0
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class VerifyItem:
    """Name a tenant; ``connect`` opens its replica, ``known`` as :class:`VerifyOptions` has it."""

    name: str
    connect: Callable[[], ReplicaClient]
    known: Callable[[], Known] = Known


@dataclass(frozen=True, slots=True)
class VerifyResult:
    """Hold what became of one item: a verification, an error, or neither: beyond the budget."""

    item: VerifyItem
    found: Verification | None = None
    error: PyrepError | None = None


def verify_all(
    items: Sequence[VerifyItem],
    options: VerifyOptions,
    *,
    budget: Budget,
    workers: int = 0,
    on_done: Callable[[VerifyResult], None] | None = None,
    clock: Clock | None = None,
) -> list[VerifyResult]:
    """Verify every item in the given order; return one result for each.

    ``workers`` replicas are read side by side (0: one a core).  One that is begun is finished.
    ``on_done`` is called with each result, from several threads.
    """
    run = _Run(options, budget, clock or SystemClock(), on_done)
    pool = ThreadPoolExecutor(workers or len(os.sched_getaffinity(0)), "pyrep-verify")
    try:
        return [result for _, result in in_order(pool, run.verify, items, ahead=len(items) or 1)]
    except BaseException:
        options.cancel.set()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


class _Run:
    """Verify items one by one; used by several threads."""

    def __init__(
        self,
        options: VerifyOptions,
        budget: Budget,
        clock: Clock,
        on_done: Callable[[VerifyResult], None] | None,
    ) -> None:
        self._options = replace(options, on_bytes=self._count)
        self._report = options.on_bytes
        self._budget = budget
        self._clock = clock
        self._on_done = on_done
        self._until = clock.monotonic() + budget.seconds
        self._lock = threading.Lock()
        self._bytes = 0  # guarded by _lock

    def verify(self, item: VerifyItem) -> VerifyResult:
        """Verify one item and turn whatever goes wrong into its error."""
        if self._spent():
            return VerifyResult(item)
        try:
            client = item.connect()
            try:
                options = replace(self._options, known=item.known)
                result = VerifyResult(item, verify_replica(client, options))
            finally:
                client.close()
        except PyrepError as error:
            result = VerifyResult(item, error=error)
        except Exception as error:
            _log.exception("%s: verification failed unexpectedly", item.name)
            text = f"{item.name}: unexpected {type(error).__name__}: {error}"
            result = VerifyResult(item, error=PyrepError(text, hint="This is a bug; report it."))
        if self._on_done is not None:
            self._on_done(result)
        return result

    def _spent(self) -> bool:
        with self._lock:
            enough = self._budget.bytes and self._bytes >= self._budget.bytes
        late = self._budget.seconds and self._clock.monotonic() >= self._until
        return bool(enough or late or self._options.cancel.is_set())

    def _count(self, count: int) -> None:
        with self._lock:
            self._bytes += count
        self._report(count)
