"""What the store knows of each tenant."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from pyrep.catalog import TenantRow
from pyrep.config.expand import TenantSpec
from pyrep.ltxfile import FileInfo
from pyrep.schedule.backoff import Backoff
from pyrep.tenant.status import TenantStatus

__all__ = ["CALM", "Entry", "Final", "Leaving", "ManagedTenant", "ParkRequest", "tenant_row"]

CALM = Backoff()


class ManagedTenant(Protocol):
    """Be one database's life, as the store drives it."""

    spec: TenantSpec
    name: str

    @property
    def attached(self) -> bool:
        """Return whether connections are held."""

    @property
    def deleted(self) -> bool:
        """Return whether the database's file is gone."""

    @property
    def pending(self) -> bool:
        """Return whether staged files wait for their upload."""

    @property
    def needs_survey(self) -> bool:
        """Return whether the replica must be listed first."""

    @property
    def caught_up(self) -> bool:
        """Return whether the last sync staged all that had been committed when it began."""

    @property
    def waits_to_read(self) -> bool:
        """Return whether the whole database has to be read and others are read first."""

    @property
    def wants_stream(self) -> bool:
        """Return whether something waits for a call of ``stream``."""

    @property
    def streaming(self) -> bool:
        """Return whether all pages have to go, or are going, past the spool."""

    def state_json(self) -> str:
        """Return the position as text."""

    def changed(self) -> bool:
        """Return whether a parked tenant must wake."""

    def survey(self) -> None:
        """List the replica."""

    def sync(self) -> bool:
        """Stage what was committed."""

    def upload_next(self) -> bool:
        """Upload the oldest staged file; return False if there is none."""

    def stream(self) -> bool:
        """Upload what the spool cannot hold while it is made; return False if nothing is."""

    def idle_seconds(self) -> float:
        """Return the seconds since the last change."""

    def idle_limit(self) -> float:
        """Return after how many idle seconds the tenant is to be parked."""

    def park(self, *, force: bool = False) -> bool:
        """Close the connections; return False if it is not possible now."""

    def status(self) -> TenantStatus:
        """Return what is known."""

    def close(self, *, going: bool = False) -> None:
        """Park and save; ``going``: stage what can still be had of a database that went."""

    def take_over(self) -> None:
        """End the fencing."""

    def snapshot(self) -> bool:
        """Sync and stage a snapshot; return False if there is nothing to take."""

    def compact(self, level: int, files: Sequence[FileInfo]) -> FileInfo | None:
        """Store what a level lacks of the one below; return the file, None if it lacks nothing."""

    def listing(self) -> list[FileInfo]:
        """List the replica."""

    def delete(self, files: Sequence[FileInfo]) -> None:
        """Delete files from the replica."""

    def heal(self, cause: str) -> None:
        """Ship all pages next, because the chain of files on the replica is broken."""


class Final(Enum):
    """Say how far a tenant is on its way to the stop."""

    RUNNING = "running"
    SYNC = "sync"
    ROOM = "room"  # what is staged is uploaded, so that the last sync finds room
    UPLOAD = "upload"
    DONE = "done"
    FAILED = "failed"  # something of it is not on the replica
    BROKEN = "broken"  # the database itself cannot be read; nothing waits


@dataclass(slots=True)
class ParkRequest:
    """Hold a wish to park now; after ``force_at`` (monotonic) also without a fingerprint."""

    answer: Callable[[bool, str], None]
    force_at: float


@dataclass(slots=True)
class Leaving:
    """Say that a tenant goes: whom to tell, and until when (monotonic) uploads are tried."""

    done: Callable[[ManagedTenant], None]
    deadline: float
    closed: bool = False  # sync pool
    trouble: str = ""  # what kept its last changes from being stored


@dataclass(slots=True)
class Entry:
    """Hold a tenant and when it is to be looked at; times are monotonic seconds.

    The sync pool and the upload pool run a tenant once at a time each; what only one of them
    writes needs no lock.
    """

    tenant: ManagedTenant
    interval: float
    sync_backoff: Backoff = CALM  # sync pool
    upload_backoff: Backoff = CALM  # upload pool
    next_sync: float = 0.0  # sync pool
    may_stage_at: float = 0.0  # sync pool: one interval after what was staged last
    held_since: float = 0.0  # sync pool: what is to be staged waits for uploads; 0.0: it does not
    eager_until: float = 0.0  # until then a sync that found nothing is soon followed by another
    armed: bool = False  # attached and quiet: the watcher tells of the next change
    recorded_at: float = float("-inf")
    park: ParkRequest | None = None
    leaving: Leaving | None = None
    wants_snapshot: bool = False
    wants_survey: bool = False  # though there was one in this run
    list_answers: list[Callable[[bool, str], None]] = field(default_factory=list)
    commands: list[Callable[[], None]] = field(default_factory=list)
    final: Final = Final.RUNNING
    error: str = ""


def tenant_row(tenant: ManagedTenant) -> TenantRow:
    """Return a tenant's row for the catalog, with its position while it is parked."""
    status = tenant.status()
    return TenantRow(
        path=status.path,
        replica=status.replica,
        node_id=status.node_id,
        state="" if tenant.attached else tenant.state_json(),
        status=status.state,
        local_txid=status.local_txid,
        durable_txid=status.durable_txid,
        pending_files=status.pending_files,
        pending_bytes=status.pending_bytes,
        lag_seconds=status.lag_seconds,
        error=status.error,
    )
