/* LTX encoding: the page index under construction, and batches of pages read from files.
 *
 * The index is kept as page number differences and frame sizes, about three bytes a page, and
 * expanded piece by piece when it is written.
 */
#ifndef PYREP_LTX_ENCODE_H
#define PYREP_LTX_ENCODE_H

#include <stdlib.h>

#include "ltx_core.h"

#define LTX_STAGING_BYTES (256 * 1024)
#define LTX_WAL_FRAME_HEADER 24

typedef struct {
    uint8_t *data;
    size_t size, capacity;
    /* how far it was written */
    size_t place;
    uint64_t pgno, offset;
    int part; /* 0 terminator of the frames, 1 entries, 2 terminator and size, 3 all written */
} ltx_index;

typedef struct {
    ltx_run run;
    ltx_index index;
    void *state; /* of LZ4 */
    uint8_t *staging;
    size_t staging_bytes;
    uint32_t salt1, salt2; /* both 0: not checked */
} ltx_encoder;

static int ltx_index_add(ltx_index *index, uint32_t step, size_t size)
{
    if (index->capacity - index->size < 2 * LTX_VARINT_BYTES) {
        size_t capacity = index->capacity < 4096 ? 4096 : index->capacity + index->capacity / 2;
        uint8_t *data = realloc(index->data, capacity);
        if (data == NULL)
            return LTX_E_MEMORY;
        index->data = data;
        index->capacity = capacity;
    }
    index->size += ltx_put_varint(index->data + index->size, step);
    index->size += ltx_put_varint(index->data + index->size, size);
    return LTX_OK;
}

static uint64_t ltx_index_take(ltx_index *index)
{
    uint64_t value = 0;
    unsigned shift = 0;
    uint8_t byte;
    do {
        byte = index->data[index->place++];
        value |= (uint64_t)(byte & 0x7f) << shift;
        shift += 7;
    } while (byte & 0x80);
    return value;
}

/* Write the next piece of what follows the frames, up to the index size: the terminator, the
 * entries, their terminator and the size.  Return the number of bytes, 0 when all is written;
 * `room` must be at least LTX_ENTRY_BYTES. */
static size_t ltx_index_write(ltx_index *index, const ltx_run *run, uint8_t *out, size_t room)
{
    size_t n = 0;
    if (index->part == 0) {
        memset(out, 0, LTX_PAGE_HEADER_BYTES);
        n = LTX_PAGE_HEADER_BYTES;
        index->offset = LTX_HEADER_BYTES;
        index->part = 1;
    }
    while (index->part == 1 && room - n >= LTX_ENTRY_BYTES) {
        if (index->place == index->size) {
            index->part = 2;
            break;
        }
        index->pgno += ltx_index_take(index);
        uint64_t size = ltx_index_take(index);
        n += ltx_put_varint(out + n, index->pgno);
        n += ltx_put_varint(out + n, index->offset);
        n += ltx_put_varint(out + n, size);
        index->offset += size;
    }
    if (index->part == 2 && room - n >= 9) {
        out[n++] = 0;
        ltx_put64(out + n, ltx_index_size(run));
        n += 8;
        index->part = 3;
    }
    return n;
}

/* Enter a frame that was written into account and index. */
static int ltx_commit_frame(
    ltx_run *run, ltx_index *index, const ltx_frame *frame, const uint8_t *head, uint64_t page_crc)
{
    if (ltx_index_add(index, frame->pgno - run->last_pgno, frame->size) != LTX_OK)
        return LTX_E_MEMORY;
    ltx_account(run, frame, head, page_crc);
    return LTX_OK;
}

/* Take the frames of a part over into index and account, at their places in the whole file. */
static int ltx_join_entries(ltx_encoder *whole, ltx_index *part)
{
    for (part->place = 0; part->place < part->size;) {
        uint32_t step = (uint32_t)ltx_index_take(part);
        size_t size = (size_t)ltx_index_take(part);
        if (ltx_index_add(&whole->index, step, size) != LTX_OK)
            return LTX_E_MEMORY;
        ltx_account_entry(&whole->run, whole->run.last_pgno + step, size);
    }
    return LTX_OK;
}

/* Encode one page; on success *size is that of the frame and *crc the page's CRC. */
static int ltx_add_page(ltx_encoder *encoder, uint32_t pgno, const uint8_t *page, uint8_t *out,
    size_t *size, uint64_t *crc)
{
    ltx_frame frame;
    int status = ltx_encode_page(&encoder->run, encoder->state, pgno, page, out, &frame);
    if (status != LTX_OK)
        return status;
    *size = frame.size;
    *crc = encoder->run.crc64(0, page, encoder->run.page_size);
    return ltx_commit_frame(&encoder->run, &encoder->index, &frame, out, *crc);
}

