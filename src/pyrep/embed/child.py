"""The side of the child: run the daemon, answer the program, stop when it hangs up or dies."""

from __future__ import annotations

import json
import socket
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from pyrep import log
from pyrep.clock import SystemClock
from pyrep.config.build import without_entry
from pyrep.config.load import add_entry, load, loads
from pyrep.config.model import Config
from pyrep.daemon.events import Event, Events
from pyrep.daemon.lookout import Lookout
from pyrep.daemon.run import run
from pyrep.embed.wire import Message, Wire, from_error
from pyrep.errors import ConfigError, NotDurableError, PyrepError
from pyrep.ids import TXID
from pyrep.schedule.scheduler import Scheduler
from pyrep.store import Store
from pyrep.store.waiting import Waiter

__all__ = ["main"]

_LOOK_SECONDS = 0.05


class _Wait:
    """Gather the answers for the tenants that one call waits for; any thread may bring one."""

    def __init__(
        self,
        store: Store,
        lookout: Lookout,
        names: Iterable[str],
        timeout: float,
        answer: Callable[[_Wait, Message], None],
        later: Callable[[_Wait, str], None],
    ) -> None:
        self._store = store
        self._lookout = lookout
        self._later = later
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
            self.ask(name)
        self._look()  # for nothing at all

    def ask(self, name: str) -> None:
        """Ask the store for one; a database that it is about to take in is asked for later."""
        if self._over:
            return
        if self._store.lookup(name) is None and self._lookout.awaits(name):
            self._later(self, name)
        else:
            self._waiters[name] = self._store.wait(name, self._teller(name))

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
        for waiter in list(self._waiters.values()):
            waiter.over = True
        first = next(iter(self._errors.values()), None) or self._late(late[0])
        self._answer(self, {"error": from_error(first)})

    def _late(self, name: str) -> PyrepError:
        why = self._store.trouble(name) or self._lookout.reason(name)
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
        self._timer: Scheduler[tuple[_Wait, str]] = Scheduler(_fire, SystemClock())
        self._lock = threading.Lock()
        self._config = Config()  # guarded by _lock

    def configure(self, order: Message) -> Config:
        """Return the configuration to begin with."""
        with self._lock:
            self._config = _config(order)
            return self._config

    def attend(self, store: Store, lookout: Lookout) -> None:
        """Begin to answer: everything is watched."""
        self._timer.start()
        thread = threading.Thread(
            target=self._read, args=(store, lookout), name="pyrep-embed", daemon=True
        )
        thread.start()
        self._wire.send({"ready": len(store.tenants())})

    def _read(self, store: Store, lookout: Lookout) -> None:
        for request in self._requests:
            if request["op"] == "wait":
                self._wait(request, store, lookout)
            else:
                self._edit(request, lookout)
        self._events.put(Event.STOP)

    def _wait(self, request: Message, store: Store, lookout: Lookout) -> None:
        def answer(wait: _Wait, content: Message) -> None:
            self._timer.cancel((wait, ""))
            self._answer(request, content)

        def later(wait: _Wait, name: str) -> None:
            self._timer.schedule((wait, name), _LOOK_SECONDS)

        names, timeout = request["tenants"], request["timeout"]
        wait = _Wait(store, lookout, names, timeout, answer, later)
        self._timer.schedule((wait, ""), timeout)
        wait.begin()

    def _edit(self, request: Message, lookout: Lookout) -> None:
        """Add an entry to the configuration, or take one out; answer when that is done."""

        def done() -> None:
            name = entry.get("path", "")
            if entry and lookout.is_refused(name):
                why = lookout.reason(name)
                self._reconfigure(lookout, lambda config: without_entry(config, Path(name)))
                self._answer(request, {"error": from_error(ConfigError(why))})
            else:
                self._answer(request, {})

        def edited(config: Config) -> Config:
            if entry:
                return add_entry(config, json.dumps(entry))
            return without_entry(config, Path(request["remove"]))

        entry = request.get("add", {})
        try:
            self._reconfigure(lookout, edited, done)
        except ConfigError as error:
            self._answer(request, {"error": from_error(error)})

    def _reconfigure(
        self,
        lookout: Lookout,
        edit: Callable[[Config], Config],
        done: Callable[[], None] = lambda: None,
    ) -> None:
        with self._lock:
            self._config = edit(self._config)
            lookout.reconfigure(self._config, done)

    def _answer(self, request: Message, content: Message) -> None:
        self._wire.send({"id": request["id"], **content})


def _fire(key: tuple[_Wait, str]) -> None:
    wait, name = key
    if name:
        wait.ask(name)
    else:
        wait.expire()


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
        config = server.configure(order)
        log.setup(config.logging)
        run(config, events=events, attend=server.attend)
    except PyrepError as error:
        wire.send({"end": from_error(error)})
        return error.exit_code
    finally:
        events.close()
    wire.send({"end": None})
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
