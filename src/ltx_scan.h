/* LTX: reading a page index in pieces, to find where its file can be cut into spans. */
#ifndef PYREP_LTX_SCAN_H
#define PYREP_LTX_SCAN_H

#include "ltx_core.h"

enum { LTX_SCAN_ON = 0, LTX_SCAN_POINT = 1, LTX_SCAN_WRONG = -1 };

typedef struct {
    uint64_t end;    /* offset of the page block's terminator */
    uint64_t next;   /* the first frame at or after this offset is a point */
    uint64_t offset; /* of the frame at hand */
    uint64_t max_frame;
    uint32_t commit;
    uint32_t last_pgno, pgno;
    int field; /* 0 page number, 1 offset, 2 size */
    int done;
    uint64_t value; /* the number at hand, seven bits at a time */
    unsigned shift;
} ltx_scan;

/* Take one whole number. */
static int ltx_scan_take(ltx_scan *scan, uint64_t value)
{
    if (scan->done)
        return LTX_SCAN_WRONG;
    switch (scan->field) {
    case 0:
        scan->done = value == 0;
        if (value != 0 && (value <= scan->last_pgno || value > scan->commit))
            return LTX_SCAN_WRONG;
        scan->pgno = (uint32_t)value;
        scan->field = scan->done ? 0 : 1;
        return LTX_SCAN_ON;
    case 1:
        scan->field = 2;
        if (value != scan->offset)
            return LTX_SCAN_WRONG;
        return value >= scan->next ? LTX_SCAN_POINT : LTX_SCAN_ON;
    default:
        scan->field = 0;
        if (value <= LTX_PAGE_HEADER_BYTES || value > scan->max_frame)
            return LTX_SCAN_WRONG;
        scan->last_pgno = scan->pgno;
        scan->offset += value;
        return scan->offset <= scan->end ? LTX_SCAN_ON : LTX_SCAN_WRONG;
    }
}

/* Take bytes until a point is reached, something is wrong, or all were used. */
static int ltx_scan_feed(ltx_scan *scan, const uint8_t *data, size_t size, size_t *used)
{
    int result = LTX_SCAN_ON;
    while (result == LTX_SCAN_ON && *used < size) {
        const uint8_t byte = data[(*used)++];
        if (scan->shift > 56)
            return LTX_SCAN_WRONG;
        scan->value |= (uint64_t)(byte & 0x7f) << scan->shift;
        scan->shift += 7;
        if (byte < 0x80) {
            result = ltx_scan_take(scan, scan->value);
            scan->value = 0;
            scan->shift = 0;
        }
    }
    return result;
}

#endif
