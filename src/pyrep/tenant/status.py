"""What a report says of a tenant."""

from __future__ import annotations

from dataclasses import dataclass

from pyrep.ids import TXID
from pyrep.tenant.position import SyncState

__all__ = ["TenantStatus", "state_word"]


@dataclass(frozen=True, slots=True)
class TenantStatus:
    """Describe a tenant for reports; ``lag_seconds`` is the age of the oldest staged file."""

    path: str
    replica: str
    state: str
    local_txid: TXID
    durable_txid: TXID
    pending_files: int
    pending_bytes: int
    lag_seconds: float
    error: str
    node_id: int


def state_word(state: SyncState, error: str, *, degraded: bool, attached: bool) -> str:
    """Return the word for a tenant's state in reports."""
    if state.fenced:
        return "fenced"
    if error:
        return "degraded" if degraded else "error"
    if attached:
        return "attached"
    return "parked" if state.txid else "new"
