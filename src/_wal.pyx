# cython: language_level=3, binding=True, embedsignature=True
# cython: auto_pickle=False, autotestdict=False
"""SQLite's write-ahead log: header, frames, checksum chain, page map of committed frames."""

import os
from array import array

cimport cython
from cpython cimport array as carray
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memset

from pyrep.errors import WALError
from pyrep.ids import lock_pgno

cdef extern from "wal_sum.h" nogil:
    void wal_checksum_update(uint32_t *sums, const uint8_t *data, size_t size, bint big_endian)

cdef extern from "wal_core.h" nogil:
    enum:
        WAL_OK
        WAL_E_MEMORY
        WAL_HEADER_BYTES
        WAL_FRAME_HEADER_BYTES

    ctypedef struct wal_slot:
        int64_t last
        uint32_t pgno

    ctypedef struct wal_scan:
        int fd
        uint32_t page_size, salt1, salt2
        bint big_endian
        int64_t offset
        uint64_t frame, limit, max_bytes
        uint32_t sums[2]
        wal_slot *slots
        int64_t end_offset
        uint32_t end_sums[2]
        uint64_t frames, commits
        uint32_t commit, min_commit
        uint32_t max_commit, shrunk_to
        bint complete, limited
        int error

    uint32_t wal_be32(const uint8_t *data)
    int wal_scan_range(wal_scan *scan)
    size_t wal_page_map(wal_scan *scan, uint32_t lock_pgno)

__all__ = ["FRAME_HEADER_SIZE", "WAL_HEADER_SIZE", "WALHeader", "WALScan", "parse_header", "scan"]

WAL_HEADER_SIZE = WAL_HEADER_BYTES
FRAME_HEADER_SIZE = WAL_FRAME_HEADER_BYTES

cdef enum:
    MAGIC_LITTLE = 0x377F0682
    MAGIC_BIG = 0x377F0683
    VERSION = 3007000


@cython.final
cdef class WALHeader:
    """Hold the fields of a WAL header; made by :func:`parse_header`."""

    cdef readonly uint32_t page_size
    cdef readonly uint32_t sequence
    cdef readonly uint32_t salt1
    cdef readonly uint32_t salt2
    cdef readonly uint32_t checksum1
    cdef readonly uint32_t checksum2
    cdef readonly bint big_endian

    def __repr__(self) -> str:
        return (
            f"WALHeader(page_size={self.page_size}, sequence={self.sequence}, "
            f"salt1={self.salt1:#010x}, salt2={self.salt2:#010x})"
        )


@cython.final
cdef class WALScan:
    """Hold what :func:`scan` found, up to the last commit frame it accepted.

    ``end_offset`` is just past that frame and ``checksum1``/``checksum2`` are its cumulative
    checksum.  ``commit`` is its database size in pages, ``min_commit`` the smallest one of the
    range (0: no commit), ``shrunk_to`` the smallest one after a larger one (0: it never shrank).
    ``pgnos`` ascends; ``offsets`` are those of the frame headers.
    """

    cdef readonly int64_t start_offset
    cdef readonly int64_t end_offset
    cdef readonly uint32_t checksum1
    cdef readonly uint32_t checksum2
    cdef readonly uint64_t frames
    cdef readonly uint64_t commits
    cdef readonly uint32_t commit
    cdef readonly uint32_t min_commit
    cdef readonly uint32_t shrunk_to
    cdef readonly bint complete
    cdef readonly bint limited
    cdef readonly object pgnos
    cdef readonly object offsets

    def __repr__(self) -> str:
        return (
            f"WALScan({self.start_offset}..{self.end_offset}, frames={self.frames}, "
            f"commits={self.commits}, commit={self.commit}, pages={len(self.pgnos)}, "
            f"complete={self.complete}, limited={self.limited})"
        )


cdef bint _valid_page_size(uint32_t page_size) noexcept nogil:
    return 512 <= page_size <= 65536 and page_size & (page_size - 1) == 0


