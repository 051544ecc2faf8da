"""What the main thread waits for: signals, and the end of the child process."""

from __future__ import annotations

import contextlib
import select
import signal
import socket
import threading
from collections import deque
from collections.abc import Iterator
from enum import Enum
from types import FrameType

__all__ = ["Event", "Events"]


class Event(Enum):
    """Say what happened."""

    STOP = "stop"
    REQUEST = "request"
    RELOAD = "reload"
    CHILD_ENDED = "child ended"
    RESTORED = "restored"


_SIGNALS = {
    signal.SIGINT: Event.STOP,
    signal.SIGTERM: Event.STOP,
    signal.SIGUSR1: Event.REQUEST,
    signal.SIGHUP: Event.RELOAD,
}


class Events:
    """Gather events; ``put`` may be called by a signal handler and by any thread.

    The main thread sleeps in ``select`` on a socket that the interpreter writes to when a
    signal comes.  A lock or a queue would not do: of two signals in a row the kernel may give
    the second to another thread, and a main thread that waits for a lock then sleeps on.
    """

    def __init__(self) -> None:
        self._events: deque[tuple[Event, int]] = deque()
        self._ear, self._bell = socket.socketpair()
        self._ear.setblocking(False)
        self._bell.setblocking(False)
        self.stops = 0
        self._signalled = False

    def put(self, event: Event, number: int = 0) -> None:
        """Add an event; ``number`` is the signal that brought it."""
        if event is Event.STOP:
            self.stops += 1
        self._events.append((event, number))
        with contextlib.suppress(OSError):  # full: then it has been rung; closed: nobody waits
            self._bell.send(b"\0")

    def get(self, timeout: float | None = None) -> tuple[Event, int] | None:
        """Wait for the next event; None when the time (seconds) is over."""
        if not self._events:
            select.select([self._ear], [], [], timeout)
        with contextlib.suppress(BlockingIOError):
            self._ear.recv(4096)
        return self._events.popleft() if self._events else None

    def close(self) -> None:
        """Let go of the sockets."""
        self._ear.close()
        self._bell.close()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        event = _SIGNALS[signal.Signals(number)]
        if event is Event.STOP:
            self._signalled = True
        self.put(event, number)

    @contextlib.contextmanager
    def signals(self) -> Iterator[None]:
        """Turn signals into events inside a ``with`` block; no effect outside the main thread.

        After a signal to stop the process is on its way out: one more, a moment too late to
        count, is ignored from then on, so that it does not replace the exit code.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        wakeup = signal.set_wakeup_fd(self._bell.fileno(), warn_on_full_buffer=False)
        before = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                late = self._signalled and _SIGNALS[number] is Event.STOP
                signal.signal(number, signal.SIG_IGN if late else handler)
            signal.set_wakeup_fd(wakeup)
