# cython: language_level=3, binding=True, embedsignature=True
# cython: auto_pickle=False, autotestdict=False
"""CRC-64/ISO, page and database checksums, and SQLite's WAL checksum."""

import os

cimport cython
from libc.errno cimport EINTR, errno
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset
from posix.types cimport off_t

from pyrep.errors import ConfigError
from pyrep.ids import lock_pgno

cdef extern from "<unistd.h>" nogil:
    ssize_t pread(int fd, void *data, size_t size, off_t offset)

cdef extern from "crc64_table.h" nogil:
    void crc64_tables_init()
    uint64_t crc64_multiply(uint64_t a, uint64_t b)
    uint64_t crc64_power_of(uint64_t size)
    uint64_t crc64_update_table(uint64_t crc, const uint8_t *data, size_t size)

cdef extern from "crc64_clmul.h" nogil:
    void crc64_clmul_init()
    bint crc64_have_128()
    bint crc64_have_256()
    uint64_t crc64_update_128(uint64_t crc, const uint8_t *data, size_t size)
    uint64_t crc64_update_256(uint64_t crc, const uint8_t *data, size_t size)

cdef extern from "wal_sum.h" nogil:
    void wal_checksum_update(uint32_t *sums, const uint8_t *data, size_t size, bint big_endian)

__all__ = [
    "CHECKSUM_FLAG",
    "available",
    "crc64",
    "crc64_combine",
    "crc64_pages",
    "crc64_pages_fd",
    "database_checksum",
    "implementation",
    "page_term",
    "select",
    "wal_checksum",
]

CHECKSUM_FLAG = 1 << 63

ctypedef uint64_t (*crc64_function)(uint64_t, const uint8_t *, size_t) noexcept nogil

cdef enum:
    READ_BYTES = 1048576
    RELEASE_GIL_BYTES = 4096

# Set by select(); only read by the kernels' callers.
cdef crc64_function _kernel = <crc64_function>crc64_update_table
cdef str _kernel_name = "table"


cdef uint64_t crc64_update(uint64_t crc, const uint8_t *data, size_t size) noexcept nogil:
    return _kernel(crc, data, size)


cdef uint64_t crc64_power(uint64_t size) noexcept nogil:
    return crc64_power_of(size)


cdef uint64_t crc64_join(uint64_t crc1, uint64_t crc2, uint64_t size2) noexcept nogil:
    return crc64_multiply(crc1, crc64_power_of(size2)) ^ crc2


def implementation() -> str:
    """Return the name of the CRC-64 implementation in use."""
    return _kernel_name


def available() -> tuple[str, ...]:
    """Return the implementations that this processor can run, the fastest first.

    ``clmul`` uses the widest carry-less multiplication there is; ``clmul128`` is listed where
    that is wider than 128 bits.
    """
    if crc64_have_256():
        return ("clmul", "clmul128", "table")
    if crc64_have_128():
        return ("clmul", "table")
    return ("table",)


def select(name: str) -> None:
    """Use the implementation ``name`` from now on, in the whole process (tests only).

    :raises ConfigError: the name is unknown, or the processor cannot run it
    """
    global _kernel, _kernel_name
    if name not in available():
        raise ConfigError(
            "no such CRC-64 implementation on this processor",
            field="PYREP_CRC",
            value=name,
            hint=f"Unset PYREP_CRC or set it to one of: {', '.join(available())}.",
        )
    if name == "table":
        _kernel = <crc64_function>crc64_update_table
    elif name == "clmul" and crc64_have_256():
        _kernel = <crc64_function>crc64_update_256
    else:
        _kernel = <crc64_function>crc64_update_128
    _kernel_name = name


def crc64(data not None, uint64_t crc=0) -> int:
    """Return the CRC-64/ISO of ``data``, continuing from the CRC of what came before it."""
    cdef const uint8_t[::1] view = memoryview(data).cast("B")
    cdef size_t size = <size_t>view.shape[0]
    if size == 0:
        return crc
    cdef const uint8_t *start = &view[0]
    if size < RELEASE_GIL_BYTES:
        return crc64_update(crc, start, size)
    with nogil:
        crc = crc64_update(crc, start, size)
    return crc


def crc64_combine(uint64_t crc1, uint64_t crc2, uint64_t len2) -> int:
    """Return the CRC of two messages one after the other; ``len2`` is the second's, in bytes."""
    return crc64_join(crc1, crc2, len2)


cdef int _check_page_size(object page_size) except -1:
    if not 512 <= page_size <= 65536 or page_size & (page_size - 1):
        raise ValueError(f"invalid page size: {page_size}")
    return 0


cdef uint64_t[::1] _as_crcs(object out):
    return memoryview(out).cast("B").cast("Q")


