/* LTX: what encoding, decoding and merging share.
 *
 * Knows no Python: all functions may run without the GIL and return a status.  A `ltx_run` is the
 * account of a series of frames: which page may come next, the CRC of their logical content, and
 * the CRC and length of the page index they imply.  The CRC of a page is computed once and
 * joined into the file's (CRC is linear), so nothing is passed over twice.
 */
#ifndef PYREP_LTX_CORE_H
#define PYREP_LTX_CORE_H

#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

#include "crc64_poly.h"
#include "lz4_api.h"

#define LTX_HEADER_BYTES 100
#define LTX_PAGE_HEADER_BYTES 6
#define LTX_SIZED_HEADER_BYTES 10
#define LTX_TRAILER_BYTES 16
#define LTX_TAIL_BYTES 24 /* index size and trailer */
#define LTX_PAGE_FLAG_SIZE 1
#define LTX_PAGE_FLAG_ZSTD 2
#define LTX_CHECKSUM_FLAG 0x8000000000000000ULL
#define LTX_VARINT_BYTES 10
#define LTX_ENTRY_BYTES (3 * LTX_VARINT_BYTES)
#define LTX_LEGACY_EXTRA 128 /* header, block sizes and checksums of an LZ4 frame */

enum {
    LTX_OK = 0,
    LTX_MORE = 1,
    LTX_DONE = 2,
    LTX_E_PGNO_ZERO = -1,
    LTX_E_PGNO_COMMIT = -2,
    LTX_E_PGNO_LOCK = -3,
    LTX_E_ORDER = -4,
    LTX_E_SNAPSHOT = -5,
    LTX_E_FLAGS = -6,
    LTX_E_SIZE = -7,
    LTX_E_BLOCK = -8,
    LTX_E_LEGACY = -9,
    LTX_E_INCOMPLETE = -10,
    LTX_E_INDEX = -11,
    LTX_E_INDEX_SIZE = -12,
    LTX_E_TRAILING = -13,
    LTX_E_TRUNCATED = -14,
    LTX_E_POST_APPLY = -15,
    LTX_E_NO_CHECKSUM = -16,
    LTX_E_FILE_CHECKSUM = -17,
    LTX_E_ROLLING = -18,
    LTX_E_COMPRESS = -19,
    LTX_E_WAL_SHORT = -20,
    LTX_E_WAL_PGNO = -21,
    LTX_E_WAL_SALTS = -22,
    LTX_E_IO = -23,
    LTX_E_MEMORY = -24,
    LTX_E_ZSTD = -25,
};

typedef uint64_t (*ltx_crc)(uint64_t crc, const uint8_t *data, size_t size);

/* Multiplication of a CRC by x^(8 * page size), four bits at a time. */
typedef struct {
    uint64_t part[16][16];
} ltx_shift;

/* Where zstd frames are made and read: outside of this core, by calls that take the GIL. */
typedef struct {
    void *object; /* NULL: no frame may be a zstd one */
    int packs;    /* what is written is zstd */
    int (*compress)(void *object, const uint8_t *page, size_t page_size, uint8_t *out, size_t room,
        size_t *size);
    int (*decompress)(
        void *object, const uint8_t *frame, size_t size, uint8_t *page, size_t page_size);
} ltx_zstd;

typedef struct {
    ltx_crc crc64;
    ltx_zstd zstd;
    ltx_shift by_page;
    uint32_t page_size, commit, lock_pgno, bound; /* bound: largest LZ4 block of a page */
    int snapshot;
    int tracks; /* the rolling checksum of a snapshot is wanted */
    uint64_t offset; /* in the file, of the next frame */
    uint64_t pages;
    uint32_t last_pgno;
    uint64_t crc, size;             /* logical content of the frames */
    uint64_t index_crc, index_size; /* entries of the index they imply, without terminator */
    uint64_t rolling;
    uint32_t bad_pgno; /* what an error is about */
    uint64_t detail;
    int error; /* errno */
} ltx_run;

