"""Find every tenant that can be restored: from the configuration and from the replicas.

After a lost disk the directories are empty, so the replicas are asked too.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pyrep.config.expand import Problem, TenantSpec, scan, tenant_for
from pyrep.errors import ConfigError, DatabaseError, ReplicaTemporaryError
from pyrep.ltxfile import parse_name
from pyrep.sqlite import probe
from pyrep.storage.layout import LTX_DIR, parse_level
from pyrep.storage.registry import ReplicaSpec, parse_url

if TYPE_CHECKING:
    from pyrep.config.model import Config, DatabaseConfig

__all__ = ["Found", "Search", "below_url", "of_config", "replica_paths"]


@dataclass(frozen=True, slots=True)
class Found:
    """Name a database that can be restored; ``relpath`` is its place below an output path."""

    name: str
    relpath: str
    replica: ReplicaSpec
    tenant: TenantSpec | None = None


@dataclass(frozen=True, slots=True)
class Search:
    """Hold what was found; ``strangers`` are replica paths that no entry matches."""

    found: tuple[Found, ...]
    problems: tuple[Problem, ...] = ()
    strangers: tuple[str, ...] = ()


def of_config(config: Config) -> Search:
    """Find the databases of a configuration, by their files and by what is on the replicas."""
    found: dict[str, Found] = {}  # by replica path: what one entry has is no other's
    problems: list[Problem] = []
    strangers: dict[str, None] = {}
    for entry in sorted(config.dbs, key=lambda entry: entry.dir is not None):  # `path:` wins
        try:
            paths = list(_paths(entry))
        except ConfigError as error:
            problems.append(Problem(entry.dir or Path(), entry.index, error))
            continue
        for path, stranger in paths:
            one = _found(entry, path)
            if isinstance(one, Found):
                found.setdefault(_replica_path(one.replica), one)
            elif stranger:
                strangers[stranger] = None
            else:
                problems.append(one)
    unknown = tuple(path for path in strangers if path not in found)
    return Search(tuple(found.values()), tuple(problems), unknown)


def _replica_path(spec: ReplicaSpec) -> str:
    if (spec.type or "file") != "file":
        return f"{spec.type} {spec.url or ''} {spec.path} {sorted(spec.options.items(), key=str)}"
    return parse_url(spec.url).path if spec.url else spec.path


def _found(entry: DatabaseConfig, path: Path) -> Found | Problem:
    try:
        tenant = tenant_for(entry, path)
    except ConfigError as error:
        return Problem(path, entry.index, error)
    return Found(tenant.name, tenant.relpath or tenant.db_path.name, tenant.replica, tenant)


def _paths(entry: DatabaseConfig) -> Iterator[tuple[Path, str]]:
    """Yield the paths of an entry's databases, each with its replica path if found there."""
    if entry.dir is None:
        yield entry.path or Path(), ""
        return
    root = Path(os.path.realpath(entry.dir))
    here = {path for path in scan(entry) if _is_database(path)}
    base = _base(entry)
    there = {root / relpath: os.path.join(base, relpath) for relpath in replica_paths(Path(base))}
    for path in sorted(here | there.keys()):
        yield path, there.get(path, "") if path not in here else ""


def _is_database(path: Path) -> bool:
    """Return whether a file is a database, as far as can be told."""
    try:
        return probe(path).is_database
    except DatabaseError:
        return True


def _base(entry: DatabaseConfig) -> str:
    replica = entry.replica
    if (replica.type or "file") != "file":
        raise ConfigError(
            f"database config #{entry.index}: replicas of type {replica.type} cannot be searched "
            "for databases yet",
            hint="Restore single databases by their paths.",
        )
    url = replica.url.reveal() if replica.url else None
    return _replica_path(ReplicaSpec("file", replica.path, url))


def below_url(url: str) -> Search:
    """Find the replicas at and below a URL.

    :raises ConfigError: the URL is not that of a file replica
    """
    parsed = parse_url(url)
    if parsed.scheme != "file":
        raise ConfigError(
            f"replicas of type {parsed.scheme} cannot be searched for databases yet",
            hint="Restore single databases by their URLs.",
        )
    base = parsed.path
    found = []
    for relpath in replica_paths(Path(base)):
        path = os.path.normpath(os.path.join(base, relpath))
        name = relpath or os.path.basename(path)
        found.append(Found(name, name, ReplicaSpec(type="file", path=path)))
    return Search(tuple(found))


def replica_paths(base: Path) -> Iterator[str]:
    """Yield the path below ``base`` of every folder that holds LTX files, '' for itself.

    Links are not followed.  A base that does not exist holds none.

    :raises ReplicaTemporaryError: a folder cannot be read
    """
    pending = [""]
    while pending:
        relpath = pending.pop()
        folders = _folders(base / relpath)
        own = LTX_DIR in folders and _has_ltx(base / relpath / LTX_DIR)
        if own:
            yield relpath
            folders.remove(LTX_DIR)
        pending += [os.path.join(relpath, name) for name in reversed(folders)]


def _has_ltx(folder: Path) -> bool:
    return any(
        parse_name(name) is not None
        for level in _folders(folder)
        if parse_level(level) is not None
        for name in _names(folder / level, lambda child: child.is_file(follow_symlinks=False))
    )


def _folders(folder: Path) -> list[str]:
    return sorted(_names(folder, lambda child: child.is_dir(follow_symlinks=False)))


def _names(folder: Path, wanted: Callable[[os.DirEntry[str]], bool]) -> list[str]:
    try:
        with os.scandir(folder) as children:
            return [child.name for child in children if wanted(child)]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ReplicaTemporaryError(
            f"{folder}: replica folder cannot be read: {error.strerror}",
            hint="Restore as a user who may read the replica.",
        ) from error
