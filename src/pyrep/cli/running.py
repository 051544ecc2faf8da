"""What commands ask of a daemon that runs, and of the catalog it leaves."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import closing
from typing import TYPE_CHECKING, TypeVar

from pyrep.errors import DatabaseBusyError

if TYPE_CHECKING:
    from pyrep.catalog import Catalog, ProofRow, TenantRow
    from pyrep.config.expand import TenantSpec
    from pyrep.config.model import Config
    from pyrep.ltxfile import FileInfo
    from pyrep.verify import Known

__all__ = [
    "ask",
    "known_files",
    "node_id",
    "proofs",
    "refuse_managed",
    "relist",
    "rows",
    "running_pid",
    "save_proof",
]

_ABSENT = "absent"
Found = TypeVar("Found")


def running_pid(config: Config) -> int | None:
    """Return the process id of the daemon that runs with a configuration."""
    from pyrep import daemon

    return daemon.running_pid(config)


def ask(config: Config, verb: str, argument: str, timeout: float) -> str:
    """Ask the running daemon to do something; return its answer.

    :raises PyrepError: it refused, or did not answer in ``timeout`` seconds
    """
    from pyrep import daemon

    return daemon.request(config, verb, argument, timeout)


def rows(config: Config) -> list[TenantRow]:
    """Return the catalog's rows of the tenants; none if no daemon has run yet."""
    return _read(config, lambda catalog: catalog.tenants()) or []


def node_id(config: Config, tenant: TenantSpec) -> int:
    """Return the lineage that the catalog has of a tenant, 0 if none."""
    row = _read(config, lambda catalog: catalog.tenant(str(tenant.db_path)))
    return row.node_id if row else 0


def known_files(config: Config, path: str) -> Known:
    """Return what the storage confirmed of a tenant, as the catalog has it."""
    from pyrep.verify import Known

    def question(catalog: Catalog) -> Known:
        row = catalog.tenant(path)
        if row is None:
            return Known()
        files = [stored.info for stored in catalog.files(path)]
        return Known(row.durable_txid, files, awaited=not (row.durable_txid or files))

    return _read(config, question) or Known()


def proofs(config: Config) -> dict[str, ProofRow]:
    """Return the last verification of each tenant; none if no catalog is there."""
    return _read(config, lambda catalog: catalog.proofs()) or {}


def save_proof(config: Config, row: ProofRow) -> bool:
    """Remember a verification in the catalog; False if no daemon has made one yet."""
    return _write(config, lambda catalog: catalog.save_proof(row))


def relist(config: Config, path: str, listing: Iterable[FileInfo]) -> bool:
    """Make the catalog say of a tenant's files what a listing says; False if there is none.

    Only while no daemon runs: a running one knows more.
    """
    return _write(config, lambda catalog: catalog.replace_files(path, listing))


def refuse_managed(config: Config, tenant: TenantSpec, advice: str) -> None:
    """Raise ``DatabaseBusyError`` if a daemon runs with the configuration and has the tenant."""
    pid = running_pid(config)
    if pid is None:
        return
    row = _read(config, lambda catalog: catalog.tenant(str(tenant.db_path)))
    if row is not None and row.status != _ABSENT:
        raise DatabaseBusyError(
            f"{tenant.name}: the running daemon (pid {pid}) manages this database", hint=advice
        )


def _read(config: Config, question: Callable[[Catalog], Found]) -> Found | None:
    """Ask a configuration's catalog; None if there is none."""
    from pyrep import daemon
    from pyrep.catalog import Access, Catalog

    path = daemon.catalog_path(config)
    if not path.exists():
        return None
    with closing(Catalog(path, access=Access.READ)) as catalog:
        return question(catalog)


def _write(config: Config, change: Callable[[Catalog], None]) -> bool:
    """Queue a change of a configuration's catalog and write it; False if there is none."""
    from pyrep import daemon
    from pyrep.catalog import Access, Catalog

    path = daemon.catalog_path(config)
    if not path.exists():
        return False
    with closing(Catalog(path, access=Access.JOIN)) as catalog:
        change(catalog)
        catalog.flush()
    return True
