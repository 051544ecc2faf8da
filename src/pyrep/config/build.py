"""From the nodes of a configuration file to the values of the model, with every conflict found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from pyrep.config.keys import (
    DATABASE_KEYS,
    EXCLUSIVE_WITH_URL,
    GLOBAL_KEYS,
    OPTION_KEYS,
    REPLICA_KEYS,
    SCHEME_TYPES,
    TYPE_OPTIONS,
    read_block,
)
from pyrep.config.model import (
    CompactionLevel,
    Config,
    DatabaseConfig,
    LoggingConfig,
    ReplicaConfig,
    RetentionConfig,
    SecretURL,
    SnapshotConfig,
    SocketConfig,
    ValidationConfig,
    redact_url,
)
from pyrep.config.paths import compile_pattern, expand_path
from pyrep.config.values import Block, Node, Notes, Place, Scalar, is_null, line_hint
from pyrep.errors import ConfigError
from pyrep.storage.registry import is_url, parse_url
from pyrep.zstdpages import DEFAULT_LEVEL

__all__ = ["build_config", "with_entry", "without_entry"]

# Settings that a replica takes over from the top of the file if it does not have them itself.
_INHERITED = (frozenset(REPLICA_KEYS) & frozenset(GLOBAL_KEYS)) | frozenset(OPTION_KEYS)
_REPLICA_FIELDS = (
    "sync-interval",
    "max-sync-ltx-files",
    "auto-recover",
    "compression",
    "compression-level",
    "requests-per-second",
    "bytes-per-second",
)
_REPLICA_TABLE = {**REPLICA_KEYS, **OPTION_KEYS}
_DATABASE_FIELDS = frozenset(DATABASE_KEYS) - frozenset(
    ("path", "dir", "directory", "snapshot", "max-checkpoint-page-count", "replica", "replicas")
)
_FROM_URL = {"s3": "bucket", "gs": "bucket", "abs": "bucket", "oss": "bucket", "nats": "bucket"}
_FROM_URL |= {"sftp": "host", "webdav": "webdav-url"}


def build_config(root: Node, notes: Notes, *, source: Path | None, state_dir: Path) -> Config:
    """Check a whole file and return what it means; ``state_dir`` is the default of that key.

    :raises ConfigError: naming the field, or the entry as ``database config #N``
    """
    top = Place("", notes)
    values = read_block(root, GLOBAL_KEYS, top)
    inherited = {key: values[key] for key in _INHERITED & values.keys()}
    snapshot = _snapshot(values, SnapshotConfig())
    blocks = [_database_block(node, i, top) for i, node in enumerate(_nodes(values), start=1)]
    dbs = [_entry(block, i, inherited, snapshot, top) for i, block in enumerate(blocks, start=1)]
    fields: dict[str, Any] = {_field(key): value for key, value in values.items() if _is_plain(key)}
    fields |= _sections(values)
    fields |= {"snapshot": snapshot, "inherited": inherited}
    own: Path = fields.setdefault("state_dir", state_dir)
    return Config(source=source, dbs=_with_own(dbs, own), warnings=notes.lines(), **fields)


def with_entry(config: Config, node: Node, notes: Notes) -> Config:
    """Return a configuration with one entry of ``dbs`` more.

    :raises ConfigError: it is wrong, or there already
    """
    index, top = len(config.dbs) + 1, Place("", notes)
    block = _database_block(node, index, top)
    new = _entry(block, index, config.inherited, config.snapshot, top)
    for entry in config.dbs:
        if (entry.path, entry.dir, entry.pattern) == (new.path, new.dir, new.pattern):
            raise ConfigError(f"{new.path or new.dir}: is in the configuration already")
    return replace(config, dbs=_with_own([*config.dbs, new], config.state_dir))


def without_entry(config: Config, path: Path) -> Config:
    """Return a configuration without the entries of a database or directory.

    :raises ConfigError: no entry names it
    """
    left = [entry for entry in config.dbs if path not in (entry.path, entry.dir)]
    if len(left) == len(config.dbs):
        raise ConfigError(
            f"{path}: is no entry of the configuration",
            hint="A database of a directory ends with its file, or with the directory's entry.",
        )
    numbered = [replace(entry, index=index) for index, entry in enumerate(left, start=1)]
    return replace(config, dbs=_with_own(numbered, config.state_dir))


def _entry(
    block: Mapping[str, object],
    index: int,
    inherited: Mapping[str, object],
    snapshot: SnapshotConfig,
    top: Place,
) -> DatabaseConfig:
    database = _database(block, index, inherited, top)
    return replace(database, snapshot=_snapshot(block, snapshot))


def _with_own(dbs: list[DatabaseConfig], state_dir: Path) -> tuple[DatabaseConfig, ...]:
    """Tell each directory what is pyrep's own, wherever an entry puts it."""
    excluded = {state_dir: None}
    excluded |= {entry.meta_path / "pyrep": None for entry in dbs if entry.path and entry.meta_path}
    roots = {entry.meta_dir: None for entry in dbs if entry.meta_dir}
    return tuple(
        replace(entry, excluded=tuple(excluded), state_roots=tuple(roots)) if entry.dir else entry
        for entry in dbs
    )


