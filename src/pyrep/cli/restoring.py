"""What restoring one database and many have in common."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from pyrep.cli.output import Terminated
from pyrep.cli.running import refuse_managed
from pyrep.clock import to_ms

if TYPE_CHECKING:
    from pyrep.config.expand import TenantSpec
    from pyrep.config.model import Config
    from pyrep.restore.execute import Progress, RestoreOptions, RestoreResult
    from pyrep.restore.plan import Plan
    from pyrep.storage.registry import ReplicaSpec

_ADVICE = "Stop the daemon, restore, and start it again; or restore elsewhere with -o."

__all__ = [
    "Job",
    "Wanted",
    "describe",
    "interruptible",
    "options",
    "plan_document",
    "result_document",
    "write_state",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Hold the flags and operands of ``pyrep restore``."""

    config_path: str | None = None
    no_expand_env: bool = False
    output: str | None = None
    txid: int | None = None
    timestamp: datetime | None = None
    every: bool = False
    if_db_not_exists: bool = False
    if_replica_exists: bool = False
    force: bool = False
    dry_run: bool = False
    as_json: bool = False
    integrity_check: str = "none"
    parallelism: int | None = None
    words: tuple[str, ...] = ()

    @property
    def timestamp_ms(self) -> int | None:
        """Return the wanted time in milliseconds since the epoch."""
        return to_ms(self.timestamp) if self.timestamp else None


@dataclass(frozen=True, slots=True)
class Job:
    """Say what is to be restored where.

    ``managers`` are pairs of a configuration and a tenant of it whose database is at
    ``output``; a daemon that runs with such a configuration forbids the restore.  ``own`` is
    the tenant whose replica is restored to its own place: its state is written.
    """

    source: str
    replica: ReplicaSpec
    output: Path
    managers: tuple[tuple[Config, TenantSpec], ...] = ()
    own: TenantSpec | None = None
    cancel: threading.Event = field(default_factory=threading.Event)

    def check(self) -> None:
        """Raise ``DatabaseBusyError`` if a running daemon manages the output path."""
        for config, tenant in self.managers:
            refuse_managed(config, tenant, _ADVICE)


def options(
    wanted: Wanted, job: Job, progress: Callable[[Progress], None] | None = None
) -> RestoreOptions:
    """Return how a job is done; whether a daemon manages the place is asked again at its end."""
    from pyrep.restore.execute import RestoreOptions

    plain = RestoreOptions(
        txid=wanted.txid,
        timestamp_ms=wanted.timestamp_ms,
        force=wanted.force,
        integrity_check=wanted.integrity_check,
        threads=wanted.parallelism or 0,
        progress=progress,
        cancel=job.cancel,
    )

    def guard(path: Path) -> None:
        job.check()
        plain.guard(path)

    return replace(plain, guard=guard)


def write_state(job: Job, result: RestoreResult) -> None:
    """Let the daemon go on from the restored state, if the tenant has its database back."""
    if job.own is None:
        return
    from pyrep.restore.state import write_tenant_state

    write_tenant_state(job.own, result)


def describe(source: str, result: RestoreResult) -> str:
    """Return a sentence about a restored database."""
    from pyrep.restore.plan import time_text
    from pyrep.units import round_size

    proof = ", database checksum proven" if result.proven else ""
    return (
        f"restored {result.output} from {source}: txid {result.txid} of "
        f"{time_text(result.timestamp_ms)}, {round_size(result.size)} in "
        f"{result.seconds:.1f}s{proof}"
    )


def result_document(result: RestoreResult, scheme: str) -> dict[str, object]:
    """Return a restored database as JSON has it."""
    from pyrep.restore.plan import time_text

    return {
        "db_path": str(result.output),
        "replica": scheme,
        "txid": str(result.txid),
        "timestamp": time_text(result.timestamp_ms),
        "size": result.size,
        "proven": result.proven,
        "duration_ms": int(result.seconds * 1000),
        "integrity_check": result.integrity_check,
    }


def plan_document(job: Job, plan: Plan, scheme: str) -> dict[str, object]:
    """Return a plan as JSON has it."""
    from pyrep.cli.ltx import file_document

    return {
        "source": job.source,
        "target_path": str(job.output),
        "replica": scheme,
        "min_txid": str(plan.min_txid),
        "max_txid": str(plan.max_txid),
        "files": [file_document(info) for info in plan.files],
    }


@contextlib.contextmanager
def interruptible(cancel: threading.Event) -> Iterator[None]:
    """Let SIGTERM end the block as SIGINT does, so that temporary files are removed."""

    def stop(_signal: int, _frame: object) -> None:
        cancel.set()
        raise Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except BaseException:
        cancel.set()
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