def crc64_pages(data not None, uint32_t page_size, out not None) -> int:
    """Write the CRC-64 of each page in ``data`` to ``out`` and return the number of pages.

    ``out`` is a writable buffer of at least that many native 64-bit words.

    :raises ValueError: ``data`` is no whole number of pages, or ``out`` is too small
    """
    _check_page_size(page_size)
    cdef const uint8_t[::1] view = memoryview(data).cast("B")
    cdef uint64_t[::1] crcs = _as_crcs(out)
    cdef Py_ssize_t count = view.shape[0] // page_size
    cdef Py_ssize_t i
    if view.shape[0] % page_size:
        raise ValueError(f"{view.shape[0]} bytes are no whole number of {page_size}-byte pages")
    if crcs.shape[0] < count:
        raise ValueError(f"no room for {count} checksums: the buffer holds {crcs.shape[0]}")
    with nogil:
        for i in range(count):
            crcs[i] = crc64_update(0, &view[i * page_size], page_size)
    return count


cdef ssize_t _read_full(int fd, uint8_t *data, size_t size, int64_t offset) noexcept nogil:
    """Read up to ``size`` bytes, fewer only at the end of the file; -1 leaves errno set."""
    cdef size_t done = 0
    cdef ssize_t n
    while done < size:
        n = pread(fd, data + done, size - done, offset + <int64_t>done)
        if n < 0 and errno == EINTR:
            continue
        if n < 0:
            return -1
        if n == 0:
            break
        done += <size_t>n
    return <ssize_t>done


cdef int _crc_pages_fd(
    int fd, uint64_t first, size_t page_size, uint64_t *crcs, size_t count, uint8_t *chunk
) noexcept nogil:
    """Return 0, or the errno of a failed read."""
    cdef size_t batch = READ_BYTES // page_size
    cdef size_t done = 0, n, i
    cdef ssize_t got
    while done < count:
        n = min(batch, count - done)
        got = _read_full(fd, chunk, n * page_size, <int64_t>((first - 1 + done) * page_size))
        if got < 0:
            return errno
        memset(chunk + got, 0, n * page_size - <size_t>got)
        for i in range(n):
            crcs[done + i] = crc64_update(0, chunk + i * page_size, page_size)
        done += n
    return 0


def crc64_pages_fd(int fd, uint32_t first_pgno, uint32_t page_size, out not None) -> None:
    """Write the CRC-64 of consecutive pages of a database file to ``out``, one word each.

    Reads as many pages as ``out`` has 64-bit words, from ``first_pgno`` (1-based) on; what lies
    past the end of the file counts as zeros.

    :raises OSError: a read failed
    """
    _check_page_size(page_size)
    if first_pgno == 0:
        raise ValueError("page numbers start at 1")
    cdef uint64_t[::1] crcs = _as_crcs(out)
    cdef size_t count = <size_t>crcs.shape[0]
    cdef int error = 0
    cdef uint8_t *chunk
    if count == 0:
        return
    chunk = <uint8_t *>malloc(min(<size_t>READ_BYTES, count * page_size))
    if chunk == NULL:
        raise MemoryError()
    try:
        with nogil:
            error = _crc_pages_fd(fd, first_pgno, page_size, &crcs[0], count, chunk)
    finally:
        free(chunk)
    if error:
        raise OSError(error, os.strerror(error))


@cython.overflowcheck(False)  # arithmetic modulo 2^64 is what is meant
cdef inline uint64_t _term(uint64_t crc, uint64_t pgno) noexcept nogil:
    cdef uint64_t value = crc + pgno * <uint64_t>0x9E3779B97F4A7C15
    value = (value ^ (value >> 33)) * <uint64_t>0xFF51AFD7ED558CCD
    value = (value ^ (value >> 33)) * <uint64_t>0xC4CEB9FE1A85EC53
    return value ^ (value >> 33)


def page_term(uint64_t crc, uint32_t pgno) -> int:
    """Return what one page puts into the database checksum: its CRC-64 mixed with its number."""
    return _term(crc, pgno)


def database_checksum(crcs not None, uint32_t first_pgno, uint32_t page_size) -> int:
    """Return the XOR of the terms of consecutive pages, the lock page left out.

    ``crcs`` holds the pages' CRC-64 as native 64-bit words, the first one for page
    ``first_pgno``.  Results for neighbouring ranges are joined by XOR.
    """
    _check_page_size(page_size)
    cdef const uint64_t[::1] view = memoryview(crcs).cast("B").cast("Q")
    cdef uint64_t pgno = first_pgno, lock = lock_pgno(page_size), total = 0
    cdef Py_ssize_t i
    with nogil:
        for i in range(view.shape[0]):
            if pgno != lock:
                total ^= _term(view[i], pgno)
            pgno += 1
    return total


def wal_checksum(
    data not None, uint32_t s0=0, uint32_t s1=0, *, bint big_endian
) -> tuple[int, int]:
    """Return SQLite's cumulative WAL checksum of ``data``, continuing from ``(s0, s1)``.

    :raises ValueError: the length is no multiple of eight bytes
    """
    cdef const uint8_t[::1] view = memoryview(data).cast("B")
    cdef uint32_t sums[2]
    if view.shape[0] % 8:
        raise ValueError(f"{view.shape[0]} bytes are no multiple of eight")
    sums[0] = s0
    sums[1] = s1
    if view.shape[0]:
        with nogil:
            wal_checksum_update(sums, &view[0], <size_t>view.shape[0], big_endian)
    return sums[0], sums[1]


crc64_tables_init()
crc64_clmul_init()
select(os.environ.get("PYREP_CRC") or available()[0])