typedef struct {
    uint32_t pgno;
    uint32_t flags;
    size_t size; /* of the whole frame in the file */
} ltx_frame;

/* The bytes after the terminator: they are counted and summed, only the last ones are kept. */
typedef struct {
    uint64_t seen, crc;
    uint8_t last[LTX_TAIL_BYTES];
} ltx_tail;

static inline uint32_t ltx_be32(const uint8_t *data)
{
    return (uint32_t)data[0] << 24 | (uint32_t)data[1] << 16 | (uint32_t)data[2] << 8 | data[3];
}

static inline uint64_t ltx_be64(const uint8_t *data)
{
    return (uint64_t)ltx_be32(data) << 32 | ltx_be32(data + 4);
}

static inline uint32_t ltx_le32(const uint8_t *data)
{
    return (uint32_t)data[3] << 24 | (uint32_t)data[2] << 16 | (uint32_t)data[1] << 8 | data[0];
}

static inline void ltx_put32(uint8_t *out, uint32_t value)
{
    for (int i = 0; i < 4; i++)
        out[i] = (uint8_t)(value >> (24 - 8 * i));
}

static inline void ltx_put64(uint8_t *out, uint64_t value)
{
    ltx_put32(out, (uint32_t)(value >> 32));
    ltx_put32(out + 4, (uint32_t)value);
}

static inline size_t ltx_put_varint(uint8_t *out, uint64_t value)
{
    size_t n = 0;
    for (; value >= 0x80; value >>= 7)
        out[n++] = (uint8_t)(value | 0x80);
    out[n++] = (uint8_t)value;
    return n;
}

static inline void ltx_shift_init(ltx_shift *shift, uint64_t power)
{
    for (unsigned place = 0; place < 16; place++) {
        for (uint64_t nibble = 0; nibble < 16; nibble++)
            shift->part[place][nibble] = crc64_multiply(nibble << (4 * place), power);
    }
}

static inline uint64_t ltx_shift_crc(const ltx_shift *shift, uint64_t crc)
{
    uint64_t result = 0;
    for (unsigned place = 0; place < 16; place++)
        result ^= shift->part[place][(crc >> (4 * place)) & 15];
    return result;
}

/* Largest frame in a file: an LZ4 block, or an LZ4 frame as old files have it. */
static inline size_t ltx_max_read(const ltx_run *run)
{
    return LTX_PAGE_HEADER_BYTES + LTX_LEGACY_EXTRA + (size_t)run->bound;
}

/* Largest frame that is written. */
static inline size_t ltx_max_write(const ltx_run *run)
{
    return LTX_SIZED_HEADER_BYTES + (size_t)run->bound;
}

static inline void ltx_run_init(ltx_run *run, ltx_crc crc64, uint64_t page_power,
    uint32_t page_size, uint32_t commit, int snapshot, int tracks)
{
    memset(run, 0, sizeof *run);
    run->crc64 = crc64;
    ltx_shift_init(&run->by_page, page_power);
    run->page_size = page_size;
    run->commit = commit;
    run->lock_pgno = 0x40000000u / page_size + 1;
    run->bound = (uint32_t)LZ4_compressBound((int)page_size);
    run->snapshot = snapshot;
    run->tracks = tracks;
    run->offset = LTX_HEADER_BYTES;
}

/* Say whether page `pgno` may come next. */
static int ltx_check_pgno(ltx_run *run, uint32_t pgno)
{
    run->bad_pgno = pgno;
    if (pgno == 0)
        return LTX_E_PGNO_ZERO;
    if (pgno > run->commit)
        return LTX_E_PGNO_COMMIT;
    if (pgno == run->lock_pgno)
        return LTX_E_PGNO_LOCK;
    if (pgno <= run->last_pgno)
        return LTX_E_ORDER;
    if (run->snapshot) {
        uint32_t expected = run->last_pgno + 1;
        if (expected == run->lock_pgno)
            expected++;
        if (pgno != expected)
            return LTX_E_SNAPSHOT;
    }
    return LTX_OK;
}

