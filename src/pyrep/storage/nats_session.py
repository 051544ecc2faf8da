"""One connection for a NATS account, and its thread, shared by all replicas that agree in it.

The client library is made of coroutines: they run in one thread for the connection, and each of
our threads waits there for the answer to its own call.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future
from typing import Any, TypeVar

from nats.aio.client import Client
from nats.errors import Error as NATSError
from nats.errors import NoServersError, SecureConnWantedError
from nats.js import JetStreamContext
from nats.js.errors import APIError

from pyrep.errors import ConfigError, ReplicaError, ReplicaPermanentError, ReplicaTemporaryError
from pyrep.storage.http import tls_context
from pyrep.storage.nats_config import NATSAccount
from pyrep.storage.nats_creds import credentials, seed_of
from pyrep.storage.shared import Current

__all__ = ["NATSSession", "translated"]

log = logging.getLogger(__name__)

T = TypeVar("T")

_JOIN_SECONDS = 5.0
_CANCEL_SECONDS = 0.1
_CALL_SECONDS = 120.0  # longest call: a window of an upload, over a slow line
_STREAM_NOT_FOUND = 10059
_PERMANENT = frozenset((_STREAM_NOT_FOUND, 10039, 10054, 10071, 10076))
_FULL = frozenset((10023, 10028, 10047, 10077))

_DENIED = "permissions violation"
_DENIED_HINT = "Allow the user all that docs/storage.md lists for nats."
_TLS_HINT = "Give the server a certificate, or take tls, root-cas and client-cert out."


class _ConnectError(Exception):
    """Say why there is no connection; each caller gets an error with its own object's name."""

    def __init__(self, message: str, *, permanent: bool = False, hint: str = "") -> None:
        super().__init__(message)
        self.permanent = permanent
        self.hint = hint


class _LostError(Exception):
    """Say that the connection was lost before the answer came."""


class _Client(Client):
    """Connect as the library does, but tell no secret to a server that takes no TLS if we want it.

    The library goes on in clear text then, so whoever stands in between could ask for that.
    """

    wants_tls = False

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        if initial_connection and self.wants_tls and not info.get("tls_required"):
            if not info.get("tls_available"):
                raise SecureConnWantedError  # one of the library's, so that it tries again
            info["tls_required"] = True
        await super()._process_info(info, initial_connection)


class NATSSession:
    """Run calls on the connection; safe for several threads."""

    def __init__(self, account: NATSAccount) -> None:
        # What goes wrong with a connection comes out as our error.
        logging.getLogger("nats").setLevel(logging.CRITICAL)
        self._current = Current(lambda: _Connection(account))

    def run(self, op: str, where: str, work: Callable[[JetStreamContext], Awaitable[T]]) -> T:
        """Call a coroutine function on the connection's thread and return its result.

        ``op`` says in words what is done, ``where`` to which object.

        :raises ReplicaTemporaryError: no connection, or it was lost, or there was no answer
        :raises ReplicaPermanentError: we are not let in, or what is asked for cannot be
        """
        with translated(op, where):
            connection = self._current.get()
            if connection.is_closed:
                self._current.drop(connection)
                connection = self._current.get()
            return connection.run(work)

    def close(self) -> None:
        """Close the connection and end its thread."""
        self._current.close()


@contextlib.contextmanager
def translated(op: str, where: str) -> Iterator[None]:
    """Turn what goes wrong on a connection into our error."""
    try:
        yield
    except _ConnectError as error:
        kind = ReplicaPermanentError if error.permanent else ReplicaTemporaryError
        raise kind(f"{where}: cannot {op}: {error}", hint=error.hint) from error
    except APIError as error:
        raise _api_error(where, op, error) from error
    except (_LostError, NATSError, OSError) as error:
        raise ReplicaTemporaryError(f"{where}: cannot {op}: {_reason(error)}") from error


