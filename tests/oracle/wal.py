"""SQLite's WAL format: checksums, frames, and the page map of a range."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

HEADER = 32
FRAME_HEADER = 24
LITTLE = 0x377F0682
BIG = 0x377F0683


def checksum(data: bytes, sums: tuple[int, int], *, big_endian: bool) -> tuple[int, int]:
    """Return the cumulative checksum."""
    s0, s1 = sums
    for x, y in struct.iter_unpack(">II" if big_endian else "<II", data):
        s0 = (s0 + x + s1) & 0xFFFFFFFF
        s1 = (s1 + y + s0) & 0xFFFFFFFF
    return s0, s1


def build_header(
    page_size: int, salts: tuple[int, int], *, big_endian: bool = False, sequence: int = 0
) -> bytes:
    """Return a WAL header."""
    magic = BIG if big_endian else LITTLE
    head = struct.pack(">6I", magic, 3007000, page_size, sequence, *salts)
    return head + struct.pack(">II", *checksum(head, (0, 0), big_endian=big_endian))


@dataclass(frozen=True)
class Frame:
    """Hold one frame to build: page number, commit size (0: none) and page."""

    pgno: int
    commit: int
    page: bytes


def build(
    frames: list[Frame],
    page_size: int,
    salts: tuple[int, int] = (0x11111111, 0x22222222),
    *,
    big_endian: bool = False,
) -> bytes:
    """Return a WAL of these frames."""
    out = bytearray(build_header(page_size, salts, big_endian=big_endian))
    sums = struct.unpack(">II", out[24:32])
    for frame in frames:
        head = struct.pack(">II", frame.pgno, frame.commit)
        sums = checksum(head + frame.page, sums, big_endian=big_endian)
        out += head + struct.pack(">4I", *salts, *sums) + frame.page
    return bytes(out)


def rewrite(data: bytes, *, big_endian: bool) -> bytes:
    """Return a WAL with the same frames and checksums in the given byte order."""
    page_size, _, salt1, salt2 = struct.unpack_from(">4I", data, 8)
    frames = []
    step = FRAME_HEADER + page_size
    for place in range(HEADER, len(data) - step + 1, step):
        pgno, commit, first, second = struct.unpack_from(">4I", data, place)
        if (first, second) != (salt1, salt2):
            break
        frames.append(Frame(pgno, commit, data[place + FRAME_HEADER : place + step]))
    return build(frames, page_size, (salt1, salt2), big_endian=big_endian)


@dataclass
class Result:
    """Hold what a scan must find."""

    end_offset: int
    sums: tuple[int, int]
    frames: int = 0
    commit: int = 0
    commits: list[int] = field(default_factory=list)
    page_map: dict[int, int] = field(default_factory=dict)
    limited: bool = False
    complete: bool = False


def scan(
    data: bytes,
    *,
    start: int = HEADER,
    sums: tuple[int, int] | None = None,
    max_frame: int,
    max_bytes: int = 0,
) -> Result:
    """Read a range of frames slowly."""
    magic, _, page_size, _, salt1, salt2, sum1, sum2 = struct.unpack_from(">8I", data)
    running = (sum1, sum2) if sums is None else sums
    step = FRAME_HEADER + page_size
    number = (start - HEADER) // step + 1
    result = Result(start, running, complete=number > max_frame)
    place, pending = start, {}
    while number <= max_frame and place + step <= len(data):
        pgno, commit, first, second, c1, c2 = struct.unpack_from(">6I", data, place)
        page = data[place + FRAME_HEADER : place + step]
        running = checksum(data[place : place + 8] + page, running, big_endian=magic == BIG)
        if (first, second) != (salt1, salt2) or (c1, c2) != running or pgno == 0:
            break
        pending[pgno] = place
        place += step
        number += 1
        if commit:
            result.page_map.update(pending)
            pending = {}
            result.end_offset, result.sums, result.commit = place, running, commit
            result.commits.append(commit)
            result.frames = (place - start) // step
            result.complete = number == max_frame + 1
            if max_bytes and place - start >= max_bytes:
                result.limited = not result.complete
                break
    lock = 0x40000000 // page_size + 1
    kept = {p: o for p, o in result.page_map.items() if p <= result.commit and p != lock}
    result.page_map = dict(sorted(kept.items()))
    return result