/* Say whether a snapshot has all its pages. */
static int ltx_check_complete(ltx_run *run)
{
    uint32_t last = run->commit == run->lock_pgno ? run->commit - 1 : run->commit;
    run->bad_pgno = last;
    return !run->snapshot || run->last_pgno == last ? LTX_OK : LTX_E_INCOMPLETE;
}

/* Enter a frame into the page index that the frames imply. */
static void ltx_account_entry(ltx_run *run, uint32_t pgno, size_t size)
{
    uint8_t entry[LTX_ENTRY_BYTES];
    size_t n = ltx_put_varint(entry, pgno);
    n += ltx_put_varint(entry + n, run->offset);
    n += ltx_put_varint(entry + n, size);
    run->index_crc = run->crc64(run->index_crc, entry, n);
    run->index_size += n;
    run->offset += size;
    run->last_pgno = pgno;
    run->pages++;
}

/* Enter a frame into the account; `head` is its header with the size field, if it has one. */
static void ltx_account(ltx_run *run, const ltx_frame *frame, const uint8_t *head, uint64_t page_crc)
{
    size_t head_size
        = frame->flags & LTX_PAGE_FLAG_SIZE ? LTX_SIZED_HEADER_BYTES : LTX_PAGE_HEADER_BYTES;
    run->crc = ltx_shift_crc(&run->by_page, run->crc64(run->crc, head, head_size)) ^ page_crc;
    run->size += head_size + run->page_size;
    if (run->tracks) {
        uint64_t page = ltx_shift_crc(&run->by_page, run->crc64(0, head, 4)) ^ page_crc;
        run->rolling = LTX_CHECKSUM_FLAG | (run->rolling ^ (page | LTX_CHECKSUM_FLAG));
    }
    ltx_account_entry(run, frame->pgno, frame->size);
}

/* Find the end of an LZ4 frame of which `avail` bytes are there. */
static int ltx_measure_legacy(ltx_run *run, const uint8_t *src, size_t avail, size_t *size)
{
    const size_t limit = LTX_LEGACY_EXTRA + (size_t)run->bound;
    if (avail < 5)
        return LTX_MORE;
    if (ltx_le32(src) != 0x184D2204u)
        return LTX_E_LEGACY;
    const unsigned flags = src[4];
    const size_t block_checksum = flags & 0x10 ? 4 : 0;
    size_t place = 7 + (flags & 0x08 ? 8u : 0u) + (flags & 0x01 ? 4u : 0u);
    for (uint32_t block = 1; block != 0;) {
        if (place + 4 > limit)
            return LTX_E_LEGACY;
        if (place + 4 > avail)
            return LTX_MORE;
        block = ltx_le32(src + place) & 0x7fffffffu;
        if (block > limit)
            return LTX_E_LEGACY;
        place += 4 + (block != 0 ? block + block_checksum : 0);
    }
    place += flags & 0x04 ? 4 : 0;
    if (place > limit)
        return LTX_E_LEGACY;
    *size = place;
    return place > avail ? LTX_MORE : LTX_OK;
}

static inline int ltx_known_flags(const ltx_run *run, uint32_t flags)
{
    return flags == 0 || flags == LTX_PAGE_FLAG_SIZE
        || (flags == (LTX_PAGE_FLAG_SIZE | LTX_PAGE_FLAG_ZSTD) && run->zstd.object != NULL);
}

/* Look at the next frame, of which `avail` bytes are there: OK (whole), MORE, DONE (the
 * terminator) or an error. */
