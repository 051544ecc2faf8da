"""What storages and file systems can hold as a name, checked before anything is written."""

from __future__ import annotations

import os
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

from pyrep.errors import ConfigError
from pyrep.storage.registry import ReplicaSpec

__all__ = ["DB_NAME_BYTES", "LIMITS", "NAME_BYTES", "PATH_BYTES", "Limit", "check_limits"]

NAME_BYTES = 255
DB_NAME_BYTES = NAME_BYTES - len(".tmp-01234567")  # as long as a restore writes it
PATH_BYTES = 4095
# "/0009/" or "/ltx/9/" and a file name of 37 bytes, with room for a temporary name's tail.
_TAIL_BYTES = 64
_LTX_BYTES = 44


@dataclass(frozen=True, slots=True)
class Limit:
    """Say what a storage can hold; ``text``: UTF-8 without control characters."""

    key_bytes: int
    name_bytes: int
    text: bool


LIMITS = {
    "file": Limit(PATH_BYTES - _TAIL_BYTES, NAME_BYTES, text=False),
    "s3": Limit(1024 - _LTX_BYTES, 1024 - _LTX_BYTES, text=True),
    "gs": Limit(1024 - _LTX_BYTES, 1024 - _LTX_BYTES, text=True),
    "oss": Limit(1023 - _LTX_BYTES, 1023 - _LTX_BYTES, text=True),
    "abs": Limit(1024 - _LTX_BYTES, 1024 - _LTX_BYTES, text=True),
    "sftp": Limit(PATH_BYTES - _TAIL_BYTES, NAME_BYTES, text=True),
    "webdav": Limit(PATH_BYTES - _TAIL_BYTES, NAME_BYTES, text=True),
    # in base64 it is part of a subject, and the server reads lines of 4 KiB
    "nats": Limit(2048, 2048, text=True),
}


def check_limits(spec: ReplicaSpec, db_path: str, state_path: str, kind: str) -> None:
    """Refuse a tenant that SQLite cannot open, or whose files cannot be written somewhere.

    :raises ConfigError: naming the database and the limit
    """
    _check_name(db_path, state_path)
    key = _key(spec)
    limit = LIMITS[kind]
    if len(key) > limit.key_bytes:
        raise _too_long(db_path, f"replica path of {len(key)} bytes", limit.key_bytes, kind, "path")
    longest = max(map(len, key.split(b"/")))
    if longest > limit.name_bytes:
        raise _too_long(db_path, f"name of {longest} bytes", limit.name_bytes, kind, "name")
    if limit.text:
        _check_text(key, db_path, kind)


def _check_name(db_path: str, state_path: str) -> None:
    try:
        db_path.encode()
    except UnicodeEncodeError:
        raise ConfigError(
            f"{db_path!r}: its name is not UTF-8, which SQLite needs",
            hint="Rename the database, or the directory whose name is not UTF-8.",
        ) from None
    name = os.fsencode(os.path.basename(db_path))
    if len(name) > DB_NAME_BYTES:
        raise ConfigError(
            f"{db_path!r}: a name of {len(name)} bytes is too long, {DB_NAME_BYTES} are allowed",
            hint="Rename the database: a restore adds 13 bytes to the name for a while.",
        )
    if len(os.fsencode(state_path)) > PATH_BYTES - _TAIL_BYTES:
        raise ConfigError(
            f"{db_path!r}: the state directory's path is longer than {PATH_BYTES - _TAIL_BYTES} "
            "bytes",
            hint="Move the database to a less deep directory, or set meta-dir to a short path.",
        )


def _key(spec: ReplicaSpec) -> bytes:
    """Return the replica's path as the storage sees it."""
    if not spec.url:
        return os.fsencode(spec.path)
    path = spec.url.partition("://")[2].partition("?")[0].partition("/")[2]
    key = unquote_to_bytes(path)
    return b"/" + key if spec.type == "file" else key


def _too_long(db_path: str, what: str, limit: int, kind: str, word: str) -> ConfigError:
    return ConfigError(
        f"{db_path!r}: a {what} is too long, a {kind} replica allows a {word} of {limit} bytes",
        hint="Use shorter names, or a shorter path of the replica.",
    )


def _check_text(key: bytes, db_path: str, kind: str) -> None:
    try:
        text = key.decode()
    except UnicodeDecodeError:
        raise ConfigError(
            f"{db_path!r}: its name is not UTF-8, a {kind} replica cannot hold that",
            hint="Rename the database.",
        ) from None
    if kind == "abs" and "\\" in text:
        raise ConfigError(
            f"{db_path!r}: its name has a backslash, which an abs replica takes for a slash",
            hint="Rename the database.",
        )
    if any(ord(char) < 0x20 or 0x7F <= ord(char) < 0xA0 for char in text):
        raise ConfigError(
            f"{db_path!r}: its name has a control character, a {kind} replica cannot hold that",
            hint="Rename the database.",
        )
