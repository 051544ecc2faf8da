"""One SSH connection for a server and a user, shared by all replicas that agree in them.

Channels are opened as threads need them, up to what the server grants; each carries one exchange
at a time.  A server is known by its key, or nothing is sent to it.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import logging
import os
import socket
import threading
from collections.abc import Callable, Iterator

import paramiko

from pyrep.errors import ReplicaPermanentError, ReplicaTemporaryError
from pyrep.storage.sftp_config import SFTPAccount
from pyrep.storage.sftp_protocol import Broken, Code, SFTPChannel, StatusError
from pyrep.storage.shared import Current

__all__ = ["CHANNELS", "SFTPSession", "translated"]

# OpenSSH grants ten channels to a connection unless MaxSessions says otherwise.
CHANNELS = 8
_CONNECT_SECONDS = 10.0
_HANDSHAKE_SECONDS = 30.0
_SUBSYSTEM_SECONDS = 30.0
_ANSWER_SECONDS = 60.0
_KEEPALIVE_SECONDS = 15
_JOIN_SECONDS = 5.0
_KNOWN_HOSTS = ("~/.ssh/known_hosts", "/etc/ssh/ssh_known_hosts")
_RSA = ("rsa-sha2-512", "rsa-sha2-256")

_HINTS = {
    Code.PERMISSION_DENIED: "Let the user read, write and search the replica's directories.",
    Code.FAILURE: "Look for a full disk or a quota on the server, and in its log.",
    Code.BAD_MESSAGE: "Use shorter names: file systems allow 255 bytes each.",
}
_PERMANENT = frozenset(
    (Code.NO_SUCH_FILE, Code.PERMISSION_DENIED, Code.BAD_MESSAGE, Code.UNSUPPORTED)
)


class _ConnectError(Exception):
    """Say why there is no connection; each caller gets an error with its own object's name."""

    def __init__(self, message: str, *, permanent: bool = False, hint: str = "") -> None:
        super().__init__(message)
        self.permanent = permanent
        self.hint = hint


class SFTPSession:
    """Hand out channels; safe for several threads."""

    def __init__(self, account: SFTPAccount) -> None:
        # What goes wrong with a connection comes out as our error; the library logs tracebacks.
        logging.getLogger("paramiko").setLevel(logging.CRITICAL)
        self._current = Current(lambda: _Connection(account))

    @contextlib.contextmanager
    def channel(self, op: str, where: str) -> Iterator[SFTPChannel]:
        """Lend a channel for a ``with`` block; what goes wrong on it comes out as our error.

        ``op`` says in words what is done, ``where`` to which file.

        :raises ReplicaTemporaryError: no connection, or it was lost
        :raises ReplicaPermanentError: the server's key is not trusted, or we are not let in
        """
        try:
            connection, channel = self._lend()
        except _ConnectError as error:
            kind = ReplicaPermanentError if error.permanent else ReplicaTemporaryError
            raise kind(f"{where}: cannot {op}: {error}", hint=error.hint) from error
        try:
            with translated(op, where):
                yield channel
        except ReplicaTemporaryError as error:
            if isinstance(error.__cause__, Broken) and not error.__cause__.silent:
                self._current.drop(connection)
            raise
        finally:
            connection.give_back(channel)

    def close(self) -> None:
        """Close the connection; what is open on it ends."""
        self._current.close()

    def _lend(self) -> tuple[_Connection, SFTPChannel]:
        connection = self._current.get()
        if not connection.alive:
            self._current.drop(connection)
            connection = self._current.get()
        return connection, connection.lend()


@contextlib.contextmanager
def translated(op: str, where: str) -> Iterator[None]:
    """Turn what goes wrong on a channel into our error."""
    try:
        yield
    except Broken as error:
        raise ReplicaTemporaryError(f"{where}: cannot {op}: {error}") from error
    except StatusError as error:
        kind = ReplicaPermanentError if error.code in _PERMANENT else ReplicaTemporaryError
        message = f"{where}: cannot {op}: the server answered: {error}"
        raise kind(message, hint=_HINTS.get(error.code, "")) from error


