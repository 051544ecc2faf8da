"""Declarations of the C core (ltx_core.h, ltx_scan.h, ltx_encode.h, ltx_merge.h)."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

cdef extern from "lz4_api.h" nogil:
    enum:
        PYREP_LZ4_MINIMUM
    ctypedef struct LZ4F_dctx:
        pass
    int LZ4_versionNumber()
    int LZ4_sizeofState()
    size_t LZ4F_freeDecompressionContext(LZ4F_dctx *context)

cdef extern from "ltx_core.h" nogil:
    enum:
        LTX_HEADER_BYTES
        LTX_PAGE_HEADER_BYTES
        LTX_TRAILER_BYTES
        LTX_PAGE_FLAG_SIZE
        LTX_PAGE_FLAG_ZSTD
        LTX_ENTRY_BYTES
        LTX_OK
        LTX_MORE
        LTX_DONE
        LTX_E_PGNO_ZERO
        LTX_E_PGNO_COMMIT
        LTX_E_PGNO_LOCK
        LTX_E_ORDER
        LTX_E_SNAPSHOT
        LTX_E_FLAGS
        LTX_E_SIZE
        LTX_E_BLOCK
        LTX_E_LEGACY
        LTX_E_INCOMPLETE
        LTX_E_INDEX
        LTX_E_INDEX_SIZE
        LTX_E_TRAILING
        LTX_E_TRUNCATED
        LTX_E_POST_APPLY
        LTX_E_NO_CHECKSUM
        LTX_E_FILE_CHECKSUM
        LTX_E_ROLLING
        LTX_E_COMPRESS
        LTX_E_WAL_SHORT
        LTX_E_WAL_PGNO
        LTX_E_WAL_SALTS
        LTX_E_IO
        LTX_E_MEMORY
        LTX_E_ZSTD

    ctypedef uint64_t (*ltx_crc)(uint64_t, const uint8_t *, size_t) noexcept nogil

    ctypedef struct ltx_zstd:
        void *object
        bint packs
        int (*compress)(
            void *, const uint8_t *, size_t, uint8_t *, size_t, size_t *
        ) noexcept nogil
        int (*decompress)(void *, const uint8_t *, size_t, uint8_t *, size_t) noexcept nogil

    ctypedef struct ltx_run:
        ltx_zstd zstd
        uint32_t page_size, commit, lock_pgno
        bint snapshot, tracks
        uint64_t offset, pages
        uint32_t last_pgno
        uint64_t crc, size, index_crc, index_size, rolling
        uint32_t bad_pgno
        uint64_t detail
        int error

    ctypedef struct ltx_frame:
        uint32_t pgno, flags
        size_t size

    ctypedef struct ltx_tail:
        uint64_t seen
        uint8_t last[24]

    uint32_t ltx_be32(const uint8_t *data)
    uint64_t ltx_be64(const uint8_t *data)
    void ltx_put32(uint8_t *out, uint32_t value)
    void ltx_put64(uint8_t *out, uint64_t value)
    size_t ltx_max_read(const ltx_run *run)
    size_t ltx_max_write(const ltx_run *run)
    void ltx_run_init(
        ltx_run *run, ltx_crc crc64, uint64_t page_power, uint32_t page_size, uint32_t commit,
        bint snapshot, bint tracks
    )
    int ltx_check_complete(ltx_run *run)
    void ltx_account(ltx_run *run, const ltx_frame *frame, const uint8_t *head, uint64_t page_crc)
    int ltx_measure(ltx_run *run, const uint8_t *src, size_t avail, ltx_frame *frame)
    int ltx_decode_page(
        const ltx_run *run, LZ4F_dctx **context, const uint8_t *src, const ltx_frame *frame,
        uint8_t *page
    )
    uint64_t ltx_index_size(const ltx_run *run)
    int ltx_tail_feed(ltx_run *run, ltx_tail *tail, const uint8_t *data, size_t size)
    int ltx_tail_close(
        ltx_run *run, const ltx_tail *tail, bint no_checksum, uint64_t header_crc, uint64_t power,
        uint64_t index_power
    )
    uint64_t ltx_file_checksum(
        const ltx_run *run, uint64_t header_crc, uint64_t power, uint64_t index_power,
        uint64_t post_apply
    )
    ssize_t ltx_read(int fd, uint8_t *buffer, size_t size, uint64_t offset)

cdef extern from "ltx_encode.h" nogil:
    ctypedef struct ltx_index:
        uint8_t *data

    ctypedef struct ltx_encoder:
        ltx_run run
        ltx_index index
        void *state
        uint8_t *staging
        uint32_t salt1, salt2

    int ltx_join_entries(ltx_encoder *whole, ltx_index *part)
    size_t ltx_index_write(ltx_index *index, const ltx_run *run, uint8_t *out, size_t room)
    int ltx_add_page(
        ltx_encoder *encoder, uint32_t pgno, const uint8_t *page, uint8_t *out, size_t *size,
        uint64_t *crc
    )
    int ltx_add_pages(
        ltx_encoder *encoder, int db_fd, int wal_fd, const uint32_t *pgnos, const int64_t *offsets,
        size_t count, size_t *next, uint8_t *out, size_t room, size_t *used, uint64_t *crcs
    )

cdef extern from "ltx_merge.h" nogil:
    ctypedef struct ltx_input:
        ltx_run run
        ltx_tail tail
        int fd
        uint64_t size
        uint64_t pgno
        uint32_t keep

    ctypedef struct ltx_merger:
        ltx_encoder out
        ltx_input *inputs
        size_t count, failed
        uint8_t *page

    int ltx_input_open(ltx_input *input, size_t window)
    int ltx_input_tail(ltx_input *input)
    void ltx_input_free(ltx_input *input)
    int ltx_merge_pages(ltx_merger *merger, uint8_t *out, size_t room, size_t *used)

cdef extern from "ltx_scan.h" nogil:
    enum:
        LTX_SCAN_POINT
        LTX_SCAN_WRONG

    ctypedef struct ltx_scan:
        uint64_t end, next, offset, max_frame
        uint32_t commit, last_pgno
        bint done
        unsigned int shift

    int ltx_scan_feed(ltx_scan *scan, const uint8_t *data, size_t size, size_t *used)
