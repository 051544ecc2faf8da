"""Declarations that the sibling modules cimport."""

from libc.stdint cimport uint8_t, uint64_t

# Continue the CRC of the bytes before by `size` bytes; no GIL needed.
cdef uint64_t crc64_update(uint64_t crc, const uint8_t *data, size_t size) noexcept nogil

# x^(8 * size) modulo the polynomial; appending `size` bytes multiplies a CRC by it.
cdef uint64_t crc64_power(uint64_t size) noexcept nogil

# The CRC of two messages, the second one `size2` bytes long.
cdef uint64_t crc64_join(uint64_t crc1, uint64_t crc2, uint64_t size2) noexcept nogil
