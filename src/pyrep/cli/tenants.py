"""Find every tenant that can be restored: from the configuration and from the replicas.

After a lost disk the directories are empty, so the replicas are asked too.
"""

from __future__ import annotations

import os
import posixpath
import threading
from collections.abc import Callable, Hashable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pyrep.config.claims import replica_identity
from pyrep.config.expand import (
    Problem,
    TenantSpec,
    describe_replica,
    replica_base,
    replica_below,
    scan,
    tenant_for,
)
from pyrep.errors import ConfigError, DatabaseError, PyrepError
from pyrep.sqlite import probe
from pyrep.storage.registry import ReplicaSpec, connect, parse_url
from pyrep.storage.retry import PATIENT
from pyrep.storage.search import ReplicaSearch, find_replicas

if TYPE_CHECKING:
    from pyrep.config.model import Config, DatabaseConfig

__all__ = ["Found", "Search", "below_url", "of_config"]

OnLook = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Found:
    """Name a database that can be restored; ``relpath`` is its place below an output path."""

    name: str
    relpath: str
    replica: ReplicaSpec
    tenant: TenantSpec | None = None


@dataclass(frozen=True, slots=True)
class Search:
    """Hold what was found; ``strangers`` are replicas that no entry matches, as texts."""

    found: tuple[Found, ...]
    problems: tuple[Problem, ...] = ()
    strangers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Seen:
    """Hold a path that an entry may have a database at, and the replica if one is there."""

    path: Path
    replica: ReplicaSpec | None = None


def of_config(
    config: Config, *, on_look: OnLook | None = None, cancel: threading.Event | None = None
) -> Search:
    """Find the databases of a configuration, by their files and by what is on the replicas.

    A replica that cannot be searched is a problem of its entry: what its directory holds is found
    all the same.
    """
    found: dict[Hashable, Found] = {}  # by replica: what one entry has is no other's
    problems: list[Problem] = []
    strangers: dict[Hashable, str] = {}
    for entry in sorted(config.dbs, key=lambda entry: entry.dir is not None):  # `path:` wins
        for item in _items(entry, on_look, cancel):
            one = item if isinstance(item, Problem) else _found(entry, item.path)
            if isinstance(one, Found):
                found.setdefault(_identity(one.replica), one)
            elif isinstance(item, _Seen) and item.replica is not None:
                strangers[_identity(item.replica)] = describe_replica(item.replica)
            else:
                problems.append(one)
    unknown = tuple(text for identity, text in strangers.items() if identity not in found)
    return Search(tuple(found.values()), tuple(problems), unknown)


def below_url(
    url: str, *, on_look: OnLook | None = None, cancel: threading.Event | None = None
) -> Search:
    """Find the replicas at and below a URL.

    :raises PyrepError: the place cannot be searched
    """
    base = ReplicaSpec(url=url)
    place = parse_url(url).path
    search = _search(base, on_look, cancel)
    found, problems = [], _problems(search, base, 0)
    for relpath in search.replicas:
        replica = replica_below(base, relpath)
        if "\0" in relpath:
            error = ConfigError(f"{describe_replica(replica)}: no file can have this name")
            problems.append(Problem(Path(relpath), 0, error))
            continue
        name = relpath or posixpath.basename(place) or describe_replica(base).rpartition("/")[2]
        found.append(Found(name, name, replica))
    return Search(tuple(found), tuple(problems))


def _identity(spec: ReplicaSpec) -> Hashable:
    return replica_identity(spec, os.path.realpath)


def _found(entry: DatabaseConfig, path: Path) -> Found | Problem:
    try:
        tenant = tenant_for(entry, path)
    except ConfigError as error:
        return Problem(path, entry.index, error)
    return Found(tenant.name, tenant.relpath or tenant.db_path.name, tenant.replica, tenant)


def _items(
    entry: DatabaseConfig, on_look: OnLook | None, cancel: threading.Event | None
) -> Iterator[_Seen | Problem]:
    """Yield where an entry's databases are or were, and what is wrong with its replica."""
    if entry.dir is None:
        yield _Seen(entry.path or Path())
        return
    root = Path(os.path.realpath(entry.dir))
    here = {path for path in scan(entry) if _is_database(path)}
    base = replica_base(entry)
    try:
        search = _search(base, on_look, cancel)
    except PyrepError as error:
        yield Problem(entry.dir, entry.index, error)
        search = ReplicaSearch(())
    yield from _problems(search, base, entry.index)
    there = {root / relpath: relpath for relpath in search.replicas if "\0" not in relpath}
    for path in sorted(here | there.keys()):
        yield _Seen(path, None if path in here else replica_below(base, there[path]))


def _is_database(path: Path) -> bool:
    """Return whether a file is a database, as far as can be told."""
    try:
        return probe(path).is_database
    except DatabaseError:
        return True


def _search(
    base: ReplicaSpec, on_look: OnLook | None, cancel: threading.Event | None
) -> ReplicaSearch:
    with closing(connect(base, stop=cancel, policy=PATIENT)) as client:
        return find_replicas(client, on_look=on_look)


def _problems(search: ReplicaSearch, base: ReplicaSpec, index: int) -> list[Problem]:
    return [
        Problem(Path(describe_replica(replica_below(base, path))), index, error)
        for path, error in search.failures
    ]
