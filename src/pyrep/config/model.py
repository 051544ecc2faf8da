"""The configuration as frozen values, with every default in one place.

A key of the file is the field of the same name with ``-`` for ``_``.  Durations are
``timedelta``, sizes are bytes.  What a value must satisfy is checked while the file is read
(:mod:`pyrep.config.build`), not here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from pyrep.log import LoggingConfig

__all__ = [
    "CompactionLevel",
    "Config",
    "DatabaseConfig",
    "LoggingConfig",
    "ReplicaConfig",
    "RetentionConfig",
    "Secret",
    "SecretURL",
    "SnapshotConfig",
    "SocketConfig",
    "ValidationConfig",
    "redact_url",
]

_HIDDEN = "***"
_URL = re.compile(r"(?P<scheme>\w+)://(?:(?P<user>[^/?#]*)@)?(?P<rest>.*)", re.DOTALL)
_QUERY_SECRET = re.compile(r"([?&][^=&]*(?:key|secret|token|password|sig)[^=&]*=)[^&#]*", re.I)


class Secret:
    """Hold a text that must not be seen: printing, formatting and repr show ``***``."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """Return the text itself."""
        return self._value

    def __str__(self) -> str:
        return _HIDDEN

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r})"

    def __format__(self, spec: str) -> str:
        return format(str(self), spec)

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self._value == other.reveal()

    def __hash__(self) -> int:
        return hash(self._value)

    def __bool__(self) -> bool:
        return bool(self._value)


class SecretURL(Secret):
    """Hold a URL that may carry credentials; printing shows it without them."""

    __slots__ = ()

    def __str__(self) -> str:
        return redact_url(self._value)


def redact_url(url: str) -> str:
    """Return a URL without its password, its token and its secret query values."""
    match = _URL.fullmatch(url)
    if match is None:
        return _HIDDEN if "@" in url else url
    user = match["user"]
    if user is not None:
        name, colon, _ = user.partition(":")
        # A NATS URL may hold a token where others have the name.
        hidden = _HIDDEN if match["scheme"] == "nats" and not colon else name
        user = f"{hidden}:{_HIDDEN}@" if colon else f"{hidden}@"
    rest = _QUERY_SECRET.sub(rf"\1{_HIDDEN}", match["rest"])
    return f"{match['scheme']}://{user or ''}{rest}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaConfig:
    """Say where a database is replicated to, and how.

    ``path`` of a file replica is absolute.  ``options`` holds the keys that only some types
    have (``bucket``, ``endpoint``…) as far as the file gives them, under their names in it;
    defaults are the backend's affair, because some depend on the provider.
    """

    type: str = "file"
    path: str = ""
    url: SecretURL | None = None
    sync_interval: timedelta = timedelta(seconds=1)
    max_sync_ltx_files: int = 256
    auto_recover: bool = False
    compression: str = "lz4"
    compression_level: int | None = None
    requests_per_second: int | None = None
    bytes_per_second: int | None = None
    options: Mapping[str, object] = field(default_factory=dict)

    @property
    def zstd_level(self) -> int | None:
        """Return the level for zstd, None if pages are compressed with LZ4."""
        return self.compression_level if self.compression == "zstd" else None


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotConfig:
    """Say how often snapshots are made and how long they stay."""

    interval: timedelta = timedelta(hours=24)
    retention: timedelta = timedelta(hours=24)


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseConfig:
    """Describe one entry of ``dbs``: a single database (``path``) or a directory (``dir``).

    ``index`` is the entry's place in the list, from 1; ``path`` and ``dir`` are absolute but
    not resolved.  ``excluded`` are directories that a scan leaves out because they are
    pyrep's own, ``state_roots`` those in which every ``*-pyrep`` is.
    """

    index: int = 1
    path: Path | None = None
    dir: Path | None = None
    pattern: str = ""
    recursive: bool = False
    watch: bool = True
    meta_path: Path | None = None
    meta_dir: Path | None = None
    monitor_interval: timedelta = timedelta(seconds=1)
    checkpoint_interval: timedelta = timedelta(minutes=1)
    busy_timeout: timedelta = timedelta(seconds=1)
    min_checkpoint_page_count: int = 1000
    truncate_page_n: int = 121359
    max_sync_wal_bytes: int = 64 << 20
    restore_if_db_not_exists: bool = False
    spool_limit: int = 1 << 30
    idle_timeout: timedelta = timedelta(seconds=60)
    journal_mode: str = "convert"
    same_host: bool = False
    snapshot: SnapshotConfig = SnapshotConfig()
    replica: ReplicaConfig = ReplicaConfig()
    excluded: tuple[Path, ...] = ()
    state_roots: tuple[Path, ...] = ()

    @property
    def label(self) -> str:
        """Return the entry as messages name it: ``dbs[<path or dir>]``."""
        return f"dbs[{self.path or self.dir}]"


@dataclass(frozen=True, slots=True, kw_only=True)
class CompactionLevel:
    """Say how often level ``level`` is made from the one below."""

    level: int
    interval: timedelta


@dataclass(frozen=True, slots=True, kw_only=True)
class RetentionConfig:
    """Say whether files may be deleted from replicas at all."""

    enabled: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationConfig:
    """Say how often replicas are validated (None: never)."""

    interval: timedelta | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SocketConfig:
    """Describe the control socket."""

    enabled: bool = False
    path: Path = Path("/var/run/litestream.sock")
    permissions: int = 0o600


_LEVELS = (
    CompactionLevel(level=1, interval=timedelta(seconds=30)),
    CompactionLevel(level=2, interval=timedelta(minutes=5)),
    CompactionLevel(level=3, interval=timedelta(hours=1)),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Hold a whole configuration.

    ``source`` is the file it was read from.  ``warnings`` are sentences for the operator:
    keys without effect, each with the policy that holds instead.  ``max_attached`` None means
    as many as the descriptor limit allows.  ``inherited`` are the settings at the top that a
    replica takes over which does not have them itself.
    """

    source: Path | None = None
    dbs: tuple[DatabaseConfig, ...] = ()
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    exec: str = ""
    addr: str = ""
    mcp_addr: str = ""
    socket: SocketConfig = SocketConfig()
    levels: tuple[CompactionLevel, ...] = _LEVELS
    snapshot: SnapshotConfig = SnapshotConfig()
    validation: ValidationConfig = ValidationConfig()
    l0_retention: timedelta = timedelta(minutes=5)
    l0_retention_check_interval: timedelta = timedelta(seconds=15)
    verify_compaction: bool = False
    retention: RetentionConfig = RetentionConfig()
    heartbeat_url: SecretURL | None = None
    heartbeat_interval: timedelta = timedelta(minutes=5)
    shutdown_sync_timeout: timedelta = timedelta(seconds=30)
    shutdown_sync_interval: timedelta = timedelta(milliseconds=500)
    state_dir: Path = Path("/var/lib/pyrep")
    max_attached: int | None = None
    reconcile_interval: timedelta = timedelta(minutes=5)
    spool_limit_total: int = 8 << 30
    warnings: tuple[str, ...] = ()
    inherited: Mapping[str, object] = field(default_factory=dict)