def _nodes(values: Mapping[str, object]) -> tuple[Node, ...]:
    nodes = values.get("dbs", ())
    return nodes if isinstance(nodes, tuple) else ()


def _as(value: object, kind: type[Any]) -> Any:
    """Return a value that a reader of that kind has made."""
    if not isinstance(value, kind):
        raise TypeError(f"{value!r} is no {kind.__name__}")
    return value


def _field(key: str) -> str:
    return key.replace("-", "_")


def _is_plain(key: str) -> bool:
    sections = ("dbs", "logging", "socket", "levels", "snapshot", "validation", "retention")
    return key not in sections and key not in _INHERITED


def _sections(values: Mapping[str, object]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    kinds = {
        "logging": LoggingConfig,
        "socket": SocketConfig,
        "validation": ValidationConfig,
        "retention": RetentionConfig,
    }
    for name, kind in kinds.items():
        section: Mapping[str, object] = _as(values.get(name, {}), dict)
        found[name] = kind(**{_field(key): value for key, value in section.items()})
    if "levels" in values:
        found["levels"] = tuple(
            CompactionLevel(level=i, interval=item["interval"])
            for i, item in enumerate(_as(values["levels"], list), start=1)
        )
    return found


def _snapshot(block: Mapping[str, object], default: SnapshotConfig) -> SnapshotConfig:
    """Return the snapshot schedule of a block; what it does not say is the default's."""
    section: Mapping[str, timedelta] = _as(block.get("snapshot", {}), dict)
    return replace(default, **section)


def _database_block(node: Node, index: int, top: Place) -> dict[str, object]:
    """Read one entry of ``dbs`` and settle what it is: a path or a directory."""
    place = Place(_label(node, index), top.notes)
    block = read_block(node, DATABASE_KEYS, place)
    if "directory" in block and "dir" in block:
        raise _conflict(index, "cannot specify both 'dir' and 'directory'")
    if "directory" in block:
        block["dir"] = block.pop("directory")
    has_dir = bool(block.get("dir"))
    for bad, message in (
        (has_dir and block.get("path"), "cannot specify both 'path' and 'dir'"),
        (not has_dir and not block.get("path"), "must specify either 'path' or 'dir'"),
        (has_dir and not block.get("pattern"), "'pattern' is required when using 'dir'"),
        (not has_dir and block.get("watch"), "'watch' can only be enabled with a directory"),
        (not has_dir and "meta-dir" in block, "'meta-dir' can only be used with a directory"),
        (not has_dir and "pattern" in block, "'pattern' can only be used with a directory"),
        (not has_dir and block.get("recursive"), "'recursive' can only be used with a directory"),
        (
            "meta-dir" in block and "meta-path" in block,
            "cannot specify both 'meta-path' and 'meta-dir'",
        ),
    ):
        if bad:
            raise _conflict(index, message)
    return block


def _conflict(index: int, message: str, hint: str = "") -> ConfigError:
    return ConfigError(f"database config #{index}: {message}", hint=hint)


def _label(node: Node, index: int) -> str:
    """Return the entry's name in field paths: what it replicates, else its place."""
    if isinstance(node, Block):
        for key in ("path", "dir", "directory"):
            child = node.nodes.get(key)
            if isinstance(child, Scalar) and child.text:
                return f"dbs[{child.text}]"
    return f"dbs[#{index}]"


def _database(
    block: Mapping[str, object], index: int, inherited: Mapping[str, object], top: Place
) -> DatabaseConfig:
    target = "path" if block.get("path") else "dir"
    text = str(block[target])
    place = Place(f"dbs[{text}]", top.notes)
    fields: dict[str, Any] = {
        _field(key): value for key, value in block.items() if key in _DATABASE_FIELDS
    }
    try:
        fields[target] = Path(expand_path(text))
        compile_pattern(fields.get("pattern", ""))
    except ValueError as exc:
        raise _conflict(index, str(exc)) from None
    if target == "dir" and block.get("restore-if-db-not-exists"):
        note = "no effect on a directory; restore its databases with restore -all"
        place.notes.add(place.at("restore-if-db-not-exists").field, note)
    if block.get("truncate-page-n") == 0:
        del fields["truncate_page_n"]
    node, replica_place = _replica_node(block, index, place)
    replica = _replica(node, index, inherited, replica_place, is_dir=target == "dir")
    return DatabaseConfig(index=index, replica=replica, **fields)


def _replica_node(block: Mapping[str, object], index: int, place: Place) -> tuple[Node, Place]:
    """Return the one replica of an entry, from ``replica`` or from a ``replicas`` list of one."""
    replicas: tuple[Node, ...] = _as(block.get("replicas", ()), tuple)
    if "replica" in block and replicas:
        raise _conflict(index, "cannot specify 'replica' and 'replicas' on a database")
    if len(replicas) > 1:
        raise _conflict(index, "multiple replicas on a single database are no longer supported")
    if replicas and not is_null(replicas[0]):
        return replicas[0], place.at("replicas").nth(0)
    if "replica" not in block:
        raise _conflict(index, "must specify replica for database")
    node: Node = _as(block["replica"], object)
    return node, place.at("replica")


def _replica(
    node: Node, index: int, inherited: Mapping[str, object], place: Place, *, is_dir: bool
) -> ReplicaConfig:
    own = read_block(node, _REPLICA_TABLE, place)
    url = own.get("url")
    text = url.reveal() if isinstance(url, SecretURL) else ""
    kind = _replica_type(str(own.get("type", "")), text, index, place)
    known = TYPE_OPTIONS[kind]
    for key in own:
        if key in OPTION_KEYS and key not in known:
            raise _foreign_option(key, kind, node, place)
    exclusive = EXCLUSIVE_WITH_URL[kind] if text else ()
    _check_url(text, kind, own, exclusive, index)
    values = {
        key: value
        for key, value in inherited.items()
        if key not in exclusive and (key in known or key not in OPTION_KEYS)
    } | own
    path = str(own.get("path", ""))
    _check_required(kind, text, values, index, is_dir=is_dir)
    fields: dict[str, Any] = {_field(key): values[key] for key in _REPLICA_FIELDS if key in values}
    fields["compression_level"] = _compression_level(own, values, place)
    return ReplicaConfig(
        type=kind,
        path=expand_path(path) if kind == "file" and not text else path,
        url=SecretURL(text) if text else None,
        options={key: values[key] for key in sorted(known & values.keys())},
        **fields,
    )


def _compression_level(
    own: Mapping[str, object], values: Mapping[str, object], place: Place
) -> int | None:
    """Return the level of zstd, None for LZ4, which has none."""
    key = "compression-level"
    if values.get("compression") == "zstd":
        level: int = _as(values.get(key, DEFAULT_LEVEL), int)
        return level
    if key in own:
        raise ConfigError(
            "lz4 has no levels",
            field=place.at(key).field,
            hint="Set 'compression: zstd' beside it, or remove the key.",
        )
    return None


def _foreign_option(key: str, kind: str, node: Node, place: Place) -> ConfigError:
    types = [name for name, options in TYPE_OPTIONS.items() if key in options]
    line = node.lines.get(key, 0) if isinstance(node, Block) else 0
    return ConfigError(
        f"not a key of a {kind} replica (type: {' or '.join(types)})",
        field=place.at(key).field,
        hint=f"Set the replica's type, or remove the key. {line_hint(line)}".strip(),
    )


def _replica_type(name: str, url: str, index: int, place: Place) -> str:
    """Return the type: the URL's scheme, else ``type``, else ``file``."""
    if url and not is_url(url):
        raise _conflict(
            index,
            f"replica url scheme required: {redact_url(url)}",
            "Write it like file:///backups, or use the key 'path' for a directory.",
        )
    scheme = url.partition("://")[0].lower() if url else name or "file"
    kind = SCHEME_TYPES.get(scheme) if url or scheme in TYPE_OPTIONS else None
    if kind is None:
        hint = f"Known types are {', '.join(TYPE_OPTIONS)}."
        raise _conflict(index, f'unknown replica type in config: "{scheme}"', hint)
    if url and name and name != kind:
        place.notes.add(place.at("type").field, f"the url decides: this replica is of type {kind}")
    return kind


def _check_url(
    url: str, kind: str, own: Mapping[str, object], exclusive: tuple[str, ...], index: int
) -> None:
    for key in exclusive:
        if own.get(key):
            raise _conflict(index, f"cannot specify url & {key} for {kind} replica")
    path = str(own.get("path", ""))
    if is_url(path):
        raise _conflict(
            index,
            f"replica path cannot be a url: {redact_url(path)}",
            "Use the key 'url' for it instead of 'path'.",
        )
    if "#" in url:
        raise _conflict(
            index,
            f"replica url has a fragment: {redact_url(url)}",
            "Write %23 for a hash sign in a path.",
        )
    if url:
        try:
            parse_url(url)
        except ConfigError as exc:
            raise _conflict(index, exc.message, exc.hint) from None


def _check_required(
    kind: str, url: str, values: Mapping[str, object], index: int, *, is_dir: bool
) -> None:
    """Refuse a replica that names no place.

    An empty ``path`` of a file replica is allowed for a directory (its databases then go
    below the working directory), a missing one is not.
    """
    if kind == "file" and not url and not (values.get("path") or (is_dir and "path" in values)):
        raise _conflict(index, "file replica path required")
    required = [_FROM_URL[kind]] if kind in _FROM_URL else []
    if kind == "sftp":
        required.append("user")
    authority = url.partition("://")[2].partition("/")
    user, at, host = authority[0].rpartition("@")
    from_url = {"user": bool(at and user), "bucket": bool(host), "host": bool(host)}
    from_url |= {"webdav-url": bool(host)}
    if kind == "nats":
        from_url["bucket"] = bool(authority[2].strip("/"))
    for key in required:
        if not values.get(key) and not from_url[key]:
            raise _conflict(index, f"{key} required for {kind} replica")
