"""What a process costs, and who opens files below a folder: measured from outside."""

from __future__ import annotations

import ctypes
import math
import os
import struct
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Opens", "Usage", "cpu_share", "quantile", "usage"]

_TICKS = os.sysconf("SC_CLK_TCK")
_IN_OPEN, _IN_CREATE, _IN_Q_OVERFLOW = 0x20, 0x100, 0x4000
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


class Opens:
    """Count what any process opens or creates in folders, by the kernel's own events."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd = self._libc.inotify_init1(_IN_NONBLOCK)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "inotify_init1")

    def watch(self, folders: Iterable[Path]) -> None:
        """Count what happens in these folders from now on."""
        for folder in folders:
            done = self._libc.inotify_add_watch(
                self._fd, os.fsencode(folder), _IN_OPEN | _IN_CREATE
            )
            if done < 0:
                raise OSError(ctypes.get_errno(), "inotify_add_watch", str(folder))

    def take(self, suffix: str = "") -> int:
        """Return how many opens of names with a suffix there were, and forget all of them.

        :raises OSError: there were more than the kernel kept
        """
        count = 0
        while True:
            try:
                data = os.read(self._fd, 1 << 20)
            except BlockingIOError:
                return count
            count += sum(name.endswith(suffix) for name in _names(data))

    def close(self) -> None:
        """End the watches."""
        os.close(self._fd)


def _names(data: bytes) -> Iterable[str]:
    at = 0
    while at < len(data):
        _, mask, _, length = _EVENT.unpack_from(data, at)
        if mask & _IN_Q_OVERFLOW:
            raise OSError("more was opened than the kernel's queue holds")
        at += _EVENT.size + length
        yield os.fsdecode(data[at - length : at].rstrip(b"\0"))
