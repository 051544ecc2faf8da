"""The one door to every mutating file call, so that failures can be injected by name.

Each call's first argument is the name of the step (``"stage.rename"``).  A test makes a step
fail with ``PYREP_FAILPOINT=op:n:action`` (comma-separated list): the n-th call of that name
(``*`` stands for any name) is killed (``kill``: SIGKILL to ourselves before the call,
``kill-after``: after it), fails with ``eio`` or ``enospc``, or is torn (``torn``: half of the
bytes are written, then SIGKILL).  The variable is read only when ``PYREP_ALLOW_FAILPOINTS=1``.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

__all__ = [
    "Failpoint",
    "arm",
    "fsync_dir",
    "make_dirs",
    "open_file",
    "parse_failpoints",
    "pwrite_all",
]
__all__ += [
    "check_written",
    "chmod",
    "chown",
    "disarm",
    "fsync",
    "link",
    "remove_tree",
    "replace",
    "rmdir",
    "sync_file_system",
    "truncate",
]
__all__ += ["link_fd", "start_writeback", "unlink", "utime_ns", "write_all"]

StrPath = str | os.PathLike[str]


class Failpoint:
    """Count the calls of one step and fail the n-th (1-based)."""

    def __init__(self, op: str, nth: int, action: str) -> None:
        if action not in {"kill", "kill-after", "torn", "eio", "enospc", "enospc+", "eio+"}:
            raise ValueError(f"unknown failpoint action {action!r}")
        self.op = op
        self.nth = nth
        self.action = action
        self.calls = 0

    def hit(self, op: str) -> str | None:
        """Return the action if this call is the one to fail.

        An action that ends in ``+`` fails this call and every later one.
        """
        if self.op not in ("*", op):
            return None
        self.calls += 1
        if self.action.endswith("+"):
            return self.action[:-1] if self.calls >= self.nth else None
        return self.action if self.calls == self.nth else None


_lock = threading.Lock()
_points: list[Failpoint] = []


def parse_failpoints(text: str) -> list[Failpoint]:
    """Read ``op:n:action`` items separated by commas; raise ``ValueError`` on anything else."""
    points = []
    for item in filter(None, text.split(",")):
        op, nth, action = item.rsplit(":", 2)
        points.append(Failpoint(op, int(nth), action))
    return points


def arm(points: list[Failpoint]) -> None:
    """Use these failpoints from now on (tests only)."""
    with _lock:
        _points[:] = points


def disarm() -> None:
    """Forget all failpoints."""
    arm([])


if os.environ.get("PYREP_ALLOW_FAILPOINTS") == "1":
    arm(parse_failpoints(os.environ.get("PYREP_FAILPOINT", "")))


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _check(op: str) -> str | None:
    """Apply a due failpoint; return ``torn`` or ``kill-after`` for the caller to finish."""
    if not _points:
        return None
    with _lock:
        action = next((a for a in (p.hit(op) for p in _points) if a), None)
    if action == "kill":
        _die()
    if action == "eio":
        raise OSError(errno.EIO, "injected input/output error", op)
    if action == "enospc":
        raise OSError(errno.ENOSPC, "injected: no space left on device", op)
    return action


def _call(op: str, call: Callable[[], object]) -> None:
    action = _check(op)
    call()
    if action is not None:
        _die()


def open_file(
    op: str, path: StrPath, flags: int, mode: int = 0o600, *, dir_fd: int | None = None
) -> int:
    """Open a file for writing and return its descriptor; close-on-exec is always set."""
    action = _check(op)
    fd = os.open(path, flags | os.O_CLOEXEC, mode, dir_fd=dir_fd)
    if action is not None:
        _die()
    return fd


def _torn(action: str | None, size: int) -> int:
    return size // 2 if action == "torn" else size


def write_all(op: str, fd: int, data: bytes | bytearray | memoryview) -> None:
    """Write all of ``data`` at the descriptor's offset."""
    action = _check(op)
    view = memoryview(data).cast("B")
    view = view[: _torn(action, len(view))]
    while len(view):
        view = view[os.write(fd, view) :]
    if action is not None:
        _die()


def pwrite_all(op: str, fd: int, data: bytes | bytearray | memoryview, offset: int) -> None:
    """Write all of ``data`` at ``offset`` bytes from the start of the file."""
    action = _check(op)
    view = memoryview(data).cast("B")
    view = view[: _torn(action, len(view))]
    while len(view):
        done = os.pwrite(fd, view, offset)
        view = view[done:]
        offset += done
    if action is not None:
        _die()


