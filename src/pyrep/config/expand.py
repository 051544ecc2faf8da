"""From configured entries to tenants: scan directories, give each file its own places.

Nothing here opens a database file or writes anything.  A file found by its name is a
candidate; whether it is a database, the caller finds out.  What is wrong with one tenant or
one directory is a :class:`Problem` beside the others, never the end of them.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

from pyrep.config.limits import check_limits
from pyrep.config.model import Config, DatabaseConfig, ReplicaConfig, redact_url
from pyrep.config.paths import compile_pattern, join_url, with_bucket
from pyrep.errors import ConfigError, PyrepError
from pyrep.storage.budget import Limits
from pyrep.storage.layout import clean_replica_path, join_replica_path
from pyrep.storage.registry import ReplicaSpec

__all__ = [
    "Expansion",
    "Places",
    "Problem",
    "Skipped",
    "TenantSpec",
    "describe_replica",
    "expand",
    "expand_folder",
    "replica_base",
    "replica_below",
    "same_tenant",
    "scan",
    "tenant_at",
    "tenant_for",
    "two_owners",
    "walk",
]

_NEVER = ("-wal", "-shm", "-journal")
_STATE_SUFFIXES = ("-pyrep", "-litestream")
_limits = functools.lru_cache(64)(Limits)  # the same for all tenants of an entry: one for all

Visit = Callable[[str], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantSpec:
    """Describe one managed database and the places that are its own.

    ``db_path`` is resolved, ``name`` is the path as configured.  ``relpath`` is the path below
    the entry's directory (None for a single database).  ``state_path`` is the state directory.
    """

    db_path: Path
    name: str
    relpath: str | None
    replica: ReplicaSpec = field(repr=False, hash=False)
    state_path: Path
    settings: DatabaseConfig = field(repr=False, hash=False)

    @property
    def index(self) -> int:
        """Return the place of the tenant's entry in ``dbs``, from 1."""
        return self.settings.index


@dataclass(frozen=True, slots=True)
class Problem:
    """Say what is wrong with one tenant or directory; ``path`` names it."""

    path: Path
    index: int
    error: PyrepError


@dataclass(frozen=True, slots=True)
class Skipped:
    """Name something a scan met and left out: a link to a file, or a folder it cannot read."""

    path: Path
    error: OSError | None = None


@dataclass(frozen=True, slots=True)
class Expansion:
    """Hold what a configuration stands for right now."""

    tenants: tuple[TenantSpec, ...]
    problems: tuple[Problem, ...]
    links: tuple[Path, ...]


def expand(config: Config, visit: Visit | None = None) -> Expansion:
    """Return the tenants of all entries, those of directories by a scan.

    A file that an entry names by ``path`` is not taken from a directory as well.  Conflicts
    between tenants are found by :class:`pyrep.config.claims.Claims`, once it is known which
    files are databases.  ``visit`` is called with each folder before it is read.
    """
    explicit = {os.path.realpath(entry.path) for entry in config.dbs if entry.path}
    found = (_found(entry, explicit, visit) for entry in config.dbs)
    return _expansion(chain.from_iterable(found))


def expand_folder(places: Places, folder: str, visit: Visit | None = None) -> Expansion:
    """Return the tenants in and below one resolved folder, of the entries that watch it."""
    entries = [entry for entry in places.entries_in(folder) if entry.watch]
    found = (_found(entry, places.singles, visit, folder) for entry in entries)
    return _expansion(chain.from_iterable(found))


def _expansion(found: Iterable[TenantSpec | Problem | Path]) -> Expansion:
    tenants: list[TenantSpec] = []
    problems: list[Problem] = []
    links: list[Path] = []
    for item in found:
        if isinstance(item, TenantSpec):
            tenants.append(item)
        elif isinstance(item, Problem):
            problems.append(item)
        else:
            links.append(item)
    return Expansion(tuple(tenants), tuple(problems), tuple(links))


def _found(
    entry: DatabaseConfig,
    explicit: Container[str],
    visit: Visit | None,
    start: str | None = None,
) -> Iterator[TenantSpec | Problem | Path]:
    """Yield an entry's tenants and problems, and the links that were not followed."""
    if entry.dir is None:
        yield _tenant_or_problem(entry, str(entry.path), None)
        return
    root = os.path.realpath(entry.dir)
    for item in walk(entry, start, visit):
        if isinstance(item, Path):
            if str(item) not in explicit:
                yield _tenant_or_problem(entry, str(item), root)
        elif item.error is None:
            yield item.path
        else:
            yield Problem(item.path, entry.index, _unreadable(entry, item.path, item.error))


def _tenant_or_problem(entry: DatabaseConfig, path: str, root: str | None) -> TenantSpec | Problem:
    try:
        return _single(entry) if root is None else _in_directory(entry, root, path)
    except ConfigError as exc:
        return Problem(Path(path), entry.index, exc)


