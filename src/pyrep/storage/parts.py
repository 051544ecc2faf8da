"""Cutting a file of any size into the parts of an upload.

Most storages allow 10,000 parts.  They are of one size, because some providers insist on that:
the configured one, or what the total needs.  When the total is not known beforehand, the last
thousand parts grow.
"""

from __future__ import annotations

from collections.abc import Iterator

from pyrep.storage.checks import IncomingFile

__all__ = ["MAX_PARTS", "file_parts", "part_sizes"]

MAX_PARTS = 10_000
_MIB = 1 << 20
_EQUAL_PARTS = 9_000
_GROWTH_PARTS = 100


def part_sizes(configured: int, total: int | None) -> Iterator[int]:
    """Yield the size of each part in turn, without end; MAX_PARTS of them hold any total."""
    size = configured
    if total is not None:
        needed = -(-total // MAX_PARTS)
        size = max(size, -(-needed // _MIB) * _MIB)
    for _ in range(_EQUAL_PARTS):
        yield size
    while True:
        if total is None:
            size *= 2
        for _ in range(_GROWTH_PARTS):
            yield size


def file_parts(incoming: IncomingFile, sizes: Iterator[int]) -> Iterator[bytes]:
    """Cut a file into parts; all but the last have the sizes asked for, and none is empty."""
    pending = bytearray()
    size = next(sizes)
    for chunk in incoming.chunks():
        pending += chunk
        while len(pending) > size:
            yield bytes(memoryview(pending)[:size])
            del pending[:size]
            size = next(sizes)
    yield bytes(pending)
