/* SQLite's WAL: the scan of a range of frames.
 *
 * Knows no Python: all functions may run without the GIL.  A frame counts only if its salts are
 * the header's and its checksum continues the chain; the result ends at the last commit frame.
 */
#ifndef PYREP_WAL_CORE_H
#define PYREP_WAL_CORE_H

#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "wal_sum.h"

#define WAL_HEADER_BYTES 32
#define WAL_FRAME_HEADER_BYTES 24
#define WAL_CHUNK_BYTES (1 << 20)

enum { WAL_OK = 0, WAL_E_IO = -1, WAL_E_MEMORY = -2 };

static inline uint32_t wal_be32(const uint8_t *data)
{
    return (uint32_t)data[0] << 24 | (uint32_t)data[1] << 16 | (uint32_t)data[2] << 8 | data[3];
}

/* The newest version of one page.  `last` belongs to transaction `txn`, which may not be
 * committed yet; `committed` is the version before it, -1 if there is none. */
typedef struct {
    int64_t last;
    int64_t committed;
    uint64_t txn;
    uint32_t pgno; /* 0: the slot is free */
} wal_slot;

typedef struct {
    /* what to read */
    int fd;
    uint32_t page_size, salt1, salt2;
    int big_endian;
    int64_t offset;         /* of the next frame to read */
    uint64_t frame, limit;  /* 1-based number of that frame; last frame to read */
    uint64_t max_bytes;
    /* running */
    uint32_t sums[2];
    uint64_t txn;
    wal_slot *slots;
    size_t slot_mask, used;
    /* up to the last commit frame */
    int64_t end_offset;
    uint32_t end_sums[2];
    uint64_t frames, commits;
    uint32_t commit, min_commit;
    uint32_t max_commit, shrunk_to; /* largest size so far; smallest size after a larger one */
    int complete, limited, error;
} wal_scan;

static inline size_t wal_hash(uint32_t pgno)
{
    return (size_t)((uint64_t)pgno * 0x9E3779B97F4A7C15ULL >> 32);
}

static wal_slot *wal_find(wal_slot *slots, size_t mask, uint32_t pgno)
{
    size_t i = wal_hash(pgno) & mask;
    while (slots[i].pgno != 0 && slots[i].pgno != pgno)
        i = (i + 1) & mask;
    return &slots[i];
}

static int wal_grow(wal_scan *scan)
{
    size_t count = scan->slots == NULL ? 256 : (scan->slot_mask + 1) * 2;
    wal_slot *slots = calloc(count, sizeof *slots);
    if (slots == NULL)
        return WAL_E_MEMORY;
    for (size_t i = 0; scan->slots != NULL && i <= scan->slot_mask; i++) {
        if (scan->slots[i].pgno != 0)
            *wal_find(slots, count - 1, scan->slots[i].pgno) = scan->slots[i];
    }
    free(scan->slots);
    scan->slots = slots;
    scan->slot_mask = count - 1;
    return WAL_OK;
}

static int wal_record(wal_scan *scan, uint32_t pgno, int64_t offset)
{
    if (scan->slots == NULL || scan->used * 2 > scan->slot_mask) {
        if (wal_grow(scan) != WAL_OK)
            return WAL_E_MEMORY;
    }
    wal_slot *slot = wal_find(scan->slots, scan->slot_mask, pgno);
    if (slot->pgno == 0) {
        slot->pgno = pgno;
        slot->committed = -1;
        scan->used++;
    } else if (slot->txn != scan->txn) {
        slot->committed = slot->last;
    }
    slot->last = offset;
    slot->txn = scan->txn;
    return WAL_OK;
}

static void wal_commit(wal_scan *scan, uint32_t commit)
{
    scan->end_offset = scan->offset;
    scan->end_sums[0] = scan->sums[0];
    scan->end_sums[1] = scan->sums[1];
    scan->commit = commit;
    if (scan->commits == 0 || commit < scan->min_commit)
        scan->min_commit = commit;
    if (commit > scan->max_commit)
        scan->max_commit = commit;
    else if (commit < scan->max_commit && (scan->shrunk_to == 0 || commit < scan->shrunk_to))
        scan->shrunk_to = commit;
    scan->commits++;
    scan->txn++;
}