def _api_error(where: str, op: str, error: APIError) -> ReplicaError:
    """Return our error for what JetStream answered."""
    code, hint = error.err_code or error.code, ""
    message = f"{where}: cannot {op}: the server answered: {error.description or error.code}"
    if code == _STREAM_NOT_FOUND:
        hint = "Create the bucket (nats object add NAME), or correct its name."
    elif code in _FULL:
        hint = "Give the bucket, its account or the server more space."
    kind = ReplicaPermanentError if code in _PERMANENT else ReplicaTemporaryError
    return kind(message, hint=hint)


class _Connection:
    """Hold a connection and the thread on which it lives."""

    def __init__(self, account: NATSAccount) -> None:
        self._account = account
        self._options = _login(account)
        self._client = _Client()
        self._client.wants_tls = account.tls is not None
        self._error: Exception | None = None  # the last that the library told; its thread only
        self._denial = (0.0, "")  # the last, and when it was; its thread only
        self._lost = asyncio.Event()  # set when the connection is lost; its thread only
        self._back = asyncio.Event()  # set while there is a connection; its thread only
        self._ending = asyncio.Event()
        started: Future[asyncio.AbstractEventLoop] = Future()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._serve(started)), name="nats", daemon=True
        )
        self._thread.start()
        self._loop = started.result()
        try:
            self._js = self._submit(self._connect()).result()
        except BaseException:
            self.close()
            raise

    @property
    def is_closed(self) -> bool:
        """Tell whether the connection is given up; one that is being made anew is not."""
        making = self._client._reconnection_task
        if making is None or not making.done() or self._client.is_connected:
            return self._client.is_closed
        # The library's attempts end, without a word, at an error that it does not know.
        if not making.cancelled():
            log.debug("nats: %s", making.exception())
        return True

    def run(self, work: Callable[[JetStreamContext], Awaitable[T]]) -> T:
        """Call a coroutine function on the connection's thread."""
        result: T = self._submit(self._guarded(work)).result(2 * _CALL_SECONDS)
        return result

    def close(self) -> None:
        """Close the connection and end its thread."""
        with contextlib.suppress(RuntimeError):  # the loop has ended already
            self._loop.call_soon_threadsafe(self._ending.set)
        self._thread.join(_JOIN_SECONDS)

    def _submit(self, work: Any) -> Any:
        try:
            return asyncio.run_coroutine_threadsafe(work, self._loop)
        except RuntimeError:  # the loop has ended
            work.close()
            raise _LostError("the connection is closed") from None

    # --- on the connection's thread ---------------------------------------------------------------

    async def _serve(self, started: Future[asyncio.AbstractEventLoop]) -> None:
        """Live until the end, and end what the library has left running."""
        started.set_result(asyncio.get_running_loop())
        await self._ending.wait()
        self._lost.set()
        with contextlib.suppress(NATSError, OSError):  # it is given up anyway
            await asyncio.wait_for(self._client.close(), _JOIN_SECONDS)
        await _end_tasks()

    async def _connect(self) -> JetStreamContext:
        account = self._account
        try:
            await self._client.connect(
                list(account.servers),
                name="pyrep",
                error_cb=self._on_error,
                disconnected_cb=self._on_lost,
                reconnected_cb=self._on_back,
                connect_timeout=max(1, int(account.timeout)),
                # A first attempt that fails is told at once; later ones are the library's.
                allow_reconnect=False,
                max_reconnect_attempts=1,
                reconnect_time_wait=0,
                **self._options,
            )
        except (NATSError, OSError, ValueError) as error:
            is_vague = isinstance(error, NoServersError) and self._error is not None
            raise _connect_error(account, self._error if is_vague else error) from error
        self._client.options |= {
            "allow_reconnect": account.max_reconnects != 0,
            "max_reconnect_attempts": account.max_reconnects,
            "reconnect_time_wait": account.reconnect_wait,
        }
        self._back.set()
        return self._client.jetstream(timeout=account.timeout)

    async def _on_error(self, error: Exception) -> None:
        self._error = error
        if _DENIED in str(error).lower():
            self._denial = (self._loop.time(), _reason(error))
        log.debug("nats: %s", error)

    async def _on_lost(self) -> None:
        self._back.clear()
        self._lost.set()

    async def _on_back(self) -> None:
        self._lost = asyncio.Event()
        self._error = None
        self._back.set()

    async def _guarded(self, work: Callable[[JetStreamContext], Awaitable[T]]) -> T:
        """Do some work; give it up as soon as the connection is lost, which the library does not.

        While there is none, wait as long as for an answer.
        """
        try:
            await asyncio.wait_for(self._back.wait(), self._account.timeout)
        except TimeoutError:
            raise _LostError(f"no connection: {_reason(self._error)}") from None
        begun = self._loop.time()
        doing = asyncio.ensure_future(work(self._js))
        losing = asyncio.ensure_future(self._lost.wait())
        try:
            await asyncio.wait(
                {doing, losing}, timeout=_CALL_SECONDS, return_when=asyncio.FIRST_COMPLETED
            )
            if doing.done():
                return self._result(doing, begun)
            raise _LostError(
                "the connection was lost" if losing.done() else "the server does not answer"
            )
        finally:
            for task in (doing, losing):
                task.cancel()
            await asyncio.gather(doing, losing, return_exceptions=True)

    def _result(self, done: asyncio.Future[T], begun: float) -> T:
        """Return what came of some work; what the user may not do has no answer of its own."""
        try:
            return done.result()
        except TimeoutError as error:
            when, denial = self._denial
            if when < begun:
                raise
            raise _ConnectError(denial, permanent=True, hint=_DENIED_HINT) from error


