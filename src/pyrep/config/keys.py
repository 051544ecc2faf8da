"""Every key of a configuration file: how it is read, and whether it is in effect.

A key that Litestream honours and pyrep does not build yet, and a left-over of Litestream 0.3,
is accepted with one warning that names the policy in effect (``policy``).
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

from pyrep.config.values import (
    Block,
    Items,
    Node,
    Place,
    Reader,
    Scalar,
    as_bool,
    as_count,
    as_duration,
    as_int,
    as_path,
    as_secret,
    as_secret_url,
    as_size,
    as_text,
    as_texts,
    at_least,
    choice,
    is_null,
    line_hint,
    more_than,
    refuse,
)
from pyrep.errors import ConfigError
from pyrep.log import FORMATS, parse_level
from pyrep.zstdpages import LEVELS

__all__ = [
    "DATABASE_KEYS",
    "EXCLUSIVE_WITH_URL",
    "GLOBAL_KEYS",
    "LOGGING_KEYS",
    "OPTION_KEYS",
    "REPLICA_KEYS",
    "SCHEME_TYPES",
    "TYPE_OPTIONS",
    "Key",
    "read_block",
]

_ZERO = timedelta()
_NOT_BUILT = "not built yet"
_LEFT_OVER = "left over from Litestream 0.3"
_RETENTION = "snapshot.retention and l0-retention decide what is deleted"
_MOST_LEVELS = 8  # level 9 holds the snapshots


@dataclass(frozen=True, slots=True)
class Key:
    """Describe one key; ``quiet`` holds values that need no warning, as they are in effect."""

    read: Reader
    why: str = ""
    policy: str = ""
    quiet: tuple[object, ...] = ()


def _unbuilt(read: Reader, policy: str, *quiet: object) -> Key:
    return Key(read, _NOT_BUILT, policy, quiet)


def _left_over(policy: str) -> Key:
    return Key(_anything, _LEFT_OVER, policy)


def _anything(node: Node, place: Place) -> object:
    return node


def read_block(node: Node, keys: Mapping[str, Key], place: Place) -> dict[str, object]:
    """Read a mapping: the values of the keys that were given, warnings noted.

    A key without a value counts as not given.

    :raises ConfigError: unknown key or wrong value
    """
    if is_null(node):
        return {}
    if not isinstance(node, Block):
        raise refuse("must be a mapping", node, place)
    values: dict[str, object] = {}
    for name, child in node.nodes.items():
        key = keys.get(name)
        if key is None:
            raise _unknown(name, node, keys, place)
        if is_null(child):
            continue
        value = values[name] = key.read(child, place.at(name))
        if key.policy and value not in key.quiet:
            place.notes.add(place.at(name).field, f"{key.why}; {key.policy}")
    return values


def _unknown(name: str, block: Block, keys: Mapping[str, Key], place: Place) -> ConfigError:
    near = difflib.get_close_matches(name, keys, n=1)
    suggestion = f", did you mean '{near[0]}'?" if near else ""
    hint = line_hint(block.lines.get(name, 0))
    return ConfigError(f"unknown key{suggestion}", field=place.at(name).field, hint=hint)


def _block(keys: Mapping[str, Key]) -> Reader:
    return lambda node, place: read_block(node, keys, place)


def _levels(node: Node, place: Place) -> list[dict[str, object]]:
    if not isinstance(node, Items):
        raise refuse("must be a list", node, place)
    if len(node.nodes) > _MOST_LEVELS:
        raise refuse(f"must be at most {_MOST_LEVELS} levels", node, place)
    return [_level(item, place.nth(i)) for i, item in enumerate(node.nodes)]


def _level(node: Node, place: Place) -> dict[str, object]:
    values = read_block(node, {"interval": Key(_positive)}, place)
    if "interval" not in values:
        _positive(Scalar("0", line=node.line), place.at("interval"))
    return values


def _log_level(node: Node, place: Place) -> str:
    text = as_text(node, place)
    try:
        parse_level(text)
    except ValueError as exc:
        raise refuse(str(exc), node, place) from None
    return text.upper()


def _http_url(node: Node, place: Place) -> object:
    text = as_text(node, place)
    if text and not text.startswith(("http://", "https://")):
        raise refuse("must be a valid HTTP(S) URL", node, place, hidden=True)
    return as_secret_url(node, place) if text else None


def _age(node: Node, place: Place) -> None:
    """Refuse every key of age: data that was meant to be encrypted must not leave as it is."""
    parts = node.nodes.values() if isinstance(node, Block) else (node,)
    for part in parts:
        if is_null(part) or (isinstance(part, Items | Block) and not part.nodes):
            continue
        raise ConfigError(
            "age encryption is not supported",
            field=place.field,
            hint="Remove the key, and use encryption at rest of the storage if you need it.",
        )


def _zstd_level(node: Node, place: Place) -> int:
    value = as_int(node, place)
    if value not in LEVELS:
        raise refuse(f"must be from {LEVELS[0]} to {LEVELS[-1]}", node, place)
    return value


def _nodes(node: Node, place: Place) -> tuple[Node, ...]:
    if isinstance(node, Scalar | Block):
        raise refuse("must be a list", node, place)
    return node.nodes


_positive = more_than(_ZERO, as_duration)
_not_negative = at_least(_ZERO, as_duration, "must not be negative")

LOGGING_KEYS: Mapping[str, Key] = {
    "level": Key(_log_level),
    "type": Key(choice(*FORMATS)),
    "stderr": Key(as_bool),
    "source": Key(as_bool),
}
_SNAPSHOT_KEYS = {"interval": Key(_positive), "retention": Key(_positive)}
_SOCKET_KEYS = {
    "enabled": _unbuilt(as_bool, "no control socket is opened", False),
    "path": Key(as_path),
    "permissions": Key(as_int),
}
_COMMON_KEYS: Mapping[str, Key] = {
    "sync-interval": Key(_positive),
    "validation-interval": _left_over("replicas are not validated on a schedule"),
    "max-sync-ltx-files": _unbuilt(
        at_least(0, as_int), "all pending files are uploaded in order, without a batch size"
    ),
    "auto-recover": _unbuilt(
        as_bool, "a broken or missing local state is always replaced by a comparison of all pages"
    ),
    "age": Key(_age),
    "compression": Key(choice("lz4", "zstd")),
    "compression-level": Key(_zstd_level),
    "requests-per-second": Key(as_count),
    "bytes-per-second": Key(more_than(0, as_size)),
}
REPLICA_KEYS: Mapping[str, Key] = {
    "type": Key(as_text),
    "path": Key(as_text),
    "url": Key(as_secret_url),
    "name": _left_over("a database has one replica, which needs no name"),
    "retention": _left_over(_RETENTION),
    "retention-check-interval": _left_over(_RETENTION),
    "snapshot-interval": _left_over("snapshot.interval decides when snapshots are made"),
    **_COMMON_KEYS,
}
OPTION_KEYS: Mapping[str, Key] = {
    "access-key-id": Key(as_text),
    "account-key": Key(as_secret),
    "account-name": Key(as_text),
    "bucket": Key(as_text),
    "client-cert": Key(as_text),
    "client-key": Key(as_text),
    "concurrency": Key(at_least(0, as_int)),
    "concurrent-writes": Key(as_bool),
    "connection-string": Key(as_secret),
    "creds": Key(as_text),
    "endpoint": Key(as_text),
    "force-path-style": Key(as_bool),
    "host": Key(as_text),
    "host-key": Key(as_text),
    "insecure-host-key": Key(as_bool),
    "jwt": Key(as_secret),
    "key-path": Key(as_text),
    "max-reconnects": Key(as_int),
    "nkey": Key(as_secret),
    "part-size": Key(as_size),
    "password": Key(as_secret),
    "reconnect-wait": Key(_not_negative),
    "region": Key(as_text),
    "require-content-md5": Key(as_bool),
    "root-cas": Key(as_texts),
    "sas-token": Key(as_secret),
    "secret-access-key": Key(as_secret),
    "seed": Key(as_secret),
    "sign-payload": Key(as_bool),
    "skip-verify": Key(as_bool),
    "sse-customer-algorithm": Key(as_text),
    "sse-customer-key": Key(as_secret),
    "sse-customer-key-path": Key(as_text),
    "sse-kms-key-id": Key(as_text),
    "storage-class": Key(as_text),
    "timeout": Key(_not_negative),
    "tls": Key(as_bool),
    "token": Key(as_secret),
    "user": Key(as_text),
    "username": Key(as_text),
    "webdav-password": Key(as_secret),
    "webdav-url": Key(as_secret_url),
    "webdav-username": Key(as_text),
}
TYPE_OPTIONS: Mapping[str, frozenset[str]] = {
    kind: frozenset(names.split())
    for kind, names in {
        "file": "",
        "s3": "access-key-id bucket concurrency endpoint force-path-style part-size region "
        "require-content-md5 secret-access-key sign-payload skip-verify sse-customer-algorithm "
        "sse-customer-key sse-customer-key-path sse-kms-key-id storage-class",
        "gs": "bucket client-cert client-key endpoint root-cas skip-verify",
        "abs": "account-key account-name bucket client-cert client-key connection-string endpoint "
        "root-cas sas-token skip-verify",
        "sftp": "concurrent-writes host host-key insecure-host-key key-path password user",
        "webdav": "client-cert client-key root-cas skip-verify webdav-password webdav-url "
        "webdav-username",
        "nats": "bucket client-cert client-key creds jwt max-reconnects nkey password "
        "reconnect-wait root-cas seed timeout tls token username",
        "oss": "access-key-id bucket client-cert client-key concurrency endpoint part-size region "
        "root-cas secret-access-key skip-verify",
    }.items()
}
SCHEME_TYPES: Mapping[str, str] = {kind: kind for kind in TYPE_OPTIONS} | {"webdavs": "webdav"}
# What a url already says; the names appear in messages in this order.
EXCLUSIVE_WITH_URL: Mapping[str, tuple[str, ...]] = {
    "file": ("path",),
    "s3": ("path", "bucket"),
    "gs": ("path", "bucket"),
    "abs": ("path", "bucket"),
    "sftp": ("host", "path"),
    "webdav": ("webdav-url", "path"),
    "nats": (),
    "oss": ("path", "bucket"),
}
DATABASE_KEYS: Mapping[str, Key] = {
    "path": Key(as_text),
    "dir": Key(as_text),
    "directory": Key(as_text),
    "pattern": Key(as_text),
    "recursive": Key(as_bool),
    "watch": Key(as_bool),
    "snapshot": Key(_block(_SNAPSHOT_KEYS)),
    "meta-path": Key(as_path),
    "meta-dir": Key(as_path),
    "monitor-interval": Key(as_duration),
    "checkpoint-interval": Key(_not_negative),
    "busy-timeout": Key(_not_negative),
    "min-checkpoint-page-count": Key(more_than(0, as_int)),
    "max-checkpoint-page-count": _left_over("checkpoints never wait for readers or writers"),
    "truncate-page-n": Key(as_int),
    "max-sync-wal-bytes": Key(as_int),
    "restore-if-db-not-exists": Key(as_bool),
    "spool-limit": Key(more_than(0, as_size)),
    "idle-timeout": Key(_positive),
    "journal-mode": Key(choice("convert", "keep")),
    "same-host": Key(as_bool),
    "replica": Key(_anything),
    "replicas": Key(_nodes),
}
GLOBAL_KEYS: Mapping[str, Key] = {
    "dbs": Key(_nodes),
    "logging": Key(_block(LOGGING_KEYS)),
    "exec": Key(as_text),
    "addr": _unbuilt(as_text, "no metrics are served", ""),
    "mcp-addr": _unbuilt(as_text, "no MCP server is started", ""),
    "socket": Key(_block(_SOCKET_KEYS)),
    "levels": Key(_levels),
    "snapshot": Key(_block(_SNAPSHOT_KEYS)),
    "validation": _unbuilt(
        _block({"interval": Key(as_duration)}), "replicas are not validated on a schedule", {}
    ),
    "l0-retention": Key(_not_negative),
    "l0-retention-check-interval": Key(_positive),
    "verify-compaction": _unbuilt(
        as_bool,
        "every input is verified while it is compacted, the result is not read again",
        False,
    ),
    "retention": Key(_block({"enabled": Key(as_bool)})),
    "heartbeat-url": _unbuilt(_http_url, "no heartbeats are sent", None),
    "heartbeat-interval": _unbuilt(
        at_least(timedelta(minutes=1), as_duration, "must be at least 1 minute"),
        "no heartbeats are sent",
    ),
    "shutdown-sync-timeout": Key(at_least(_ZERO, as_duration)),
    "shutdown-sync-interval": Key(_positive),
    "state-dir": Key(as_path),
    "max-attached": Key(as_count),
    "reconcile-interval": Key(_positive),
    "spool-limit-total": Key(more_than(0, as_size)),
    **_COMMON_KEYS,
    **OPTION_KEYS,
}
