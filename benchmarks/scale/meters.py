"""What a process costs, and who opens files below a folder: measured from outside."""

from __future__ import annotations

import ctypes
import math
import os
import select
import struct
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Arrivals", "Opens", "Usage", "cpu_share", "quantile", "usage"]

_TICKS = os.sysconf("SC_CLK_TCK")
_IN_MOVED_TO, _IN_OPEN, _IN_CREATE, _IN_Q_OVERFLOW = 0x80, 0x20, 0x100, 0x4000
_IN_NONBLOCK = 0o4000
_EVENT = struct.Struct("iIII")


@dataclass(frozen=True)
class Usage:
    """Hold what a process holds: resident MB (10**6 bytes), descriptors, threads, CPU seconds."""

    mb: float
    descriptors: int
    threads: int
    cpu: float
    at: float


def usage(pid: int) -> Usage:
    """Look at a process."""
    proc = Path(f"/proc/{pid}")
    fields = (proc / "stat").read_text().rpartition(")")[2].split()
    status = dict(line.split(":", 1) for line in (proc / "status").read_text().splitlines())
    return Usage(
        int(status["VmRSS"].split()[0]) * 1024 / 1e6,
        len(os.listdir(proc / "fd")),
        int(fields[17]),
        (int(fields[11]) + int(fields[12])) / _TICKS,
        time.monotonic(),
    )


def cpu_share(before: Usage, after: Usage) -> float:
    """Return how much of one core a process took between two looks, in per cent."""
    return 100.0 * (after.cpu - before.cpu) / (after.at - before.at)


def quantile(values: Sequence[float], share: float) -> float:
    """Return the value that ``share`` of the values do not exceed; NaN of none."""
    if not values:
        return math.nan
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


class _Watch:
    """Watch folders by the kernel's own events."""

    mask = 0

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd = self._libc.inotify_init1(_IN_NONBLOCK)
        self._folders: dict[int, Path] = {}
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "inotify_init1")

    def watch(self, folders: Iterable[Path]) -> None:
        """Note what happens in these folders from now on."""
        for folder in folders:
            number = self._libc.inotify_add_watch(self._fd, os.fsencode(folder), self.mask)
            if number < 0:
                raise OSError(ctypes.get_errno(), "inotify_add_watch", str(folder))
            self._folders[number] = folder

    def events(self) -> Iterator[tuple[Path, str]]:
        """Yield folder and name of each event so far.

        :raises OSError: there were more than the kernel kept
        """
        while True:
            try:
                data = os.read(self._fd, 1 << 20)
            except BlockingIOError:
                return
            for number, name in _parsed(data):
                yield self._folders.get(number, Path()), name

    def close(self) -> None:
        """End the watches."""
        os.close(self._fd)


def _parsed(data: bytes) -> Iterator[tuple[int, str]]:
    at = 0
    while at < len(data):
        number, mask, _, length = _EVENT.unpack_from(data, at)
        if mask & _IN_Q_OVERFLOW:
            raise OSError("there were more events than the kernel's queue holds")
        at += _EVENT.size + length
        yield number, os.fsdecode(data[at - length : at].rstrip(b"\0"))


class Opens(_Watch):
    """Count what any process opens or creates in folders."""

    mask = _IN_OPEN | _IN_CREATE

    def take(self, suffix: str = "") -> int:
        """Return how many opens of names with a suffix there were, and forget all of them."""
        return sum(name.endswith(suffix) for _, name in self.events())


class Arrivals(_Watch):
    """Note when each LTX file gets its name in a folder; times are those of the day."""

    mask = _IN_CREATE | _IN_MOVED_TO

    def __init__(self, folders: Iterable[Path]) -> None:
        super().__init__()
        self.times: dict[Path, float] = {}
        self._failure: OSError | None = None
        self._stop = threading.Event()
        self.watch(folders)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                if select.select([self._fd], [], [], 0.2)[0]:
                    self._note(time.time())
        except OSError as error:
            self._failure = error

    def _note(self, now: float) -> None:
        for folder, name in self.events():
            if name.endswith(".ltx"):
                self.times.setdefault(folder / name, now)

    def close(self) -> None:
        """End the watches; raise what went wrong meanwhile."""
        self._stop.set()
        self._thread.join()
        super().close()
        if self._failure is not None:
            raise self._failure