async def _end_tasks() -> None:
    """Cancel every other task of the loop until it has ended.

    Once is not enough: up to Python 3.11 ``wait_for`` swallows a cancellation that comes together
    with its result, and the library would go on to connect for ever.
    """
    while tasks := asyncio.all_tasks() - {asyncio.current_task()}:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks, timeout=_CANCEL_SECONDS)


def _context(account: NATSAccount) -> ssl.SSLContext | None:
    if account.tls is None:
        return None
    try:
        return tls_context(account.tls)
    except ConfigError as error:
        raise _ConnectError(str(error), permanent=True, hint=error.hint) from error


def _login(account: NATSAccount) -> dict[str, Any]:
    """Return the library's options for what is configured."""
    try:
        found = {
            "tls": _context(account),
            "user": account.user,
            "password": account.password,
            "token": account.token,
            "user_credentials": credentials(account),
            "nkeys_seed_str": seed_of(account),
        }
    except (OSError, ValueError) as error:
        raise _connect_error(account, error) from error
    return {name: value for name, value in found.items() if value is not None and value != ""}


def _connect_error(account: NATSAccount, error: Exception | None) -> _ConnectError:
    """Return the error for a first attempt; what the operator must change is permanent."""
    place = ",".join(server.partition("://")[2] for server in account.servers)
    reason = _reason(error)
    message = f"no connection to {place}: {reason}"
    if isinstance(error, SecureConnWantedError):
        return _ConnectError(message, permanent=True, hint=_TLS_HINT)
    if isinstance(error, ssl.SSLCertVerificationError):
        return _ConnectError(message, permanent=True, hint="Trust its certificate with root-cas.")
    if "authorization" in reason or "authentication" in reason:
        return _ConnectError(
            message,
            permanent=True,
            hint="Check the user and password, token, key or creds of the replica.",
        )
    if isinstance(error, FileNotFoundError | PermissionError | ValueError):
        return _ConnectError(message, permanent=True, hint="Check the credentials of the replica.")
    return _ConnectError(message)


def _reason(error: Exception | None) -> str:
    if error is None:
        return "the connection was lost"
    if isinstance(error, TimeoutError):
        return "the server does not answer"
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(text).removeprefix("nats: ").strip("'").rstrip(".").lower()
