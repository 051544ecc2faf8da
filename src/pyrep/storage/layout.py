"""Where LTX files lie below a replica path, in both of Litestream's layouts, as pure functions.

The plain layout is ``ltx/<level>/<name>`` with the level in decimal (file, gs, abs, sftp,
webdav, nats); the hex layout is ``<level as 4 hex digits>/<name>`` (s3, oss).  All paths here
use forward slashes and are relative to the replica path.
"""

from __future__ import annotations

import posixpath
import re

from pyrep.errors import ConfigError
from pyrep.ids import SNAPSHOT_LEVEL
from pyrep.ltxfile import FileInfo, format_name, parse_name

__all__ = [
    "LEVELS",
    "LTX_DIR",
    "clean_replica_path",
    "hex_level_path",
    "hex_ltx_path",
    "join_replica_path",
    "level_path",
    "ltx_path",
    "parse_hex_level",
    "parse_hex_ltx_path",
    "parse_level",
    "parse_ltx_path",
]

LEVELS = range(SNAPSHOT_LEVEL + 1)
LTX_DIR = "ltx"
_LEVEL = re.compile(r"[0-9]\Z")
_HEX_LEVEL = re.compile(r"000[0-9]\Z")


def level_path(level: int) -> str:
    """Return ``ltx/<level>``."""
    return f"{LTX_DIR}/{level}"


def hex_level_path(level: int) -> str:
    """Return the level as 4 lower-case hex digits."""
    return f"{level:04x}"


def parse_level(text: str) -> int | None:
    """Read a level of the plain layout; return None for any other text."""
    return int(text) if _LEVEL.match(text) else None


def parse_hex_level(text: str) -> int | None:
    """Read a level of the hex layout; return None for any other text."""
    return int(text, 16) if _HEX_LEVEL.match(text) else None


def ltx_path(level: int, min_txid: int, max_txid: int) -> str:
    """Return ``ltx/<level>/<name>``."""
    return f"{level_path(level)}/{format_name(min_txid, max_txid)}"


def hex_ltx_path(level: int, min_txid: int, max_txid: int) -> str:
    """Return ``<4 hex digits>/<name>``."""
    return f"{hex_level_path(level)}/{format_name(min_txid, max_txid)}"


def parse_ltx_path(path: str) -> FileInfo | None:
    """Read a path of the plain layout; return None if it does not name an LTX file."""
    folder, _, rest = path.partition("/")
    if folder != LTX_DIR:
        return None
    level, _, name = rest.partition("/")
    return _file_info(parse_level(level), name)


def parse_hex_ltx_path(path: str) -> FileInfo | None:
    """Read a path of the hex layout; return None if it does not name an LTX file."""
    level, _, name = path.partition("/")
    return _file_info(parse_hex_level(level), name)


def _file_info(level: int | None, name: str) -> FileInfo | None:
    txids = parse_name(name)
    if level is None or txids is None:
        return None
    return FileInfo(level, *txids)


def join_replica_path(base: str, relpath: str) -> str:
    """Return the replica path of a tenant: its path in the directory below the configured one.

    ``base`` is cleaned (doubled and trailing slashes, ``.``); an empty one gives ``relpath``.

    :raises ConfigError: ``relpath`` is empty, absolute or leaves the base
    """
    parts = [part for part in relpath.split("/") if part not in ("", ".")]
    if not parts or relpath.startswith("/") or ".." in parts:
        raise ConfigError(
            f'"{relpath}" is not a path below a replica path',
            hint="A tenant's path is relative to its directory and has no '..' in it.",
        )
    return posixpath.join(clean_replica_path(base), *parts)


def clean_replica_path(base: str) -> str:
    """Return a configured path without doubled and trailing slashes and ``.``; it may be empty."""
    head = posixpath.normpath(base)
    if base.startswith("/"):
        return "/" + head.lstrip("/")
    return "" if head == "." else head