static int ltx_measure(ltx_run *run, const uint8_t *src, size_t avail, ltx_frame *frame)
{
    size_t size = 0;
    if (avail < LTX_PAGE_HEADER_BYTES)
        return LTX_MORE;
    frame->pgno = ltx_be32(src);
    frame->flags = (uint32_t)src[4] << 8 | src[5];
    if (frame->pgno == 0 && frame->flags == 0)
        return LTX_DONE;
    int status = ltx_check_pgno(run, frame->pgno);
    run->detail = frame->flags;
    if (status == LTX_OK && !ltx_known_flags(run, frame->flags))
        status = LTX_E_FLAGS;
    if (status != LTX_OK)
        return status;
    if (frame->flags == 0) {
        status = ltx_measure_legacy(
            run, src + LTX_PAGE_HEADER_BYTES, avail - LTX_PAGE_HEADER_BYTES, &size);
        frame->size = LTX_PAGE_HEADER_BYTES + size;
        return status;
    }
    if (avail < LTX_SIZED_HEADER_BYTES)
        return LTX_MORE;
    size = ltx_be32(src + LTX_PAGE_HEADER_BYTES);
    run->detail = size;
    if (size == 0 || size > run->bound)
        return LTX_E_SIZE;
    frame->size = LTX_SIZED_HEADER_BYTES + size;
    return avail < frame->size ? LTX_MORE : LTX_OK;
}

static int ltx_decode_legacy(
    const ltx_run *run, LZ4F_dctx **context, const uint8_t *src, size_t size, uint8_t *page)
{
    size_t in_done = 0, out_done = 0, left = 1;
    if (*context == NULL
        && LZ4F_isError(LZ4F_createDecompressionContext(context, PYREP_LZ4F_VERSION)))
        return LTX_E_MEMORY;
    while (left != 0) {
        size_t in = size - in_done, out = run->page_size - out_done;
        left = LZ4F_decompress(*context, page + out_done, &out, src + in_done, &in, NULL);
        if (LZ4F_isError(left) || (left != 0 && in == 0 && out == 0))
            return LTX_E_LEGACY;
        in_done += in;
        out_done += out;
    }
    return in_done == size && out_done == run->page_size ? LTX_OK : LTX_E_LEGACY;
}

/* Decompress a whole frame to `page` (page_size bytes). */
static int ltx_decode_page(const ltx_run *run, LZ4F_dctx **context, const uint8_t *src,
    const ltx_frame *frame, uint8_t *page)
{
    if (frame->flags == 0)
        return ltx_decode_legacy(run, context, src + LTX_PAGE_HEADER_BYTES,
            frame->size - LTX_PAGE_HEADER_BYTES, page);
    if (frame->flags & LTX_PAGE_FLAG_ZSTD)
        return run->zstd.decompress(run->zstd.object, src + LTX_SIZED_HEADER_BYTES,
            frame->size - LTX_SIZED_HEADER_BYTES, page, run->page_size);
    int got = LZ4_decompress_safe((const char *)src + LTX_SIZED_HEADER_BYTES, (char *)page,
        (int)(frame->size - LTX_SIZED_HEADER_BYTES), (int)run->page_size);
    return got == (int)run->page_size ? LTX_OK : LTX_E_BLOCK;
}

/* Compress a page to `out`, which has `run->bound` bytes of room. */
static int ltx_pack(ltx_run *run, void *state, const uint8_t *page, uint8_t *out, size_t *size)
{
    if (run->zstd.packs)
        return run->zstd.compress(
            run->zstd.object, page, run->page_size, out, run->bound, size);
    int got = LZ4_compress_fast_extState(state, (const char *)page, (char *)out,
        (int)run->page_size, (int)run->bound, 1);
    *size = (size_t)got;
    return got > 0 ? LTX_OK : LTX_E_COMPRESS;
}

static inline uint32_t ltx_written_flags(const ltx_run *run)
{
    return LTX_PAGE_FLAG_SIZE | (run->zstd.packs ? LTX_PAGE_FLAG_ZSTD : 0u);
}

/* Write the frame of a page to `out` (ltx_max_write bytes of room). */
static int ltx_encode_page(
    ltx_run *run, void *state, uint32_t pgno, const uint8_t *page, uint8_t *out, ltx_frame *frame)
{
    size_t size = 0;
    int status = ltx_check_pgno(run, pgno);
    if (status == LTX_OK)
        status = ltx_pack(run, state, page, out + LTX_SIZED_HEADER_BYTES, &size);
    if (status != LTX_OK)
        return status;
    frame->pgno = pgno;
    frame->flags = ltx_written_flags(run);
    frame->size = LTX_SIZED_HEADER_BYTES + size;
    ltx_put32(out, pgno);
    out[4] = 0;
    out[5] = (uint8_t)frame->flags;
    ltx_put32(out + LTX_PAGE_HEADER_BYTES, (uint32_t)size);
    return LTX_OK;
}

