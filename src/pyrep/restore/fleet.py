"""Restore many databases with a bounded pool; a broken one never stops the others."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from pyrep.errors import OutputExistsError, PyrepError, ShutdownInterruptedError
from pyrep.restore.execute import RestoreOptions, RestoreResult, restore
from pyrep.restore.source import in_order
from pyrep.storage.base import ReplicaClient

__all__ = ["FleetItem", "FleetResult", "restore_all"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FleetItem:
    """Name a database, its replica, and where it is to go.

    ``options`` are used instead of the common ones, but for their ``threads`` and ``cancel``.
    """

    name: str
    client: ReplicaClient
    output: Path
    options: RestoreOptions | None = None


@dataclass(frozen=True, slots=True)
class FleetResult:
    """Hold what became of one item: either a result or an error."""

    item: FleetItem
    result: RestoreResult | None = None
    error: PyrepError | None = None


def restore_all(
    items: Iterable[FleetItem],
    options: RestoreOptions | None = None,
    *,
    workers: int = 0,
    on_done: Callable[[FleetResult], None] | None = None,
) -> list[FleetResult]:
    """Restore every item; return one result for each, in the order of ``items``.

    ``workers`` databases are restored side by side (0: one a core) and share the threads of
    ``options``.  ``on_done`` is called with each result as it is there, in any order and from
    several threads.  No error of an item is raised; setting ``options.cancel`` ends those under
    way and refuses the rest, each with its own error.
    """
    options = options or RestoreOptions()
    cores = len(os.sched_getaffinity(0))
    workers = workers or cores
    threads = max(1, (options.threads or cores) // workers)
    run = _Run(replace(options, threads=threads), on_done)
    pool = ThreadPoolExecutor(workers, "pyrep-restore")
    try:
        work = list(_unique(items))
        return [result for _, result in in_order(pool, run.restore, work, ahead=len(work))]
    except BaseException:
        options.cancel.set()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _unique(items: Iterable[FleetItem]) -> Iterable[tuple[FleetItem, str]]:
    """Add to each item the name of an earlier one with the same output, else nothing."""
    seen: dict[str, str] = {}
    for item in items:
        place = os.path.join(os.path.realpath(item.output.parent), item.output.name)
        yield item, seen.get(place, "")
        seen.setdefault(place, item.name)


@dataclass(frozen=True, slots=True)
class _Run:
    """Restore items one by one; used by several threads."""

    options: RestoreOptions
    on_done: Callable[[FleetResult], None] | None

    def restore(self, work: tuple[FleetItem, str]) -> FleetResult:
        """Restore one item and turn whatever goes wrong into its error."""
        item, earlier = work
        try:
            result = FleetResult(item, result=self._restore(item, earlier))
        except PyrepError as error:
            result = FleetResult(item, error=error)
        except Exception as error:
            _log.exception("%s: restore failed unexpectedly", item.name)
            text = f"{item.name}: unexpected {type(error).__name__}: {error}"
            result = FleetResult(item, error=PyrepError(text, hint="This is a bug; report it."))
        if self.on_done is not None:
            self.on_done(result)
        return result

    def _restore(self, item: FleetItem, earlier: str) -> RestoreResult:
        if self.options.cancel.is_set():
            raise ShutdownInterruptedError(f"{item.name}: not begun before the interruption")
        if earlier:
            raise OutputExistsError(
                f"{item.output}: {item.name} and {earlier} would be restored to the same place",
                hint="Give each database its own output path.",
            )
        options = item.options or self.options
        options = replace(options, threads=self.options.threads, cancel=self.options.cancel)
        return restore(item.client, item.output, options)