class _Connection:
    """Hold an authenticated connection and its channels."""

    def __init__(self, account: SFTPAccount) -> None:
        self._lock = threading.Lock()
        self._users: dict[SFTPChannel, int] = {}  # guarded by _lock
        self._opening = 0  # guarded by _lock
        self._granted = CHANNELS  # guarded by _lock
        self._transport = _connect(account)

    @property
    def alive(self) -> bool:
        """Tell whether the connection is open, as far as is known."""
        return self._transport.is_active()

    def lend(self) -> SFTPChannel:
        """Return an idle channel, a new one, or the least busy if the server grants no more."""
        with self._lock:
            self._users = {one: count for one, count in self._users.items() if not one.broken}
            room = len(self._users) + self._opening < self._granted
            best = self._least_busy()
            if best is not None and (not room or self._users[best] == 0):
                self._users[best] += 1
                return best
            self._opening += 1
        opened: SFTPChannel | None = None
        try:
            opened = self._open()
        except paramiko.ChannelException as error:
            return self._share(error)
        finally:
            with self._lock:
                self._opening -= 1
                if opened is not None:
                    self._users[opened] = 1
        return opened

    def give_back(self, channel: SFTPChannel) -> None:
        """Say that a channel is used by one thread less."""
        with self._lock:
            if channel in self._users:
                self._users[channel] -= 1

    def close(self) -> None:
        """Close the connection and wait for its thread."""
        _close(self._transport)

    def _least_busy(self) -> SFTPChannel | None:
        return min(self._users, key=lambda one: self._users[one], default=None)

    def _share(self, error: paramiko.ChannelException) -> SFTPChannel:
        """Return a channel of others, because the server grants no more."""
        with self._lock:
            self._granted = max(1, len(self._users))
            best = self._least_busy()
            if best is None:
                raise _ConnectError(f"the server opens no channel: {error.text}") from error
            self._users[best] += 1
            return best

    def _open(self) -> SFTPChannel:
        try:
            raw = self._transport.open_session(timeout=_HANDSHAKE_SECONDS)
            raw.settimeout(_ANSWER_SECONDS)
            with _limited(raw):
                raw.invoke_subsystem("sftp")
            return SFTPChannel(_Stream(raw))
        except paramiko.ChannelException:
            raise
        except (paramiko.SSHException, OSError, EOFError, Broken) as error:
            self._transport.close()  # the next call connects anew
            raise _ConnectError(f"no sftp channel: {_reason(error)}") from error


@contextlib.contextmanager
def _limited(raw: paramiko.Channel) -> Iterator[None]:
    """Close a channel that is not there in time; the library waits for the answer for ever."""
    timer = threading.Timer(_SUBSYSTEM_SECONDS, raw.close)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


class _Stream:
    """Be a channel whose every failure is an ``OSError``."""

    def __init__(self, raw: paramiko.Channel) -> None:
        self._raw = raw

    def sendall(self, s: bytes) -> None:
        try:
            self._raw.sendall(s)
        except (paramiko.SSHException, EOFError) as error:
            raise OSError(_reason(error)) from error

    def recv(self, nbytes: int) -> bytes:
        return self._raw.recv(nbytes)

    def close(self) -> None:
        self._raw.close()


# --- connecting -----------------------------------------------------------------------------------


def _connect(account: SFTPAccount) -> paramiko.Transport:
    """Connect, prove that the server is the one meant, and log in."""
    trusted = _trusted_keys(account)
    sock = None
    try:
        sock = socket.create_connection((account.host, account.port), _CONNECT_SECONDS)
        # A peer that is gone without a word: the system ends the connection for us.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(_ANSWER_SECONDS * 1000))
        transport = paramiko.Transport(sock)
    except (OSError, paramiko.SSHException) as error:
        if sock is not None:
            sock.close()
        raise _ConnectError(f"no connection to {account.address}: {_reason(error)}") from error
    try:
        _secure(transport, account, trusted)
        _authenticate(transport, account)
        transport.set_keepalive(_KEEPALIVE_SECONDS)
    except BaseException as error:
        _close(transport)
        if isinstance(error, paramiko.SSHException | OSError | EOFError):
            reason = f"no connection to {account.address}: {_reason(error)}"
            raise _ConnectError(reason) from error
        raise
    return transport


def _close(transport: paramiko.Transport) -> None:
    transport.close()
    transport.packetizer.complete_handshake()  # ends a timer that outlives a failed one
    if transport.is_alive():
        transport.join(_JOIN_SECONDS)


