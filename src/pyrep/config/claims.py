"""Who owns which file, replica path and state directory: no two tenants share one."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Hashable, Iterable
from pathlib import Path
from urllib.parse import unquote_to_bytes

from pyrep.config.expand import Problem, TenantSpec, describe_replica, two_owners
from pyrep.config.model import SecretURL
from pyrep.errors import ConfigError
from pyrep.storage.registry import ReplicaSpec, parse_url

__all__ = ["Claims", "Inode", "claim_all", "replica_identity"]

Inode = tuple[int, int]
_ENDPOINT_KEYS = ("account-name", "bucket", "endpoint", "host", "webdav-url")


class Claims:
    """Hold what the tenants own; the first to claim something keeps it.

    Not safe for several threads: the thread that registers tenants owns it.
    """

    def __init__(self) -> None:
        self._owners: dict[tuple[Hashable, ...], TenantSpec] = {}
        self._things: dict[Path, tuple[tuple[Hashable, ...], ...]] = {}

    def owner(self, db_path: Path) -> TenantSpec | None:
        """Return the tenant that owns a database file."""
        return self._owners.get(("file", str(db_path)))

    def add(
        self,
        tenant: TenantSpec,
        inode: Inode | None = None,
        *,
        resolve: Callable[[str], str] = os.path.realpath,
    ) -> None:
        """Claim a tenant's file, inode (device and number), replica path and state directory.

        :raises ConfigError: another tenant has one of them; nothing is claimed then
        """
        replica = replica_identity(tenant.replica, resolve)
        things = _things(tenant, inode, replica, resolve)
        for thing in things:
            if thing in self._owners:
                raise _conflict(thing, self._owners[thing], tenant)
        self._check_overlap(tenant, replica)
        self._things[tenant.db_path] = tuple(things)
        self._owners |= dict.fromkeys(things, tenant)

    def rivals(
        self,
        tenant: TenantSpec,
        inode: Inode | None,
        *,
        resolve: Callable[[str], str] = os.path.realpath,
    ) -> list[TenantSpec]:
        """Return the other tenants that have what a tenant is about to claim."""
        replica = replica_identity(tenant.replica, resolve)
        things = _things(tenant, inode, replica, resolve)
        found = {id(owner): owner for owner in map(self._owners.get, things) if owner is not None}
        return list(found.values())

    def tenants(self) -> list[TenantSpec]:
        """Return all tenants that own something."""
        return [self._owners[("file", str(path))] for path in self._things]

    def has_inode(self, tenant: TenantSpec, inode: Inode) -> bool:
        """Return whether a tenant claimed this inode."""
        return ("inode", *inode) in self._things[tenant.db_path]

    def inode_owner(self, inode: Inode) -> TenantSpec | None:
        """Return the tenant that claimed an inode."""
        return self._owners.get(("inode", *inode))

    def drop_inode(self, tenant: TenantSpec) -> None:
        """Give up a tenant's inode: another file is in its place."""
        things = self._things[tenant.db_path]
        for thing in filter(_is_inode, things):
            del self._owners[thing]
        self._things[tenant.db_path] = tuple(t for t in things if not _is_inode(t))

    def take_inode(self, tenant: TenantSpec, inode: Inode) -> None:
        """Claim an inode for a tenant that has none.

        :raises ConfigError: another tenant has it
        """
        thing = ("inode", *inode)
        if thing in self._owners:
            raise _conflict(thing, self._owners[thing], tenant)
        self._things[tenant.db_path] = (*self._things[tenant.db_path], thing)
        self._owners[thing] = tenant

    def _check_overlap(self, tenant: TenantSpec, replica: tuple[Hashable, ...]) -> None:
        """Refuse a file replica whose path is a database: a directory is to be made there."""
        own = ("file", str(tenant.db_path))
        victim = tenant if replica == own else self._owners.get(replica)
        writer = tenant if victim else self._owners.get(("replica", *own))
        if writer is not None:
            database = (victim or tenant).name
            raise ConfigError(
                f"the replica path of database {writer.name!r} (entry #{writer.index}) "
                f"is the database {database!r} itself",
                hint="Give the entry a replica path outside its databases.",
            )

    def discard(self, tenant: TenantSpec) -> None:
        """Give up what a tenant owns; one that owns nothing is no error."""
        if self.owner(tenant.db_path) == tenant:
            for thing in self._things.pop(tenant.db_path):
                del self._owners[thing]


