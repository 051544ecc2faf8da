"""Log lines as ``key=value`` text, JSON or short coloured text, and the rules against floods.

Modules log through ``logging.getLogger(__name__)`` with attributes in ``extra``; the fixed
names are ``db``, ``replica``, ``level``, ``txid``, ``op`` and ``error``.  The severity already
owns the key ``level`` of a line, so the attribute ``level`` (of LTX files) is written as
``ltx_level``.  A name or message that contains control characters, or bytes that are no
UTF-8, is escaped: one record is always one line.
"""

from __future__ import annotations

import json
import logging
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TextIO

__all__ = [
    "FORMATS",
    "TRACE",
    "LoggingConfig",
    "OncePer",
    "RateLimiter",
    "parse_level",
    "setup",
]

TRACE = 5
FORMATS = ("text", "json", "pretty")
_LEVELS = {
    "TRACE": TRACE,
    "DEBUG": logging.DEBUG,
    "INFO": logging.INFO,
    "WARN": logging.WARNING,
    "WARNING": logging.WARNING,
    "ERROR": logging.ERROR,
}
_NAMES = {TRACE: "TRACE", 10: "DEBUG", 20: "INFO", 30: "WARN", 40: "ERROR", 50: "ERROR"}
_SHORT = {"TRACE": "TRC", "DEBUG": "DBG", "INFO": "INF", "WARN": "WRN", "ERROR": "ERR"}
_COLOURS = {"INFO": "\x1b[92m", "WARN": "\x1b[93m", "ERROR": "\x1b[91m"}
_FAINT, _RESET = "\x1b[2m", "\x1b[0m"
_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}
_PACKAGE = "pyrep"
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggingConfig:
    """Say how to log; the names of ``level`` and ``type`` are case-insensitive."""

    level: str = "INFO"
    type: str = "text"
    stderr: bool = False
    source: bool = False


def parse_level(text: str) -> int:
    """Return the number of a severity's name; raise ``ValueError`` for an unknown one."""
    level = _LEVELS.get(text.strip().upper())
    if level is None:
        raise ValueError(f"unknown log level {text!r} (TRACE, DEBUG, INFO, WARN or ERROR)")
    return level


def setup(
    config: LoggingConfig,
    *,
    level: str | None = None,
    environ: Mapping[str, str] | None = None,
    stream: TextIO | None = None,
) -> logging.Handler:
    """Send the package's log to stdout or stderr, in place of an earlier call's handler.

    ``level`` beats ``$LOG_LEVEL``, which beats the configuration.  An unknown ``$LOG_LEVEL``
    is ignored with a warning, since other programs read that variable too; any other wrong
    name raises ``ValueError``.
    """
    if config.type.lower() not in FORMATS:
        raise ValueError(f"unknown log type {config.type!r} (text, json or pretty)")
    number = parse_level(level or config.level)
    env_level = (os.environ if environ is None else environ).get("LOG_LEVEL", "")
    env_error = ""
    if env_level and not level:
        try:
            number = parse_level(env_level)
        except ValueError as exc:
            env_error = str(exc)
    stream = stream or (sys.stderr if config.stderr else sys.stdout)
    handler = _Handler(stream)
    handler.setFormatter(_formatter(config, stream))
    root = logging.getLogger()
    for old in [old for old in root.handlers if isinstance(old, _Handler)]:
        root.removeHandler(old)
    root.addHandler(handler)
    logging.getLogger(_PACKAGE).setLevel(number)
    if env_error:
        _log.warning("ignoring LOG_LEVEL", extra={"error": env_error})
    return handler


class _Handler(logging.StreamHandler[TextIO]):
    """Be recognizable, so that a second ``setup`` replaces the first."""


def _formatter(config: LoggingConfig, stream: TextIO) -> logging.Formatter:
    kind = config.type.lower()
    if kind == "json":
        return _JsonFormatter(config.source)
    if kind == "pretty":
        return _PrettyFormatter(config.source, colour=stream.isatty())
    return _TextFormatter(config.source)


def _attributes(record: logging.LogRecord) -> dict[str, object]:
    """Return what ``extra`` brought, in its order, and the traceback if there is one."""
    found: dict[str, object] = {}
    for key, value in record.__dict__.items():
        if key not in _STANDARD:
            found["ltx_level" if key == "level" else key] = value
    if record.exc_info:
        found["traceback"] = logging.Formatter().formatException(record.exc_info)
    return found


def _severity(record: logging.LogRecord) -> str:
    return _NAMES.get(record.levelno, record.levelname)


