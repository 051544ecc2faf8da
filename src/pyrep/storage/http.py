"""What all storages that speak HTTP have in common: connections, bodies, ranges and times."""

from __future__ import annotations

import io
import re
import ssl
import threading
import urllib.request
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any, BinaryIO
from urllib.parse import urlsplit

import urllib3

from pyrep.clock import from_ms
from pyrep.errors import (
    ConfigError,
    ReplicaError,
    ReplicaPermanentError,
    ReplicaTemporaryError,
)
from pyrep.ltxfile import FileInfo
from pyrep.storage.budget import Budget
from pyrep.storage.checks import check_range
from pyrep.storage.object_url import TLS

__all__ = [
    "Answer",
    "Connections",
    "body_length",
    "format_time",
    "network_error",
    "open_body",
    "parse_size",
    "parse_time",
    "range_header",
    "read_answer",
    "short_text",
    "split_origin",
    "tls_context",
    "unreadable",
]

_READ_BUFFER = 64 << 10
_CONNECT_SECONDS = 10.0
_READ_SECONDS = 60.0
_CONNECTIONS = 32
_HOSTS = 64
_THREADS = 8
_MAX_DOCUMENT = 16 << 20
_MAX_ERROR = 64 << 10
_MESSAGE_CHARS = 200
_TLS_HINT = "Trust the endpoint's certificate with root-cas, or set skip-verify."
_TIME = re.compile(
    r"(\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d)(?:\.(\d+))?(Z|[-+]\d\d:\d\d)\Z", re.ASCII | re.IGNORECASE
)
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)\Z", re.ASCII)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Answer:
    """Hold a whole answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def tls_context(tls: TLS) -> ssl.SSLContext:
    """Return what a connection is secured with.

    :raises ConfigError: a file cannot be used
    """
    context = ssl.create_default_context()
    for path in tls.root_cas:
        _load("root-cas", path, context.load_verify_locations)
    if tls.client_key and not tls.client_cert:
        raise ConfigError("needs client-cert", field="client-key")
    if tls.client_cert:
        key = tls.client_key or None
        _load("client-cert", tls.client_cert, lambda path: context.load_cert_chain(path, key))
    if tls.skip_verify:
        urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _load(field: str, path: str, load: Callable[[str], object]) -> None:
    try:
        load(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"cannot be used: {reason}", field=field, value=path) from error


class Connections:
    """Send requests over pooled connections, through the environment's proxies.

    Each waits for its turn in the endpoint's budget, which also learns how the storage answers.
    Safe for several threads; nothing is connected before the first request.  ``settings`` are
    those of urllib3's pools, asked for when the first is made.
    """

    def __init__(
        self,
        settings: Callable[[], dict[str, Any]],
        budget: Budget,
        *,
        tls_hint: str = _TLS_HINT,
    ) -> None:
        self._settings = settings
        self._budget = budget
        self._tls_hint = tls_hint
        self._timeout = urllib3.Timeout(connect=_CONNECT_SECONDS, read=_READ_SECONDS)
        self._lock = threading.Lock()
        self._workers: ThreadPoolExecutor | None = None  # guarded by _lock
        self._managers: dict[str, urllib3.PoolManager] = {}  # by proxy; guarded by _lock
        self._routes: dict[str, tuple[urllib3.PoolManager, bool]] = {}  # by URL; guarded by _lock

    def send(
        self,
        op: str,
        where: str,
        method: str,
        base: str,
        target: str,
        headers: Mapping[str, str],
        body: bytes | BinaryIO = b"",
        *,
        urgent: bool = False,
    ) -> urllib3.BaseHTTPResponse:
        """Send a request; the answer, whatever its status, has its body still to read.

        ``base`` is scheme and host, ``target`` the encoded path with its query; ``op`` says in
        words what is done, ``where`` to which object.  An ``urgent`` one waits for no budget.

        :raises ReplicaTemporaryError: there was no answer
        :raises ReplicaThrottledError: the storage wants a long pause
        :raises ReplicaPermanentError: the endpoint's certificate is not trusted, or it is none
        """
        asked = self._budget.request(where, urgent=urgent)
        answer = self._send(op, where, method, base, target, headers, body)
        self._budget.answered(asked, answer.status, answer.headers)
        return answer

    def _send(
        self,
        op: str,
        where: str,
        method: str,
        base: str,
        target: str,
        headers: Mapping[str, str],
        body: bytes | BinaryIO,
    ) -> urllib3.BaseHTTPResponse:
        parts = urlsplit(base)
        try:
            manager, proxied = self._route(base)
            pool = manager.connection_from_host(parts.hostname or "", parts.port, parts.scheme)
            # The pool's own call leaves a path as it is; a manager's would clean it of "..".
            return pool.urlopen(
                method,
                base + target if proxied and parts.scheme == "http" else target,
                body=self._budget.body(where, body) if body else None,
                headers=dict(headers),
                retries=False,
                redirect=False,
                timeout=self._timeout,
                assert_same_host=False,
                preload_content=False,
                decode_content=False,
            )
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise network_error(where, op, error, self._tls_hint) from error
        except ValueError:  # it prints the header
            raise ReplicaPermanentError(
                f"{where}: cannot {op}: a credential has a character that no request can carry",
                hint="Look for a line break at the end of a key or token.",
            ) from None

    def manager(self, base: str) -> urllib3.PoolManager:
        """Return the pools that lead to a host, for a library that sends by itself."""
        return self._route(base)[0]

    def workers(self) -> ThreadPoolExecutor:
        """Return the threads for requests that run side by side, started at the first use."""
        with self._lock:
            if self._workers is None:
                self._workers = ThreadPoolExecutor(_THREADS, thread_name_prefix="storage")
            return self._workers

    def close(self) -> None:
        """Close idle connections and end the threads."""
        with self._lock:
            workers, self._workers = self._workers, None
            managers = list(self._managers.values())
            self._managers.clear()
            self._routes.clear()
        if workers is not None:
            workers.shutdown()
        for manager in managers:
            # Forgetting a pool closes it only when nobody refers to it any more.
            for pool in [manager.pools[key] for key in manager.pools.keys()]:  # noqa: SIM118
                pool.close()
            manager.clear()

    def _route(self, base: str) -> tuple[urllib3.PoolManager, bool]:
        """Return the pools to use for a host, and whether they lead through a proxy."""
        with self._lock:
            found = self._routes.get(base)
            if found is None:
                proxy = _proxy(base)
                manager = self._managers.get(proxy) or self._make_manager(proxy)
                self._managers[proxy] = manager
                found = self._routes[base] = (manager, bool(proxy))
            return found

    def _make_manager(self, proxy: str) -> urllib3.PoolManager:
        settings = {"num_pools": _HOSTS, "maxsize": _CONNECTIONS, **self._settings()}
        if proxy:
            return urllib3.ProxyManager(proxy, **settings)
        return urllib3.PoolManager(**settings)


def split_origin(url: str) -> tuple[str, str]:
    """Return scheme and host of a URL, and the rest."""
    parts = urlsplit(url)
    origin = f"{parts.scheme}://{parts.netloc}"
    return origin, url[len(origin) :]


def _proxy(base: str) -> str:
    """Return the proxy that the environment names for a URL, or an empty text."""
    parts = urlsplit(base)
    proxy = urllib.request.getproxies().get(parts.scheme, "")
    return "" if proxy and urllib.request.proxy_bypass(parts.netloc) else proxy


# --- answers --------------------------------------------------------------------------------------


def read_answer(
    response: urllib3.BaseHTTPResponse, where: str, op: str, *, head: bool = False
) -> Answer:
    """Read a whole answer and give its connection back.

    :raises ReplicaTemporaryError: it broke off, or is longer than any that makes sense
    """
    limit = _MAX_DOCUMENT if response.status // 100 == 2 else _MAX_ERROR
    try:
        body = b"" if head else response.read(limit + 1, decode_content=False)
    except (urllib3.exceptions.HTTPError, OSError) as error:
        response.close()
        raise network_error(where, op, error) from error
    if len(body) > limit:
        response.close()
        raise unreadable(where, op, f"it is longer than {limit} bytes")
    if response.length_remaining and not head:  # urllib3 tells only who reads once more
        response.close()
        raise unreadable(where, op, f"it ended {response.length_remaining} bytes early")
    response.release_conn()
    return Answer(response.status, response.headers, body)


def range_header(offset: int, size: int | None) -> dict[str, str]:
    """Return the header that asks for a range, none for a whole object."""
    if not offset and size is None:
        return {}
    return {"range": f"bytes={offset}-{'' if size is None else offset + size - 1}"}


def open_body(
    response: urllib3.BaseHTTPResponse,
    where: str,
    budget: Budget,
    info: FileInfo,
    offset: int,
    size: int | None,
) -> BinaryIO:
    """Return the body of a 200 or 206 as a stream of just the bytes that were asked for.

    :raises LTXCorruptError: the range lies past the file's end
    :raises ReplicaTemporaryError: these are other bytes
    """
    try:
        length = _promised_length(where, response.status, response.headers, info, offset, size)
    except BaseException:
        response.close()
        raise
    return io.BufferedReader(_BodyReader(response, where, length, budget), _READ_BUFFER)


class _BodyReader(io.RawIOBase):
    """Read a promised number of bytes from a response that it owns, as a budget allows."""

    def __init__(
        self, response: urllib3.BaseHTTPResponse, where: str, length: int, budget: Budget
    ) -> None:
        super().__init__()
        self._budget = budget
        self._response = response
        self._where = where
        self._left = length

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        view = memoryview(buffer).cast("B")[: self._left]
        if not view:
            return 0
        try:
            data = self._response.read(len(view), decode_content=False)
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise network_error(self._where, "read", error) from error
        if not data:
            raise ReplicaTemporaryError(
                f"{self._where}: cannot read: the answer ended {self._left} bytes early"
            )
        self._budget.spend(self._where, len(data))
        view[: len(data)] = data
        self._left -= len(data)
        return len(data)

    def close(self) -> None:
        if not self.closed:
            if self._left:
                self._response.close()  # the connection still holds what was not read
            self._response.release_conn()
        super().close()


def body_length(where: str, headers: Mapping[str, str]) -> int:
    """Return how long an answer says that its body is.

    :raises ReplicaTemporaryError: it does not say it
    """
    text = headers.get("content-length", "")
    if not text.isdecimal():
        raise ReplicaTemporaryError(f"{where}: cannot read: the answer does not say its length")
    return int(text)


def _promised_length(
    where: str,
    status: int,
    headers: Mapping[str, str],
    info: FileInfo,
    offset: int,
    size: int | None,
) -> int:
    """Return how many bytes the body of a 200 or 206 is to have; check that they are those wanted.

    :raises LTXCorruptError: the range lies past the file's end
    :raises ReplicaTemporaryError: these are other bytes
    """
    length = body_length(where, headers)
    if status == 200:
        if offset or (size is not None and size != length):
            raise ReplicaTemporaryError(
                f"{where}: cannot read: the storage gave {length} bytes instead of a range"
            )
        return length
    text = headers.get("content-range", "")
    match = _CONTENT_RANGE.match(text)
    if match is None:
        raise ReplicaTemporaryError(f"{where}: cannot read: the storage gave range {text!r}")
    first, last, total = map(int, match.groups())
    wanted = check_range(where, info, offset, size, total)
    if first != offset or last != offset + wanted - 1 or length != wanted:
        raise ReplicaTemporaryError(
            f"{where}: cannot read: the storage gave range {text!r} with {length} bytes, "
            f"{wanted} from {offset} were wanted"
        )
    return wanted


# --- errors ---------------------------------------------------------------------------------------


def network_error(where: str, op: str, error: Exception, tls_hint: str = _TLS_HINT) -> ReplicaError:
    """Return the error for a request that got no answer, or lost it half-way."""
    message = f"{where}: cannot {op}: {_reason(error)}"
    if isinstance(error, urllib3.exceptions.SSLError) and "CERTIFICATE_VERIFY_FAILED" in str(error):
        return ReplicaPermanentError(message, hint=tls_hint)
    if isinstance(error, urllib3.exceptions.LocationValueError):
        return ReplicaPermanentError(message, hint="Check the replica's endpoint.")
    return ReplicaTemporaryError(message)


def unreadable(where: str, op: str, reason: object) -> ReplicaError:
    """Return the error for an answer that makes no sense."""
    return ReplicaTemporaryError(
        f"{where}: cannot {op}: the storage's answer is not readable: {reason}"
    )


def short_text(text: str) -> str:
    """Return what a server says in one line that fits into a message."""
    return " ".join(text.split())[:_MESSAGE_CHARS]


def _reason(error: Exception) -> str:
    """Return the cause in one line; urllib3 prints objects before it."""
    kinds = urllib3.exceptions
    if isinstance(error, kinds.NameResolutionError):
        return "the endpoint's name cannot be resolved"
    unreachable = isinstance(error, kinds.NewConnectionError)  # a subclass, and no time-out
    if isinstance(error, kinds.ConnectTimeoutError) and not unreachable:
        return "the endpoint does not answer"
    if isinstance(error, kinds.ReadTimeoutError):
        return "the endpoint stopped answering"
    text = " ".join(str(error).split())
    return text.rpartition(">: ")[2] or type(error).__name__


# --- times --------------------------------------------------------------------------------------


def format_time(ms: int) -> str:
    """Return a time as Go's RFC3339Nano."""
    moment = from_ms(ms)
    fraction = f".{ms % 1000:03d}".rstrip("0") if ms % 1000 else ""
    return f"{moment:%Y-%m-%dT%H:%M:%S}{fraction}Z"


def parse_size(text: str) -> int:
    """Read a number of bytes.

    :raises ValueError: it is none
    """
    if not (text.isascii() and text.isdecimal()):
        raise ValueError(f"{text[:_MESSAGE_CHARS]!r} is no number of bytes")
    return int(text)


def parse_time(text: str) -> int | None:
    """Read RFC 3339 or an HTTP date; return milliseconds since the epoch, None for other text."""
    match = _TIME.match(text)
    try:
        if match is None:
            moment, fraction = parsedate_to_datetime(text), ""
        else:
            zone = match[3].upper().replace("Z", "+00:00")
            moment, fraction = datetime.fromisoformat(match[1] + zone), match[2] or ""
    except (ValueError, TypeError):
        return None
    if moment.tzinfo is None:
        return None
    whole = (moment - _EPOCH) // timedelta(seconds=1) * 1000
    return max(0, whole + int(f"{fraction:0<3}"[:3]))