def _things(
    tenant: TenantSpec,
    inode: Inode | None,
    replica: tuple[Hashable, ...],
    resolve: Callable[[str], str],
) -> list[tuple[Hashable, ...]]:
    """Return what a tenant claims."""
    things: list[tuple[Hashable, ...]] = [("file", str(tenant.db_path))]
    if inode is not None:
        things.append(("inode", *inode))
    return [
        *things,
        ("replica", *replica),
        ("state", _resolved(str(tenant.state_path), resolve)),
    ]


def _is_inode(thing: tuple[Hashable, ...]) -> bool:
    return thing[0] == "inode"


def claim_all(
    claims: Claims,
    tenants: Iterable[TenantSpec],
    inode_of: Callable[[TenantSpec], Inode | None] = lambda tenant: None,
) -> tuple[list[TenantSpec], list[Problem]]:
    """Claim for many tenants; return those that own their things, and the others' conflicts."""
    accepted: list[TenantSpec] = []
    problems: list[Problem] = []
    resolve = functools.cache(os.path.realpath)
    for tenant in tenants:
        try:
            claims.add(tenant, inode_of(tenant), resolve=resolve)
            accepted.append(tenant)
        except ConfigError as exc:
            problems.append(Problem(tenant.db_path, tenant.index, exc))
    return accepted, problems


def _conflict(thing: Hashable, first: TenantSpec, second: TenantSpec) -> ConfigError:
    kind = thing[0] if isinstance(thing, tuple) else ""
    if kind == "file":
        return two_owners(second.db_path, first.settings, second.settings)
    names = f"{first.name!r} (entry #{first.index}) and {second.name!r} (entry #{second.index})"
    if kind == "inode":
        return ConfigError(
            f"databases {names} are two names of one file",
            hint="Keep one of the names: SQLite's locks and its -wal belong to one name only.",
        )
    if kind == "state":
        return ConfigError(
            f"databases {names} would share the state directory {second.state_path}",
            hint="Give one of the entries another meta-path or meta-dir.",
        )
    return ConfigError(
        f"databases {names} would share the replica path {describe_replica(second.replica)}",
        hint="Give one of the entries another replica path.",
    )


def _resolved(path: str, resolve: Callable[[str], str]) -> str:
    """Resolve the folder of a path; its last element is made by us and is no link."""
    folder, name = os.path.split(path)
    return os.path.join(resolve(folder), name)


def replica_identity(spec: ReplicaSpec, resolve: Callable[[str], str]) -> tuple[Hashable, ...]:
    """Return what tells two replica paths apart, the same for a path and for its URL."""
    if spec.type == "file":
        path = parse_url(spec.url).path if spec.url else spec.path
        return ("file", _resolved(path, resolve))
    place = tuple(_text(spec.options.get(key)) for key in _ENDPOINT_KEYS)
    if not spec.url:
        return (spec.type, place, spec.path.strip("/"))
    authority, _, rest = spec.url.partition("://")[2].partition("/")
    path, _, query = rest.partition("?")
    bucket = authority.rpartition("@")[2]
    if spec.type in ("s3", "gs", "abs", "oss"):
        named = dict(zip(_ENDPOINT_KEYS, place, strict=True)) | {"bucket": bucket}
        place = tuple(named.values())
        bucket = ""
    key = unquote_to_bytes(path).decode(errors="surrogateescape").strip("/")
    return (spec.type, place, key, *((bucket, query) if bucket or query else ()))


def _text(value: object) -> str:
    return value.reveal() if isinstance(value, SecretURL) else str(value or "")
