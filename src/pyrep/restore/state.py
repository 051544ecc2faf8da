"""Write the state of a tenant whose database was just restored to its configured path."""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterator

from pyrep.config.expand import TenantSpec
from pyrep.ids import TXID
from pyrep.restore.execute import RestoreResult
from pyrep.sqlite import page_crcs
from pyrep.tenant.pages import WINDOW_PAGES, PageTable
from pyrep.tenant.position import SyncState, boot_id, new_node_id
from pyrep.tenant.statedir import StateDir

__all__ = ["write_tenant_state"]


def write_tenant_state(spec: TenantSpec, result: RestoreResult) -> None:
    """Let the daemon go on with an increment after the restored TXID.

    What was staged before is deleted: it belongs to the database that was replaced.  The
    lineage is that of the restored files; where they are Litestream's the tenant keeps its own,
    and its next file holds all pages.

    :raises DatabaseBusyError: a pyrep process works with the database
    :raises DatabaseError: the state directory cannot be written
    :raises OSError: the same, from the file system
    """
    folder = StateDir(spec.state_path)
    like = os.stat(spec.db_path, follow_symlinks=False)
    folder.create(like)
    folder.own()
    try:
        _write(spec, result, folder, like)
    finally:
        folder.disown()


def _write(spec: TenantSpec, result: RestoreResult, folder: StateDir, like: os.stat_result) -> None:
    before = folder.load()
    folder.remove()
    proven = bool(result.proven and result.node_id)
    txid = result.txid if result.node_id else TXID(0)
    state = SyncState(
        result.node_id or (before.node_id if before else new_node_id()),
        txid=txid,
        durable_txid=txid,
        page_size=result.page_size,
        commit=result.commit,
        db_checksum=result.database_checksum if proven else 0,
        timestamp_ms=result.timestamp_ms,
        boot_id=boot_id(),
        converted=before.converted if before else False,
    )
    if proven:
        table = PageTable(result.page_size, result.commit, result.txid, result.database_checksum)
        with folder.base() as base:
            table.write(base, _windows(spec, result), like)
    folder.save(state, like, durable=True)


def _windows(spec: TenantSpec, result: RestoreResult) -> Iterator[array[int]]:
    for first in range(1, result.commit + 1, WINDOW_PAGES):
        count = min(WINDOW_PAGES, result.commit + 1 - first)
        yield page_crcs(spec.db_path, result.page_size, first, count)