def _load(name: str, *types: type) -> Callable[..., int] | None:
    """Return a call of the C library, None where it has none."""
    call = getattr(ctypes.CDLL(None, use_errno=True), name, None)
    if call is not None:
        call.argtypes = types
    return call


_SYNC_FILE_RANGE_WAIT_BEFORE, _SYNC_FILE_RANGE_WRITE = 1, 2
_sync_file_range = _load(
    "sync_file_range", ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint
)
_syncfs = _load("syncfs", ctypes.c_int)


def start_writeback(fd: int, offset: int, size: int) -> None:
    """Let the kernel begin to write a range of a file to its device.

    It changes nothing and proves nothing, so it has no step name and its failure is no error:
    a later :func:`fsync` has less to do, and tells of what went wrong.
    """
    if _sync_file_range is not None:
        _sync_file_range(fd, offset, size, _SYNC_FILE_RANGE_WRITE)


def fsync(op: str, fd: int) -> None:
    """Make the content of a file durable."""
    _call(op, lambda: os.fsync(fd))


def sync_file_system(op: str, fd: int) -> None:
    """Make everything durable that is on the file system of an open file, names too.

    An error of one file may have been told to another process before: see
    :func:`check_written`.
    """
    _call(op, lambda: _succeed(_syncfs, fd))


def check_written(op: str, fd: int) -> None:
    """Raise ``OSError`` if the kernel could not write something of an open file to its device.

    Waits for what is on its way; what was not begun is not written.
    """
    _call(op, lambda: _succeed(_sync_file_range, fd, 0, 0, _SYNC_FILE_RANGE_WAIT_BEFORE))


def _succeed(call: Callable[..., int] | None, *arguments: int) -> None:
    code = errno.ENOSYS if call is None else 0
    if call is not None and call(*arguments):
        code = ctypes.get_errno()
    if code:
        raise OSError(code, os.strerror(code))


def fsync_dir(op: str, path: StrPath) -> None:
    """Make the names in a directory durable."""

    def call() -> None:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    _call(op, call)


def replace(op: str, src: StrPath, dst: StrPath) -> None:
    """Rename ``src`` over ``dst``."""
    _call(op, lambda: os.replace(src, dst))


def link(op: str, src: StrPath, dst: StrPath) -> None:
    """Publish ``src`` under the name ``dst``; raise ``FileExistsError`` if that exists."""
    _call(op, lambda: os.link(src, dst))


def link_fd(op: str, fd: int, dst: StrPath) -> None:
    """Publish the open file ``fd`` under the name ``dst``; raise ``FileExistsError`` if it exists.

    The file itself is meant, whatever its name leads to by now.
    """
    # With a directory given, however needless, Python makes the call that follows the link.
    _call(op, lambda: os.link(f"/proc/self/fd/{fd}", dst, src_dir_fd=fd, follow_symlinks=True))


def unlink(op: str, path: StrPath, *, missing_ok: bool = False) -> None:
    """Remove a file."""

    def call() -> None:
        Path(path).unlink(missing_ok=missing_ok)

    _call(op, call)


def rmdir(op: str, path: StrPath) -> None:
    """Remove an empty directory."""
    _call(op, lambda: os.rmdir(path))


def remove_tree(op: str, path: StrPath) -> None:
    """Remove a directory and all in it, without following links; missing is success."""
    try:
        entries = list(os.scandir(path))
    except FileNotFoundError:
        return
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            remove_tree(op, entry.path)
        else:
            unlink(op, entry.path, missing_ok=True)
    rmdir(op, path)


def make_dirs(op: str, path: StrPath, mode: int = 0o700) -> list[Path]:
    """Create a directory and its missing parents; return those created, outermost first."""
    missing = []
    here = Path(path)
    while not here.is_dir():
        missing.append(here)
        here = here.parent
    missing.reverse()

    def call() -> None:
        for folder in missing:
            folder.mkdir(mode=mode, exist_ok=True)

    if missing:
        _call(op, call)
    return missing


def truncate(op: str, fd: int, size: int) -> None:
    """Cut or extend a file to ``size`` bytes."""
    _call(op, lambda: os.ftruncate(fd, size))


def utime_ns(op: str, fd: int, ns: int) -> None:
    """Set access and modification time in nanoseconds since the epoch."""
    _call(op, lambda: os.utime(fd, ns=(ns, ns)))


def chmod(op: str, fd: int, mode: int) -> None:
    """Set the permission bits."""
    _call(op, lambda: os.fchmod(fd, mode))


def chown(op: str, fd: int, uid: int, gid: int) -> None:
    """Set owner and group."""
    _call(op, lambda: os.fchown(fd, uid, gid))