/* Take one frame; return 1 if it was taken, 0 if it ends the WAL, or an error. */
static int wal_take(wal_scan *scan, const uint8_t *frame)
{
    uint32_t pgno = wal_be32(frame), commit = wal_be32(frame + 4);
    uint32_t sums[2] = { scan->sums[0], scan->sums[1] };
    if (pgno == 0 || wal_be32(frame + 8) != scan->salt1 || wal_be32(frame + 12) != scan->salt2)
        return 0;
    wal_checksum_update(sums, frame, 8, scan->big_endian);
    wal_checksum_update(
        sums, frame + WAL_FRAME_HEADER_BYTES, scan->page_size, scan->big_endian);
    if (wal_be32(frame + 16) != sums[0] || wal_be32(frame + 20) != sums[1])
        return 0;
    if (wal_record(scan, pgno, scan->offset) != WAL_OK)
        return WAL_E_MEMORY;
    scan->sums[0] = sums[0];
    scan->sums[1] = sums[1];
    scan->offset += WAL_FRAME_HEADER_BYTES + (int64_t)scan->page_size;
    if (commit != 0)
        wal_commit(scan, commit);
    scan->frame++;
    return 1;
}

/* Read up to `size` bytes; fewer only at the end of the file.  -1: errno tells. */
static ssize_t wal_read(int fd, uint8_t *buffer, size_t size, int64_t offset)
{
    size_t done = 0;
    while (done < size) {
        ssize_t n = pread(fd, buffer + done, size - done, offset + (int64_t)done);
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

static int wal_at_byte_limit(const wal_scan *scan, int64_t start)
{
    return scan->max_bytes != 0 && scan->end_offset == scan->offset
        && (uint64_t)(scan->end_offset - start) >= scan->max_bytes;
}

/* Take the frames of one chunk; return 1 to go on, 0 at the end, or an error. */
static int wal_take_chunk(wal_scan *scan, const uint8_t *chunk, size_t count, int64_t start)
{
    size_t step = WAL_FRAME_HEADER_BYTES + (size_t)scan->page_size;
    for (size_t i = 0; i < count; i++) {
        int taken = wal_take(scan, chunk + i * step);
        if (taken != 1)
            return taken;
        if (wal_at_byte_limit(scan, start)) {
            scan->limited = scan->frame <= scan->limit;
            return 0;
        }
    }
    return 1;
}

/* Read frames from scan->offset to frame scan->limit. */
static int wal_scan_range(wal_scan *scan)
{
    const int64_t start = scan->offset;
    const size_t step = WAL_FRAME_HEADER_BYTES + (size_t)scan->page_size;
    const size_t batch = WAL_CHUNK_BYTES / step;
    uint64_t first = scan->frame;
    int go_on = 1;
    if (scan->frame > scan->limit) {
        scan->complete = 1;
        return WAL_OK;
    }
    uint64_t wanted = scan->limit - scan->frame + 1;
    uint8_t *chunk = malloc((wanted < batch ? (size_t)wanted : batch) * step);
    if (chunk == NULL)
        return WAL_E_MEMORY;
    while (go_on == 1 && scan->frame <= scan->limit) {
        wanted = scan->limit - scan->frame + 1;
        size_t count = wanted < batch ? (size_t)wanted : batch;
        ssize_t got = wal_read(scan->fd, chunk, count * step, scan->offset);
        if (got < 0) {
            scan->error = errno;
            go_on = WAL_E_IO;
            break;
        }
        size_t whole = (size_t)got / step;
        go_on = wal_take_chunk(scan, chunk, whole, start);
        if (whole < count && go_on == 1)
            go_on = 0;
    }
    free(chunk);
    if (go_on < 0)
        return go_on;
    scan->frames = (uint64_t)(scan->end_offset - start) / step;
    scan->complete = scan->commits > 0 && first + scan->frames - 1 == scan->limit;
    return WAL_OK;
}

static int wal_slot_order(const void *a, const void *b)
{
    uint32_t x = ((const wal_slot *)a)->pgno, y = ((const wal_slot *)b)->pgno;
    return (x > y) - (x < y);
}

/* Keep the newest committed version of each page up to the commit size, lock page left out;
 * sort by page number.  Return how many there are, at the front of scan->slots. */
static size_t wal_page_map(wal_scan *scan, uint32_t lock_pgno)
{
    size_t kept = 0;
    for (size_t i = 0; scan->slots != NULL && i <= scan->slot_mask; i++) {
        wal_slot slot = scan->slots[i];
        if (slot.txn == scan->txn) /* the transaction that never committed */
            slot.last = slot.committed;
        if (slot.pgno == 0 || slot.last < 0 || slot.pgno > scan->commit || slot.pgno == lock_pgno)
            continue;
        scan->slots[kept++] = slot;
    }
    if (kept > 1)
        qsort(scan->slots, kept, sizeof *scan->slots, wal_slot_order);
    return kept;
}

#endif