/* How many of the next pages, at most `limit`, lie side by side in one file. */
static size_t ltx_adjacent(
    const uint32_t *pgnos, const int64_t *offsets, size_t limit, uint32_t page_size)
{
    const int64_t step = (int64_t)page_size + LTX_WAL_FRAME_HEADER;
    size_t n = 1;
    if (offsets[0] < 0) {
        while (n < limit && offsets[n] < 0 && pgnos[n] == pgnos[0] + n)
            n++;
    } else {
        while (n < limit && offsets[n] == offsets[0] + (int64_t)n * step)
            n++;
    }
    return n;
}

/* Check that a WAL frame still is the one that was mapped. */
static int ltx_check_wal_frame(ltx_encoder *encoder, const uint8_t *frame, uint32_t pgno)
{
    encoder->run.bad_pgno = pgno;
    encoder->run.detail = ltx_be32(frame);
    if (encoder->run.detail != pgno)
        return LTX_E_WAL_PGNO;
    if ((encoder->salt1 | encoder->salt2) == 0)
        return LTX_OK;
    if (ltx_be32(frame + 8) != encoder->salt1 || ltx_be32(frame + 12) != encoder->salt2)
        return LTX_E_WAL_SALTS;
    return LTX_OK;
}

/* Make the staging buffer large enough for `bytes`, at most LTX_STAGING_BYTES: most files hold a
 * few pages only, and thousands of tenants write them. */
static int ltx_staging(ltx_encoder *encoder, size_t bytes)
{
    if (bytes > LTX_STAGING_BYTES)
        bytes = LTX_STAGING_BYTES;
    if (bytes <= encoder->staging_bytes)
        return LTX_OK;
    free(encoder->staging);
    encoder->staging = malloc(bytes);
    encoder->staging_bytes = encoder->staging == NULL ? 0 : bytes;
    return encoder->staging == NULL ? LTX_E_MEMORY : LTX_OK;
}

/* Read `bytes` of adjacent pages to the staging buffer. */
static int ltx_stage(ltx_encoder *encoder, int fd, uint64_t offset, size_t bytes, int from_wal)
{
    ssize_t got = ltx_read(fd, encoder->staging, bytes, offset);
    if (got < 0) {
        encoder->run.error = errno;
        return LTX_E_IO;
    }
    if ((size_t)got < bytes && from_wal)
        return LTX_E_WAL_SHORT;
    memset(encoder->staging + got, 0, bytes - (size_t)got);
    return LTX_OK;
}

/* Encode `count` adjacent pages from one file. */
static int ltx_add_adjacent(ltx_encoder *encoder, int fd, const uint32_t *pgnos, int64_t offset,
    size_t count, uint8_t *out, size_t *used, uint64_t *crcs)
{
    const size_t page_size = encoder->run.page_size;
    const size_t head = offset >= 0 ? LTX_WAL_FRAME_HEADER : 0;
    const uint64_t place = offset >= 0 ? (uint64_t)offset : (uint64_t)(pgnos[0] - 1) * page_size;
    int status = ltx_check_pgno(&encoder->run, pgnos[0]);
    if (status == LTX_OK)
        status = ltx_stage(encoder, fd, place, count * (head + page_size), head != 0);
    for (size_t i = 0; status == LTX_OK && i < count; i++) {
        const uint8_t *item = encoder->staging + i * (head + page_size);
        size_t size = 0;
        uint64_t crc = 0;
        if (head != 0)
            status = ltx_check_wal_frame(encoder, item, pgnos[i]);
        if (status == LTX_OK)
            status = ltx_add_page(encoder, pgnos[i], item + head, out + *used, &size, &crc);
        *used += size;
        if (crcs != NULL)
            crcs[i] = crc;
    }
    return status;
}

/* Encode pages from number *next on, as many as surely fit into `out`. */
static int ltx_add_pages(ltx_encoder *encoder, int db_fd, int wal_fd, const uint32_t *pgnos,
    const int64_t *offsets, size_t count, size_t *next, uint8_t *out, size_t room, size_t *used,
    uint64_t *crcs)
{
    const size_t step = LTX_WAL_FRAME_HEADER + (size_t)encoder->run.page_size;
    const size_t frame = ltx_max_write(&encoder->run);
    int status = ltx_staging(encoder, (count - *next) * step);
    while (status == LTX_OK && *next < count && room - *used >= frame) {
        size_t i = *next, limit = count - i;
        if (limit > (room - *used) / frame)
            limit = (room - *used) / frame;
        if (limit > encoder->staging_bytes / step)
            limit = encoder->staging_bytes / step;
        size_t n = ltx_adjacent(pgnos + i, offsets + i, limit, encoder->run.page_size);
        status = ltx_add_adjacent(encoder, offsets[i] < 0 ? db_fd : wal_fd, pgnos + i, offsets[i],
            n, out, used, crcs == NULL ? NULL : crcs + i);
        *next += n;
    }
    return status;
}

#endif