def _secure(
    transport: paramiko.Transport, account: SFTPAccount, trusted: list[paramiko.PKey]
) -> None:
    transport.banner_timeout = _HANDSHAKE_SECONDS
    transport.auth_timeout = _HANDSHAKE_SECONDS
    names = {key.get_name() for key in trusted}
    options = transport.get_security_options()
    # The server shows one key: ask for one of a type that we know.
    wanted = tuple(
        kind for kind in options.key_types if kind in names or (kind in _RSA and "ssh-rsa" in names)
    )
    if wanted:
        options.key_types = wanted + tuple(k for k in options.key_types if k not in wanted)
    transport.start_client(timeout=_HANDSHAKE_SECONDS)
    key = transport.get_remote_server_key()
    if account.insecure_host_key or any(key.asbytes() == one.asbytes() for one in trusted):
        return
    line = f"{key.get_name()} {key.get_base64()}"
    digest = base64.b64encode(hashlib.sha256(key.asbytes()).digest()).decode().rstrip("=")
    what = "is not known"
    if trusted:
        what = "is not the one that is known: it was changed, or somebody stands in between"
    raise _ConnectError(
        f"the host key of {account.address} {what} ({key.get_name()} SHA256:{digest})",
        permanent=True,
        hint=f'If the server\'s owner confirms the key, set host-key: "{line}", or add this line '
        f"to ~/.ssh/known_hosts: {account.known_host} {line}",
    )


def _trusted_keys(account: SFTPAccount) -> list[paramiko.PKey]:
    """Return the keys that the server may show: those in known_hosts, and the configured one."""
    if account.insecure_host_key:
        return []
    keys: list[paramiko.PKey] = []
    for path in filter(os.path.exists, map(os.path.expanduser, _KNOWN_HOSTS)):
        known = paramiko.HostKeys()
        try:
            known.load(path)
        except (OSError, UnicodeDecodeError) as error:
            reason = f"cannot read {path}: {_reason(error)}"
            raise _ConnectError(reason, permanent=True) from error
        except paramiko.hostkeys.InvalidHostKey as error:
            reason = f"{path} has a line without a valid key: {error.line[:40]}"
            raise _ConnectError(reason, permanent=True) from error
        found = known.lookup(account.known_host)
        keys += found.values() if found else ()
    if account.host_key:
        kind, _, text = account.host_key.partition(" ")
        try:
            keys.append(paramiko.PKey.from_type_string(kind, base64.b64decode(text)))
        except (ValueError, paramiko.SSHException, paramiko.pkey.UnknownKeyType) as error:
            raise _ConnectError(
                f"host-key is not a public key of a known type: {kind}", permanent=True
            ) from error
    return keys


def _authenticate(transport: paramiko.Transport, account: SFTPAccount) -> None:
    """Log in by key, by the agent's keys, or by password, whatever is given and taken first."""
    tried = []
    for name, attempt in _methods(account):
        tried.append(name)
        try:
            attempt(transport)
        except paramiko.AuthenticationException:
            if not transport.is_active():
                break  # the server has had enough
            continue
        if transport.is_authenticated():
            return
    if not tried:
        raise _ConnectError(
            f"no credentials for {account.user}@{account.address}",
            permanent=True,
            hint="Set key-path or password, or give pyrep an SSH agent (SSH_AUTH_SOCK).",
        )
    raise _ConnectError(
        f"{account.address} refuses user {account.user} (tried: {', '.join(tried)})",
        permanent=True,
        hint="Check the user, the key or password, and authorized_keys on the server.",
    )


_Attempt = Callable[[paramiko.Transport], object]


def _methods(account: SFTPAccount) -> Iterator[tuple[str, _Attempt]]:
    if account.key_path:
        key = _private_key(account.key_path)
        yield "key", lambda transport: transport.auth_publickey(account.user, key)
    elif os.environ.get("SSH_AUTH_SOCK"):
        agent = paramiko.Agent()
        try:
            for key in agent.get_keys():
                yield "agent", _with_key(account.user, key)
        finally:
            agent.close()
    if account.password:
        yield (
            "password",
            lambda transport: transport.auth_password(account.user, account.password),
        )


def _with_key(user: str, key: paramiko.PKey) -> _Attempt:
    return lambda transport: transport.auth_publickey(user, key)


def _private_key(path: str) -> paramiko.PKey:
    try:
        return paramiko.PKey.from_path(os.path.expanduser(path))
    except (TypeError, paramiko.PasswordRequiredException) as error:
        raise _ConnectError(
            f"key-path {path}: the key needs a passphrase",
            permanent=True,
            hint="Use a key without one, or an SSH agent that holds it.",
        ) from error
    except (OSError, ValueError, paramiko.SSHException, paramiko.pkey.UnknownKeyType) as error:
        raise _ConnectError(
            f"key-path {path}: cannot be used: {_reason(error)}", permanent=True
        ) from error


def _reason(error: Exception) -> str:
    if isinstance(error, socket.gaierror):
        return "the host's name cannot be resolved"
    if isinstance(error, TimeoutError):
        return "the server does not answer"
    if isinstance(error, ConnectionError | EOFError) and not error.args[1:]:
        return "the connection was lost"
    reason = getattr(error, "strerror", None) or str(error) or "the connection was lost"
    return str(reason).rstrip(".").lower()