/* Length of the index that the frames imply, terminator included. */
static inline uint64_t ltx_index_size(const ltx_run *run)
{
    return run->index_size + 1;
}

/* Take bytes that follow the terminator. */
static int ltx_tail_feed(ltx_run *run, ltx_tail *tail, const uint8_t *data, size_t size)
{
    const uint64_t index_size = ltx_index_size(run);
    if (tail->seen < index_size) {
        uint64_t left = index_size - tail->seen;
        size_t n = left < size ? (size_t)left : size;
        tail->crc = run->crc64(tail->crc, data, n);
        tail->seen += n;
        data += n;
        size -= n;
    }
    if (size == 0)
        return LTX_OK;
    size_t place = (size_t)(tail->seen - index_size);
    if (size > LTX_TAIL_BYTES - place)
        return LTX_E_TRAILING;
    memcpy(tail->last + place, data, size);
    tail->seen += size;
    return LTX_OK;
}

static inline uint64_t ltx_index_crc(const ltx_run *run)
{
    const uint8_t terminator = 0;
    return run->crc64(run->index_crc, &terminator, 1);
}

/* The file checksum of header + frames + tail; `index_power` is x^(8 * index size), `power` that
 * of the frames' logical size. */
static uint64_t ltx_file_checksum(const ltx_run *run, uint64_t header_crc, uint64_t power,
    uint64_t index_power, uint64_t post_apply)
{
    uint8_t rest[16] = { 0 };
    uint64_t crc = crc64_multiply(header_crc, power) ^ run->crc;
    crc = run->crc64(crc, rest, LTX_PAGE_HEADER_BYTES);
    crc = crc64_multiply(crc, index_power) ^ ltx_index_crc(run);
    ltx_put64(rest, ltx_index_size(run));
    ltx_put64(rest + 8, post_apply);
    return run->crc64(crc, rest, 16) | LTX_CHECKSUM_FLAG;
}

/* Check everything after the frames; `no_checksum` is the header's flag. */
static int ltx_tail_close(ltx_run *run, const ltx_tail *tail, int no_checksum, uint64_t header_crc,
    uint64_t power, uint64_t index_power)
{
    const uint64_t index_size = ltx_index_size(run);
    const uint64_t post_apply = ltx_be64(tail->last + 8);
    run->detail = ltx_be64(tail->last);
    if (tail->seen != index_size + LTX_TAIL_BYTES)
        return LTX_E_TRUNCATED;
    if (tail->crc != ltx_index_crc(run))
        return LTX_E_INDEX;
    if (run->detail != index_size)
        return LTX_E_INDEX_SIZE;
    run->detail = post_apply;
    if (no_checksum ? post_apply != 0 : !(post_apply & LTX_CHECKSUM_FLAG))
        return LTX_E_POST_APPLY;
    run->detail = ltx_be64(tail->last + 16);
    if (!(run->detail & LTX_CHECKSUM_FLAG))
        return LTX_E_NO_CHECKSUM;
    if (run->detail != ltx_file_checksum(run, header_crc, power, index_power, post_apply))
        return LTX_E_FILE_CHECKSUM;
    if (run->tracks && run->rolling != post_apply)
        return LTX_E_ROLLING;
    return ltx_check_complete(run);
}

/* Read up to `size` bytes; fewer only at the end of the file.  -1: errno tells. */
static ssize_t ltx_read(int fd, uint8_t *buffer, size_t size, uint64_t offset)
{
    size_t done = 0;
    while (done < size) {
        ssize_t n = pread(fd, buffer + done, size - done, (off_t)(offset + done));
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -1;
        if (n == 0)
            break;
        done += (size_t)n;
    }
    return (ssize_t)done;
}

#endif
