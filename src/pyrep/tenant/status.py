"""What a report says of a tenant."""

from __future__ import annotations

from dataclasses import dataclass

from pyrep.ids import TXID

__all__ = ["TenantStatus"]


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