def _source(record: logging.LogRecord) -> str:
    """Return file and line, the file relative to the directory of its top-level package."""
    path = record.pathname
    depth = record.name.count(".") + 1
    parts = path.split(os.sep)
    return f"{'/'.join(parts[-depth - (parts[-1] == '__init__.py') :])}:{record.lineno}"


def _utc(record: logging.LogRecord) -> str:
    moment = datetime.fromtimestamp(record.created, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _plain(value: object) -> object:
    """Return what JSON can hold; anything else as text."""
    if value is None or type(value) in (bool, int):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    return str(value)


def _quoted(value: object) -> str:
    """Return the value as one word, quoted and escaped where that is needed."""
    text = str(value)
    if text and text.isprintable() and not any(c in ' ="' for c in text):
        return text
    return json.dumps(text, ensure_ascii=not text.isprintable())


class _TextFormatter(logging.Formatter):
    """Write ``time=… level=INFO msg="…" key=value``."""

    def __init__(self, source: bool) -> None:
        super().__init__()
        self._source = source

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line of key=value pairs."""
        pairs: dict[str, object] = {"time": _utc(record), "level": _severity(record)}
        if self._source:
            pairs["source"] = _source(record)
        pairs["msg"] = record.getMessage()
        pairs |= _attributes(record)
        return " ".join(f"{key}={_quoted(value)}" for key, value in pairs.items())


class _JsonFormatter(logging.Formatter):
    """Write one JSON object per line."""

    def __init__(self, source: bool) -> None:
        super().__init__()
        self._source = source

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one JSON object."""
        pairs: dict[str, object] = {"time": _utc(record), "level": _severity(record)}
        if self._source:
            pairs["source"] = _source(record)
        pairs["msg"] = record.getMessage()
        pairs |= {key: _plain(value) for key, value in _attributes(record).items()}
        return json.dumps(pairs)


class _PrettyFormatter(logging.Formatter):
    """Write ``15:04:05 INF message key=value`` in local time, in colour on a terminal."""

    def __init__(self, source: bool, *, colour: bool) -> None:
        super().__init__()
        self._source = source
        self._colour = colour

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line for people."""
        severity = _severity(record)
        clock = datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S")
        message = record.getMessage()
        words = [
            self._paint(_FAINT, clock),
            self._paint(_COLOURS.get(severity, _FAINT), _SHORT.get(severity, severity)),
            *([self._paint(_FAINT, _source(record))] if self._source else []),
            message if message.isprintable() else _quoted(message),
        ]
        for key, value in _attributes(record).items():
            words.append(self._paint(_FAINT, f"{key}=") + _quoted(value))
        return " ".join(words)

    def _paint(self, colour: str, text: str) -> str:
        return f"{colour}{text}{_RESET}" if self._colour else text


@dataclass(slots=True)
class _Run:
    """Remember a run of equal failures."""

    logged_at: float
    silent: int = 0


class RateLimiter:
    """Keep a repeated error to one line per ``interval`` seconds; safe for several threads.

    A key names the error as its reader sees it, such as (tenant, operation).
    """

    def __init__(self, interval: float = 30.0, now: Callable[[], float] = time.monotonic) -> None:
        self._interval = interval
        self._now = now
        self._lock = threading.Lock()
        self._runs: dict[Hashable, _Run] = {}

    def failed(self, key: Hashable) -> int:
        """Note a failure; return how many failures the line stands for, 0: write no line."""
        with self._lock:
            now = self._now()
            run = self._runs.get(key)
            if run is None:
                self._runs[key] = _Run(now)
                return 1
            run.silent += 1
            if now - run.logged_at < self._interval:
                return 0
            count, run.silent, run.logged_at = run.silent, 0, now
            return count

    def recovered(self, key: Hashable) -> bool:
        """Note a success; return whether it ends a run of failures (say so, once)."""
        with self._lock:
            return self._runs.pop(key, None) is not None


class OncePer:
    """Let each cause through once per subject; safe for several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen: dict[Hashable, set[Hashable]] = {}

    def first(self, subject: Hashable, cause: Hashable) -> bool:
        """Return whether this cause is new for this subject, and remember it."""
        with self._lock:
            causes = self._seen.setdefault(subject, set())
            if cause in causes:
                return False
            causes.add(cause)
            return True

    def forget(self, subject: Hashable, cause: Hashable | None = None) -> None:
        """Let a cause (None: all causes) of a subject through again."""
        with self._lock:
            if cause is None:
                self._seen.pop(subject, None)
            elif subject in self._seen:
                self._seen[subject].discard(cause)
