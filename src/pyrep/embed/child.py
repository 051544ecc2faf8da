"""The side of the child: run the daemon, answer the program, stop when it hangs up or dies."""

from __future__ import annotations

import json
import socket
import sys
import threading
from collections.abc import Callable, Iterable, Iterator

from pyrep import daemon, log
from pyrep.clock import SystemClock
from pyrep.config.load import load, loads
from pyrep.config.model import Config
from pyrep.daemon.events import Event, Events
from pyrep.embed.wire import Message, Wire, from_error
from pyrep.errors import NotDurableError, PyrepError
from pyrep.ids import TXID
from pyrep.schedule.scheduler import Scheduler
from pyrep.store import Store
from pyrep.store.waiting import Waiter

__all__ = ["main"]


class _Wait:
    """Gather the answers for the tenants that one call waits for; any thread may bring one."""

    def __init__(
        self,
        store: Store,
        names: Iterable[str],
        timeout: float,
        answer: Callable[[_Wait, Message], None],
    ) -> None:
        self._store = store
        self._timeout = timeout
        self._answer = answer
        self._waiters: dict[str, Waiter] = {}
        self._lock = threading.Lock()
        self._names = list(dict.fromkeys(names))
        self._txids: dict[str, TXID] = {}  # guarded by _lock
        self._errors: dict[str, PyrepError] = {}  # guarded by _lock
        self._over = False  # guarded by _lock

    def begin(self) -> None:
        """Ask the store for each tenant."""
        for name in self._names:
            self._waiters[name] = self._store.wait(name, self._teller(name))
        self._look()  # for nothing at all

    def _teller(self, name: str) -> Callable[[TXID, PyrepError | None], None]:
        def tell(txid: TXID, error: PyrepError | None) -> None:
            with self._lock:
                if error is None:
                    self._txids[name] = txid
                else:
                    self._errors[name] = error
            self._look()

        return tell

    def _look(self) -> None:
        """Answer once all are in."""
        with self._lock:
            told = len(self._txids) + len(self._errors)
            if self._over or told < len(self._names):
                return
            self._over = True
        first = next((self._errors[n] for n in self._names if n in self._errors), None)
        answer = {"error": from_error(first)} if first else {"txids": self._txids}
        self._answer(self, answer)

    def expire(self) -> None:
        """Answer that the time is over, unless all were in."""
        with self._lock:
            if self._over:
                return
            self._over = True
            late = [n for n in self._names if n not in self._txids and n not in self._errors]
        for waiter in self._waiters.values():
            waiter.over = True
        first = next(iter(self._errors.values()), None) or self._late(late[0])
        self._answer(self, {"error": from_error(first)})

    def _late(self, name: str) -> PyrepError:
        why = self._store.trouble(name)
        return NotDurableError(
            f"{name}: not durable within {self._timeout:g} s{': ' if why else ''}{why}",
            hint="Nothing is lost: what was committed is uploaded as soon as that is possible.",
        )


class _Server:
    """Read requests on a thread of its own; the daemon runs on the main thread."""

    def __init__(self, wire: Wire, requests: Iterator[Message], events: Events) -> None:
        self._wire = wire
        self._requests = requests
        self._events = events
        self._timer: Scheduler[_Wait] = Scheduler(_Wait.expire, SystemClock())

    def attend(self, store: Store) -> None:
        """Begin to answer: everything is watched."""
        self._timer.start()
        thread = threading.Thread(target=self._read, args=(store,), name="pyrep-embed", daemon=True)
        thread.start()
        self._wire.send({"ready": len(store.tenants())})

    def _read(self, store: Store) -> None:
        for request in self._requests:
            self._take(store, request)
        self._events.put(Event.STOP)

    def _take(self, store: Store, request: Message) -> None:
        def answer(wait: _Wait, content: Message) -> None:
            self._timer.cancel(wait)
            self._wire.send({"id": request["id"], **content})

        wait = _Wait(store, request["tenants"], request["timeout"], answer)
        self._timer.schedule(wait, request["timeout"])
        wait.begin()


def _config(order: Message) -> Config:
    if "path" in order:
        return load(order["path"])
    return loads(json.dumps(order["settings"]), expand_env=False)


def main(descriptor: int) -> int:
    """Run until the other end of the socket hangs up; return the exit code."""
    wire, events = Wire(socket.socket(fileno=descriptor)), Events()
    messages = wire.messages()
    server = _Server(wire, messages, events)
    try:
        order = next(messages, None)
        if order is None:
            return 0
        config = _config(order)
        log.setup(config.logging)
        daemon.run(config, events=events, attend=server.attend)
    except PyrepError as error:
        wire.send({"end": from_error(error)})
        return error.exit_code
    finally:
        events.close()
    wire.send({"end": None})
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
