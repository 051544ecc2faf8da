"""The daemon's folder: one per configuration, locked while a daemon runs."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path

from pyrep import osfs
from pyrep.clock import Clock
from pyrep.config.model import Config
from pyrep.errors import PyrepError, StateLockedError

__all__ = ["StateFolder", "catalog_path", "running_pid", "state_folder"]

_CATALOG = "catalog.db"
_LOCK = "lock"
_READABLE = 40
_HASH = 12
_PATIENCE_SECONDS = 1.0
_PAUSE_SECONDS = 0.05


def state_folder(config: Config) -> Path:
    """Return the folder of a configuration in ``state-dir``.

    The name is the same for the same configuration file, or, without a file, for the same
    database.
    """
    if config.source is not None:
        identity, readable = f"config:{os.path.abspath(config.source)}", config.source.name
    else:
        paths = [str(entry.path or entry.dir) for entry in config.dbs]
        identity, readable = "dbs:" + "\0".join(paths), Path(paths[0]).name if paths else "none"
    digest = hashlib.sha256(os.fsencode(identity)).hexdigest()[:_HASH]
    plain = re.sub(r"[^A-Za-z0-9._-]+", "_", readable).strip("._")[:_READABLE]
    return config.state_dir / f"{plain or 'config'}-{digest}"


def catalog_path(config: Config) -> Path:
    """Return where the catalog of a configuration is, whether it exists or not."""
    return state_folder(config) / _CATALOG


class StateFolder:
    """Own a state folder from ``acquire`` to ``release``."""

    def __init__(self, config: Config, clock: Clock) -> None:
        self.path = state_folder(config)
        self.catalog_path = catalog_path(config)
        self._state_dir = config.state_dir
        self._clock = clock
        self._fd = -1

    def acquire(self) -> None:
        """Create the folder if need be and lock it; the lock file names this process.

        :raises StateLockedError: another daemon holds it
        :raises PyrepError: it cannot be created or written
        """
        try:
            osfs.make_dirs("folder.mkdir", self.path)
            fd = osfs.open_file("folder.open", self.path / _LOCK, os.O_RDWR | os.O_CREAT)
        except OSError as error:
            raise self._unusable(error) from error
        try:
            self._lock(fd)
            osfs.truncate("folder.truncate", fd, 0)
            osfs.pwrite_all("folder.write", fd, f"{os.getpid()}\n".encode(), 0)
        except OSError as error:
            os.close(fd)
            raise self._unusable(error) from error
        except StateLockedError:
            os.close(fd)
            raise
        self._fd = fd

    def _unusable(self, error: OSError) -> PyrepError:
        return PyrepError(
            f"state directory {self.path} cannot be used: {error.strerror}",
            hint=f"Make {self._state_dir} writable for this user, or set state-dir.",
        )

    def _lock(self, fd: int) -> None:
        """Lock; somebody who only asks who runs holds the lock for a moment, so try again."""
        deadline = self._clock.monotonic() + _PATIENCE_SECONDS
        while not _flock(fd, fcntl.LOCK_EX):
            if self._clock.monotonic() >= deadline:
                pid = _read_pid(fd)
                raise StateLockedError(
                    f"state directory {self.path} is locked by another daemon (pid {pid or '?'})",
                    hint="Stop that daemon first; one configuration is run by one daemon.",
                )
            self._clock.wait(threading.Event(), _PAUSE_SECONDS)

    def release(self) -> None:
        """Unlock; the file stays, empty.  Safe to call twice."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            with contextlib.suppress(OSError):
                osfs.truncate("folder.truncate", fd, 0)
            os.close(fd)


def running_pid(config: Config) -> int | None:
    """Return the process id of the daemon that runs a configuration, None if none does."""
    with _opened(state_folder(config) / _LOCK) as fd:
        if fd < 0 or _flock(fd, fcntl.LOCK_SH):
            return None
        return _read_pid(fd)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    """Yield a descriptor for reading, -1 if there is no such file."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        yield -1
        return
    except OSError as error:
        raise PyrepError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        yield fd
    finally:
        os.close(fd)


def _flock(fd: int, kind: int) -> bool:
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _read_pid(fd: int) -> int | None:
    text = os.pread(fd, 32, 0).strip()
    return int(text) if text.isdigit() else None
