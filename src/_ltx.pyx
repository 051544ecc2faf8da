# cython: language_level=3, binding=True, embedsignature=True
# cython: auto_pickle=False, autotestdict=False
"""LTX files: header, page frames, page index, trailer; encoding, decoding and merging.

Nothing here opens, stats, writes or renames a file: callers pass descriptors to read from and
buffers to fill.  An Encoder, Decoder or Merger is used by one thread at a time.
"""

import os

cimport cython
from libc.errno cimport errno
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

from pyrep._checksum cimport crc64_join, crc64_power, crc64_update

from pyrep.errors import LTXChecksumError, LTXCorruptError, LTXError, LTXGapError, WALError

__all__ = [
    "FLAG_NO_CHECKSUM",
    "FLAG_ZSTD",
    "HEADER_SIZE",
    "PAGE_FLAG_SIZE",
    "PAGE_FLAG_ZSTD",
    "PAGE_HEADER_SIZE",
    "TRAILER_SIZE",
    "Decoder",
    "Encoder",
    "Header",
    "IndexScan",
    "Merger",
]

HEADER_SIZE = LTX_HEADER_BYTES
PAGE_HEADER_SIZE = LTX_PAGE_HEADER_BYTES
TRAILER_SIZE = LTX_TRAILER_BYTES
PAGE_FLAG_SIZE = LTX_PAGE_FLAG_SIZE
PAGE_FLAG_ZSTD = LTX_PAGE_FLAG_ZSTD
FLAG_NO_CHECKSUM = 0x2
FLAG_ZSTD = 0x100

cdef enum:  # literals only: Cython's overflow checks cannot evaluate expressions here
    MAGIC = 0x4C545831  # "LTX1"
    PYREP_MAGIC = 0x50595231  # "PYR1"
    NO_CHECKSUM = 0x2
    ZSTD = 0x100
    KNOWN_FLAGS = 0x102
    MERGE_WINDOWS_BYTES = 16777216  # of all inputs
    MERGE_WINDOW_BYTES = 262144  # of one

cdef enum:  # states of an Encoder, Decoder or Merger
    ADDING
    ENDING
    CLOSED

cdef uint64_t SIGN = <uint64_t>1 << 63

if LZ4_versionNumber() < PYREP_LZ4_MINIMUM:
    raise ImportError(f"liblz4 is too old: {LZ4_versionNumber()} (1.9.0, that is 10900, is needed)")

# What a status means; {pgno}, {last}, {commit}, {detail} come from the run.
cdef dict _MESSAGES = {
    LTX_E_PGNO_ZERO: "page number required",
    LTX_E_PGNO_COMMIT: "page number {pgno} out of bounds for commit size {commit}",
    LTX_E_PGNO_LOCK: "the lock page must not be stored: page {pgno}",
    LTX_E_ORDER: "out-of-order page numbers: {last},{pgno}",
    LTX_E_SNAPSHOT: "nonsequential page numbers in snapshot: {last},{pgno}",
    LTX_E_FLAGS: "unknown flags 0x{detail:04x} of page {pgno}",
    LTX_E_SIZE: "impossible compressed size {detail} of page {pgno}",
    LTX_E_BLOCK: "broken compressed block of page {pgno}",
    LTX_E_LEGACY: "broken LZ4 frame of page {pgno}",
    LTX_E_INCOMPLETE: "incomplete snapshot: the last page is {last}, expected {pgno}",
    LTX_E_INDEX: "the page index does not match the pages",
    LTX_E_INDEX_SIZE: "wrong page index size: {detail}",
    LTX_E_TRAILING: "bytes after the trailer",
    LTX_E_TRUNCATED: "the file is cut off",
    LTX_E_POST_APPLY: "invalid post-apply checksum: {detail:016x}",
    LTX_E_NO_CHECKSUM: "invalid file checksum: {detail:016x}",
    LTX_E_FILE_CHECKSUM: "file checksum mismatch (stored {detail:016x})",
    LTX_E_ROLLING: "post-apply checksum mismatch",
    LTX_E_COMPRESS: "liblz4 refused page {pgno}",
    LTX_E_ZSTD: "broken zstd frame of page {pgno}",
    LTX_E_WAL_SHORT: "the wal ends before the frame of page {pgno}",
    LTX_E_WAL_PGNO: "the wal was overwritten: a frame of page {detail} where page {pgno} was",
    LTX_E_WAL_SALTS: "the wal was overwritten: other salts at the frame of page {pgno}",
}
cdef frozenset _WAL_STATUSES = frozenset({LTX_E_WAL_SHORT, LTX_E_WAL_PGNO, LTX_E_WAL_SALTS})
cdef frozenset _CHECKSUM_STATUSES = frozenset({LTX_E_FILE_CHECKSUM, LTX_E_ROLLING})


cdef object _error(int status, ltx_run *run, object kind, str op, Header header, str path=""):
    """Return the exception for a status."""
    if status == LTX_E_IO:
        return OSError(run.error, os.strerror(run.error))
    if status == LTX_E_MEMORY:
        return MemoryError()
    text = _MESSAGES[status].format(
        pgno=run.bad_pgno, last=run.last_pgno, commit=run.commit, detail=run.detail
    )
    if status == LTX_E_ZSTD:
        failure = _zstd_failure(run)
        if not isinstance(failure, ValueError):
            return failure
        text = f"{text}: {failure}"
    if status in _WAL_STATUSES:
        return WALError(text, hint="Map the wal again and encode from the start.")
    if status in _CHECKSUM_STATUSES:
        kind = LTXChecksumError
    return kind(text, op=op, path=path, min_txid=header.min_txid, max_txid=header.max_txid)


cdef const uint8_t[::1] _bytes(object data):
    return memoryview(data).cast("B")


cdef uint8_t[::1] _writable(object out):
    return memoryview(out).cast("B")


cdef bint _valid_page_size(uint32_t page_size) noexcept nogil:
    return 512 <= page_size <= 65536 and page_size & (page_size - 1) == 0


include "ltx_header.pxi"


include "ltx_zstd.pxi"


cdef int _init_run(ltx_run *run, Header header, bint tracks) except -1:
    ltx_run_init(
        run,
        <ltx_crc>crc64_update,
        crc64_power(header.page_size),
        header.page_size,
        header.commit,
        header.min_txid == 1,
        tracks,
    )
    return 0


include "ltx_encoder.pxi"
include "ltx_decoder.pxi"
include "ltx_merger.pxi"