def _unreadable(entry: DatabaseConfig, path: Path, error: OSError) -> ConfigError:
    """Return the error for a directory that a scan cannot read."""
    missing = isinstance(error, FileNotFoundError)
    reason = "does not exist" if missing else error.strerror or "cannot be read"
    return ConfigError(
        f"database config #{entry.index}: cannot scan directory {path}: {reason}",
        hint="It is looked for again at each reconciliation; the other entries run.",
    )


def scan(entry: DatabaseConfig) -> Iterator[Path]:
    """Yield the files of a directory entry whose names match, in a stable order."""
    return (item for item in walk(entry) if isinstance(item, Path))


def walk(
    entry: DatabaseConfig, start: str | None = None, visit: Visit | None = None
) -> Iterator[Path | Skipped]:
    """Yield the files of a directory entry that match, and what was left out.

    Paths are resolved: the entry's directory may be a link, nothing below it is followed.
    A folder that vanishes meanwhile is no error.  ``start`` is a folder below the entry's that
    is walked alone; ``visit`` is called with each folder before it is read.
    """
    root = os.path.realpath(entry.dir or "")
    own = _Own(entry)
    pending = [start or root]
    while pending:
        folder = pending.pop()
        if visit is not None:
            visit(folder)
        try:
            with os.scandir(folder) as entries:
                children = sorted(entries, key=lambda child: child.name)
        except OSError as exc:
            if folder == root or not isinstance(exc, FileNotFoundError):
                yield Skipped(Path(folder), exc)
            continue
        folders = []
        for child in children:
            if entry.recursive and child.is_dir(follow_symlinks=False):
                folders.append(child)
            elif _matches(entry, child.name):
                yield from _file(child)
        pending += [c.path for c in reversed(folders) if not own.has(c.path)]


def _file(child: os.DirEntry[str]) -> Iterator[Path | Skipped]:
    if child.is_file(follow_symlinks=False):
        yield Path(child.path)
    elif child.is_symlink() and _leads_to_file(child):
        yield Skipped(Path(child.path))


def _leads_to_file(link: os.DirEntry[str]) -> bool:
    try:
        return link.is_file()
    except OSError:  # a loop, or a target that cannot be reached
        return False


class _Own:
    """Know the folders that are pyrep's or Litestream's own; links are resolved once."""

    def __init__(self, entry: DatabaseConfig) -> None:
        self._folders = frozenset(map(os.path.realpath, entry.excluded))
        self._roots = tuple(f"{os.path.realpath(root)}/" for root in entry.state_roots)

    def has(self, folder: str) -> bool:
        """Return whether a resolved folder is one of them."""
        name = os.path.basename(folder)
        if not name.endswith(_STATE_SUFFIXES):
            return folder in self._folders
        return name.startswith(".") or folder in self._folders or folder.startswith(self._roots)


def _matches(entry: DatabaseConfig, name: str) -> bool:
    return not name.endswith(_NEVER) and compile_pattern(entry.pattern).match(name) is not None


def tenant_for(entry: DatabaseConfig, path: Path | str) -> TenantSpec:
    """Return the tenant that a file is under an entry, wherever the file was heard of.

    :raises ConfigError: the file does not belong to the entry, or its name is beyond a limit
    """
    if entry.dir is None:
        if os.path.realpath(path) != os.path.realpath(entry.path or ""):
            raise ConfigError(f"{path} is not {entry.label}")
        return _single(entry)
    root = os.path.realpath(entry.dir)
    found = _below(entry, root, path)
    if found is None:
        raise ConfigError(f"{path} is not a database that {entry.label} matches")
    return _in_directory(entry, root, found)


def tenant_at(config: Config, path: Path | str) -> TenantSpec | None:
    """Return the tenant whose database is at ``path``, existing or not; None if there is none.

    :raises ConfigError: two directories claim the path, or its name is beyond a limit
    """
    owners = Places(config).entries_at(path)
    if len(owners) > 1:
        first, second = owners[:2]
        raise two_owners(Path(os.path.realpath(path)), first, second)
    return tenant_for(owners[0], path) if owners else None


class Places:
    """Know where the entries of a configuration lie; their links are resolved once."""

    def __init__(self, config: Config) -> None:
        self.singles = {os.path.realpath(e.path): e for e in reversed(config.dbs) if e.path}
        self.roots = [(os.path.realpath(e.dir), e) for e in config.dbs if e.dir]

    def entries_at(self, path: Path | str) -> list[DatabaseConfig]:
        """Return the entries that a file belongs to, existing or not, in their order.

        The one that names it by ``path`` has it alone.
        """
        single = self.singles.get(os.path.realpath(path))
        if single is not None:
            return [single]
        return [entry for root, entry in self.roots if _below(entry, root, path) is not None]

    def has_name(self, path: Path) -> bool:
        """Return whether a directory entry would take a file of that name there."""
        folder, name = os.path.split(path)
        return any(
            _matches(entry, name) and _enters(entry, root, folder) for root, entry in self.roots
        )

    def entries_in(self, folder: str) -> list[DatabaseConfig]:
        """Return the directory entries whose scan enters a resolved folder."""
        return [entry for root, entry in self.roots if _enters(entry, root, folder)]


