"""Read a promised range of a file of a replica that is a directory."""

from __future__ import annotations

import errno
import io
import os
import stat

from pyrep.errors import LTXCorruptError, LTXNotFoundError
from pyrep.ltxfile import FileInfo
from pyrep.storage.oserrors import os_errors

__all__ = ["RangeReader", "open_regular"]


class RangeReader(io.RawIOBase):
    """Read a promised number of bytes from a descriptor that it owns."""

    def __init__(self, fd: int, path: str, info: FileInfo, length: int) -> None:
        super().__init__()
        self._fd = fd
        self._path = path
        self._info = info
        self._left = length

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        view = memoryview(buffer).cast("B")[: self._left]
        if not view:
            return 0
        with os_errors("read", self._path):
            count = os.readv(self._fd, [view])
        if not count:
            raise _ltx_error(
                LTXCorruptError, f"file ended {self._left} bytes early", self._path, self._info
            )
        self._left -= count
        return count

    def close(self) -> None:
        if not self.closed:
            os.close(self._fd)
        super().close()


def _ltx_error(
    kind: type[LTXCorruptError | LTXNotFoundError], message: str, path: str, info: FileInfo
) -> LTXCorruptError | LTXNotFoundError:
    return kind(
        message,
        op="read",
        path=path,
        level=info.level,
        min_txid=info.min_txid,
        max_txid=info.max_txid,
    )


def open_regular(path: str, info: FileInfo) -> int:
    """Open for reading; a link, pipe or directory under an LTX name is foreign, so not found."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        fd = os.open(path, flags)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ELOOP):
            raise
        raise _ltx_error(LTXNotFoundError, "no such ltx file", path, info) from error
    if stat.S_ISREG(os.fstat(fd).st_mode):
        return fd
    os.close(fd)
    raise _ltx_error(LTXNotFoundError, "not a regular file, so no ltx file", path, info)
