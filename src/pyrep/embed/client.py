"""The side of the program: start the child, ask it, notice its end."""

from __future__ import annotations

import itertools
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any

from pyrep.embed.wire import Message, Wire, to_error
from pyrep.errors import NotDurableError, PyrepError, ReplicationEndedError
from pyrep.ids import TXID

__all__ = ["Replicator", "start", "start_directory"]

_GRACE_SECONDS = 10.0  # beyond a call's own time, before a child that is silent is given up
_KILL_SECONDS = 10.0

StrPath = str | os.PathLike[str]


def start(
    config: StrPath | Mapping[str, Any], *, timeout: float = 120.0, python: str = sys.executable
) -> Replicator:
    """Start to replicate what a configuration says; return once everything is watched.

    ``config`` is the path of a configuration file, or a mapping with the same keys.  The child
    runs ``python`` (the interpreter, where ``sys.executable`` is something else) in a session of
    its own, so that a Ctrl-C in a terminal reaches the program alone; it logs to standard error.

    :raises ConfigError: something in the configuration is wrong
    :raises StateLockedError: another daemon runs it
    :raises ReplicationEndedError: the child could not run, or said nothing within ``timeout`` s
    """
    if isinstance(config, Mapping):
        order: Message = {"settings": dict(config)}
    else:
        order = {"path": os.path.abspath(os.fspath(config))}
    replicator = Replicator(python)
    replicator._begin(order, timeout)
    return replicator


def start_directory(
    directory: StrPath,
    replica: str | Mapping[str, Any],
    *,
    pattern: str = "*.db",
    state_dir: StrPath | None = None,
    timeout: float = 120.0,
) -> Replicator:
    """Start to replicate every database below a directory whose name matches.

    ``replica`` is a URL, or a mapping with the keys of a replica.
    """
    settings: dict[str, Any] = {"dbs": [_directory_entry(directory, replica, pattern)]}
    if state_dir is not None:
        settings["state-dir"] = os.path.abspath(os.fspath(state_dir))
    return start(settings, timeout=timeout)


def _entry(database: StrPath, replica: str | Mapping[str, Any]) -> Message:
    where = dict(replica) if isinstance(replica, Mapping) else {"url": replica}
    return {"path": os.path.abspath(os.fspath(database)), "replica": where}


def _directory_entry(directory: StrPath, replica: str | Mapping[str, Any], pattern: str) -> Message:
    entry = _entry(directory, replica)
    return {"dir": entry.pop("path"), "pattern": pattern, "recursive": True, **entry}


class _Call:
    """Hold what one thread waits for."""

    def __init__(self) -> None:
        self.answered = threading.Event()
        self.answer: Message = {}