_SCANNING: dict[str, Any] = {
    "index": 1,
    "dir": None,
    "pattern": "",
    "recursive": False,
    "watch": True,
    "excluded": (),
    "state_roots": (),
    "restore_if_db_not_exists": False,
}


def same_tenant(first: TenantSpec, second: TenantSpec) -> bool:
    """Return whether two configurations want one and the same of a database.

    How it is found does not matter.
    """
    if first == second:
        return True
    one, other = (
        replace(spec, name="", settings=replace(spec.settings, **_SCANNING))
        for spec in (first, second)
    )
    return one == other


def two_owners(path: Path, first: DatabaseConfig, second: DatabaseConfig) -> ConfigError:
    """Return the error for one file that two entries claim."""
    return ConfigError(
        f"database {path} is claimed by two entries: #{first.index} {first.label} "
        f"and #{second.index} {second.label}",
        hint="Narrow a pattern or a directory so that one entry remains, or name it by path.",
    )


def _below(entry: DatabaseConfig, root: str, path: Path | str) -> str | None:
    """Return the file's resolved path if the entry's scan would find it there."""
    folder, name = os.path.split(os.path.abspath(path))
    if not _matches(entry, name) or os.path.islink(path):
        return None
    folder = os.path.realpath(folder)
    return os.path.join(folder, name) if _enters(entry, root, folder) else None


def _enters(entry: DatabaseConfig, root: str, folder: str) -> bool:
    """Return whether an entry's scan comes to a resolved folder, existing or not."""
    if folder == root:
        return True
    if not entry.recursive or not folder.startswith(os.path.join(root, "")):
        return False
    own = _Own(entry)
    ancestor = folder
    while ancestor != root:
        if own.has(ancestor):
            return False
        ancestor = os.path.dirname(ancestor)
    return True


def _single(entry: DatabaseConfig) -> TenantSpec:
    configured = entry.path or Path()
    db_path = Path(os.path.realpath(configured))
    state = entry.meta_path / "pyrep" if entry.meta_path else _beside(str(db_path))
    replica = entry.replica
    if replica.type == "nats":
        replica = replace(replica, path="")  # Litestream ignores it here; tenants go below it
    spec = _spec(replica, None)
    check_limits(spec, str(db_path), str(state), entry.replica.type)
    return TenantSpec(
        db_path=db_path,
        name=str(configured),
        relpath=None,
        replica=spec,
        state_path=Path(state),
        settings=entry,
    )


def _in_directory(entry: DatabaseConfig, root: str, db_path: str) -> TenantSpec:
    """Return the tenant of a file below ``root``, the resolved directory of its entry."""
    relpath = db_path[len(root.rstrip("/")) + 1 :]
    if entry.meta_dir:
        state = os.path.join(entry.meta_dir, f"{relpath}-pyrep")
    elif entry.meta_path:
        state = _beside(os.path.join(entry.meta_path, relpath))
    else:
        state = _beside(db_path)
    spec = _spec(entry.replica, relpath)
    check_limits(spec, db_path, state, entry.replica.type)
    path, name = Path(db_path), os.path.join(entry.dir or "", relpath)
    return TenantSpec(
        db_path=path,
        name=str(path) if name == db_path else name,  # which it keeps anyway
        relpath=relpath,
        replica=spec,
        state_path=Path(state),
        settings=entry,
    )


def _beside(db_path: str) -> str:
    folder, name = os.path.split(db_path)
    return os.path.join(folder, f".{name}-pyrep")


def _spec(replica: ReplicaConfig, relpath: str | None) -> ReplicaSpec:
    """Return the tenant's own replica: the configured one, joined with its relative path."""
    url = replica.url.reveal() if replica.url else None
    path = replica.path
    if url and replica.type == "nats":
        url = with_bucket(url, str(replica.options.get("bucket") or ""))
        url, path = (join_url(url, path.strip("/")), "") if path.strip("/") else (url, "")
    limits = _limits(replica.requests_per_second, replica.bytes_per_second)
    spec = ReplicaSpec(replica.type, path, url, replica.options, limits)
    return spec if relpath is None else replica_below(spec, relpath)


def replica_base(entry: DatabaseConfig) -> ReplicaSpec:
    """Return the replica whose path those of a directory's tenants are below."""
    spec = _spec(entry.replica, None)
    return spec if spec.url else replace(spec, path=clean_replica_path(spec.path))


def replica_below(spec: ReplicaSpec, relpath: str) -> ReplicaSpec:
    """Return the replica at a path below another's, itself for an empty one.

    :raises ConfigError: the path is absolute or leaves the base
    """
    if not relpath:
        return spec
    if spec.url:
        return replace(spec, url=join_url(spec.url, relpath), path="")
    return replace(spec, path=join_replica_path(spec.path, relpath))


def describe_replica(spec: ReplicaSpec) -> str:
    """Return a tenant's replica for logs and lists, without any secret."""
    if spec.url:
        return redact_url(spec.url)
    bucket = spec.options.get("bucket") or spec.options.get("host")
    if spec.type == "file" or not bucket:
        return spec.path
    return f"{spec.type}://{bucket}/{spec.path.lstrip('/')}"