def parse_header(data not None) -> WALHeader | None:
    """Read a WAL header; return None if it is torn (short, or its checksum does not match).

    A torn header means that there is no WAL: its writer did not finish it.

    :raises WALError: the bytes are another file's, or of an unknown version
    """
    cdef const uint8_t[::1] view = memoryview(data).cast("B")
    cdef uint32_t sums[2]
    cdef uint32_t magic
    cdef WALHeader header
    if view.shape[0] < WAL_HEADER_BYTES:
        return None
    magic = wal_be32(&view[0])
    if magic not in (MAGIC_LITTLE, MAGIC_BIG):
        raise WALError(f"invalid wal magic: 0x{magic:08x}")
    memset(sums, 0, sizeof(sums))
    wal_checksum_update(sums, &view[0], 24, magic == MAGIC_BIG)
    if wal_be32(&view[24]) != sums[0] or wal_be32(&view[28]) != sums[1]:
        return None
    if wal_be32(&view[4]) != VERSION:
        raise WALError(f"unsupported wal version: {wal_be32(&view[4])} (expected {VERSION})")
    if not _valid_page_size(wal_be32(&view[8])):
        raise WALError(f"invalid wal page size: {wal_be32(&view[8])}")
    header = WALHeader.__new__(WALHeader)
    header.big_endian = magic == MAGIC_BIG
    header.page_size = wal_be32(&view[8])
    header.sequence = wal_be32(&view[12])
    header.salt1 = wal_be32(&view[16])
    header.salt2 = wal_be32(&view[20])
    header.checksum1 = sums[0]
    header.checksum2 = sums[1]
    return header


cdef int _start(
    wal_scan *state, WALHeader header, int64_t offset, uint32_t checksum1, uint32_t checksum2
) except -1:
    """Set the place and the running checksum that the scan begins with."""
    cdef int64_t step = WAL_FRAME_HEADER_BYTES + <int64_t>header.page_size
    if not _valid_page_size(header.page_size):
        raise WALError(f"invalid wal page size: {header.page_size}")
    if offset < WAL_HEADER_BYTES or (offset - WAL_HEADER_BYTES) % step:
        raise WALError(f"unaligned wal offset {offset} (page size {header.page_size})")
    state.page_size = header.page_size
    state.salt1 = header.salt1
    state.salt2 = header.salt2
    state.big_endian = header.big_endian
    state.offset = offset
    state.end_offset = offset
    state.frame = <uint64_t>((offset - WAL_HEADER_BYTES) // step + 1)
    # The chain of the first frame starts at the header's own checksum, whatever was passed.
    state.sums[0] = header.checksum1 if offset == WAL_HEADER_BYTES else checksum1
    state.sums[1] = header.checksum2 if offset == WAL_HEADER_BYTES else checksum2
    state.end_sums[0] = state.sums[0]
    state.end_sums[1] = state.sums[1]
    return 0


cdef WALScan _result(wal_scan *state, int64_t start_offset):
    cdef WALScan result = WALScan.__new__(WALScan)
    cdef size_t count = wal_page_map(state, lock_pgno(state.page_size))
    cdef carray.array pgnos = carray.clone(array("I"), <Py_ssize_t>count, zero=False)
    cdef carray.array offsets = carray.clone(array("q"), <Py_ssize_t>count, zero=False)
    cdef size_t i
    for i in range(count):
        pgnos.data.as_uints[i] = state.slots[i].pgno
        (<int64_t *>offsets.data.as_voidptr)[i] = state.slots[i].last
    result.start_offset = start_offset
    result.end_offset = state.end_offset
    result.checksum1 = state.end_sums[0]
    result.checksum2 = state.end_sums[1]
    result.frames = state.frames
    result.commits = state.commits
    result.commit = state.commit
    result.min_commit = state.min_commit
    result.shrunk_to = state.shrunk_to
    result.complete = state.complete
    result.limited = state.limited
    result.pgnos = pgnos
    result.offsets = offsets
    return result


def scan(
    int fd,
    WALHeader header not None,
    *,
    int64_t start_offset=WAL_HEADER_BYTES,
    uint32_t checksum1=0,
    uint32_t checksum2=0,
    uint64_t max_frame,
    uint64_t max_bytes=0,
    uint32_t commit=0,
) -> WALScan:
    """Read the frames from ``start_offset`` to frame number ``max_frame`` and map their pages.

    ``checksum1``/``checksum2`` are the cumulative checksum of the frame before ``start_offset``
    (of the header at offset 32).  Frames count from 1 at offset 32; nothing above ``max_frame``
    is read.  With ``max_bytes`` the scan ends at the first commit frame at which at least so
    many bytes were read (``limited``).  ``complete`` says that the range reaches exactly
    ``max_frame`` and that a commit frame is there, or that it is empty.  ``commit`` is the
    database size in pages before the range, from which ``shrunk_to`` starts.

    :raises WALError: ``start_offset`` is not where a frame starts
    :raises OSError: a read failed
    """
    cdef wal_scan state
    cdef int status
    memset(&state, 0, sizeof(state))
    _start(&state, header, start_offset, checksum1, checksum2)
    state.fd = fd
    state.limit = max_frame
    state.max_bytes = max_bytes
    state.max_commit = commit
    try:
        with nogil:
            status = wal_scan_range(&state)
        if status == WAL_E_MEMORY:
            raise MemoryError()
        if status != WAL_OK:
            raise OSError(state.error, os.strerror(state.error))
        return _result(&state, start_offset)
    finally:
        free(state.slots)