class Replicator:
    """Replicate in a child process until ``close``; every method may be called by any thread.

    Made by ``start``.  As a context manager it is closed at the end of the block.  It belongs to
    the process that started it: a program that forks starts it in each worker, or in one.
    """

    def __init__(self, python: str = sys.executable) -> None:
        ours, theirs = socket.socketpair()
        errors = 2 if _is_open(2) else subprocess.DEVNULL
        try:
            self._process = subprocess.Popen(
                [python, "-m", "pyrep.embed.child", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        except OSError as error:
            ours.close()
            raise ReplicationEndedError(f"cannot run {python}: {error.strerror}") from error
        finally:
            theirs.close()
        self._owner = os.getpid()
        self._wire = Wire(ours)
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._calls: dict[int, _Call] = {}  # guarded by _lock
        self._ready = _Call()
        self._end: PyrepError | None = None  # why the child ended; guarded by _lock, as the next
        self._ended = False
        self._closing = False
        self._thread = threading.Thread(target=self._listen, name="pyrep-embed", daemon=True)
        self._thread.start()

    def _begin(self, order: Message, timeout: float) -> None:
        """Send what is to be replicated and wait until it is."""
        self._wire.send(order)
        if not self._ready.answered.wait(timeout):
            self._kill()
            raise ReplicationEndedError(f"the replication did not start within {timeout:g} s")
        if "error" in self._ready.answer:
            self._thread.join(_KILL_SECONDS)
            self._wire.close()
            raise to_error(self._ready.answer["error"])

    def __enter__(self) -> Replicator:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """Return the process id of the child."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Return whether the child runs."""
        return not self._ended

    # --- what a program asks ----------------------------------------------------------------------

    def wait(self, tenant: StrPath, timeout: float = 30.0) -> TXID:
        """Wait until every commit that returned before this call is on the replica.

        The child looks at the database itself, so no event is needed and none can be missed.
        Calls of several threads share one upload.  Returns the TXID that is durable.

        :raises NotDurableError: not within ``timeout`` seconds; the text says what is in the way
        :raises FencedError: another writer's files are on the replica
        :raises ConfigError: the database is not one that is replicated
        :raises ReplicationEndedError: the child has ended
        """
        name = os.fspath(tenant)
        return self.wait_all([name], timeout)[name]

    def wait_all(self, tenants: Iterable[StrPath], timeout: float = 30.0) -> dict[str, TXID]:
        """Wait for several databases at once, side by side; return their TXIDs by path.

        Raises what ``wait`` raises, for the first of them that failed; ``timeout`` is for all.
        """
        names = [os.fspath(tenant) for tenant in tenants]
        paths = [os.path.abspath(name) for name in names]
        request = {"op": "wait", "tenants": paths, "timeout": timeout}
        silent = NotDurableError(f"the replication (pid {self.pid}) does not answer")
        answer = self._ask(request, timeout + _GRACE_SECONDS, silent)
        return {name: TXID(answer["txids"][path]) for name, path in zip(names, paths, strict=True)}

    def add(
        self, database: StrPath, replica: str | Mapping[str, Any], timeout: float = 30.0
    ) -> None:
        """Replicate one more database; return once it is, or is waited for if it is not there.

        ``replica`` is a URL, or a mapping with the keys of a replica.

        :raises ConfigError: something is wrong, or it cannot be replicated beside the others;
            then everything is as before
        :raises PyrepError: not within ``timeout`` seconds
        :raises ReplicationEndedError: the child has ended
        """
        self._edit({"add": _entry(database, replica)}, database, timeout)

    def add_directory(
        self,
        directory: StrPath,
        replica: str | Mapping[str, Any],
        *,
        pattern: str = "*.db",
        timeout: float = 30.0,
    ) -> None:
        """Replicate every database below one more directory whose name matches.

        The arguments are those of ``start_directory``; it raises what ``add`` raises.
        """
        self._edit({"add": _directory_entry(directory, replica, pattern)}, directory, timeout)

    def remove(self, path: StrPath, timeout: float = 60.0) -> None:
        """Replicate a database or directory no longer that was added or configured.

        Returns when what had been committed is stored, as far as that is possible within
        ``shutdown-sync-timeout``, and the databases are closed.  Their replicas stay.

        :raises ConfigError: it was neither added nor configured by that path
        :raises PyrepError: not within ``timeout`` seconds
        :raises ReplicationEndedError: the child has ended
        """
        self._edit({"remove": os.path.abspath(os.fspath(path))}, path, timeout)

    def _edit(self, change: Message, path: StrPath, timeout: float) -> None:
        late = PyrepError(
            f"{os.fspath(path)}: the change was not complete within {timeout:g} s",
            hint="It goes on; what keeps it is in the log.",
        )
        self._ask({"op": "edit", **change}, timeout, late)

    def close(self, timeout: float | None = None) -> None:
        """Sync and upload what is left as a stopped daemon does, and end the child.

        With a ``timeout`` (seconds) the child is killed after it; what it had staged is uploaded
        by the next start.  Safe to call twice.

        :raises ShutdownInterruptedError: not everything was uploaded
        :raises ReplicationEndedError: the child had ended by itself, or had to be killed
        """
        with self._lock:
            again, self._closing = self._closing, True
        if again:
            return
        self._check_owner()
        self._wire.hang_up()
        self._thread.join(timeout)
        if self._thread.is_alive():
            self._kill()
            raise ReplicationEndedError(f"the replication did not stop within {timeout:g} s")
        self._wire.close()
        if self._end is not None:
            raise self._end

    # --- asking -----------------------------------------------------------------------------------

    def _ask(self, request: Message, timeout: float, late: PyrepError) -> Message:
        self._check_owner()
        number, call = next(self._numbers), _Call()
        with self._lock:
            self._check_running()
            self._calls[number] = call
        try:
            self._wire.send({**request, "id": number})
            answered = call.answered.wait(timeout)
        finally:
            with self._lock:
                self._calls.pop(number, None)
        if not answered:
            raise late
        if "error" in call.answer:
            raise to_error(call.answer["error"])
        return call.answer

    def _check_owner(self) -> None:
        if os.getpid() != self._owner:
            raise ReplicationEndedError(
                "the replication belongs to the process that started it, not to its forks",
                hint="Start it after the fork.",
            )

    def _check_running(self) -> None:
        if self._closing:
            raise ReplicationEndedError("the replication has been closed")
        if self._ended:
            raise self._end or ReplicationEndedError("the replication has ended")

    # --- listening --------------------------------------------------------------------------------

    def _listen(self) -> None:
        """Hand answers over until the child is gone, then say so to everybody and reap it."""
        for message in self._wire.messages():
            if "end" in message:
                self._end = to_error(message["end"]) if message["end"] else None
            elif "ready" in message:
                self._answer(self._ready, message)
            else:
                with self._lock:
                    call = self._calls.pop(message["id"], None)
                if call is not None:
                    self._answer(call, message)
        code = self._process.wait()
        with self._lock:
            self._ended = True
            self._end = self._end or (None if self._closing and code == 0 else _death(code))
            calls, self._calls = list(self._calls.values()), {}
        end = self._end or ReplicationEndedError("the replication has been closed")
        why = {"class": type(end).__name__, "text": str(end), "hint": end.hint}
        for call in (self._ready, *calls):
            if not call.answered.is_set():
                self._answer(call, {"error": why})

    def _answer(self, call: _Call, message: Message) -> None:
        call.answer = message
        call.answered.set()

    def _kill(self) -> None:
        with self._lock:
            self._closing = True
        self._process.kill()
        self._thread.join(_KILL_SECONDS)
        self._wire.close()


def _death(code: int) -> ReplicationEndedError:
    how = f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"
    return ReplicationEndedError(
        f"the replication process ended unasked ({how})",
        hint="Look at what it logged, then start it again: nothing that was stored is lost.",
    )


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True
