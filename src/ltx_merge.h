/* LTX merge: several files, read in windows, joined by page number; the newest file wins.
 *
 * Every frame of every input is decoded, for its checksum; the compressed block that wins is
 * copied as it is, unless the output is compressed in another way.
 */
#ifndef PYREP_LTX_MERGE_H
#define PYREP_LTX_MERGE_H

#include "ltx_encode.h"

#define LTX_NO_PGNO 0xffffffffffffffffULL

typedef struct {
    ltx_run run;
    ltx_tail tail;
    int fd;
    uint64_t size;     /* of the file */
    uint64_t position; /* in the file, of the byte after the window's content */
    uint8_t *window;
    size_t capacity, start, end;
    ltx_frame frame;  /* the one that starts at `start` */
    uint64_t pgno;    /* its page, or LTX_NO_PGNO */
    uint32_t keep;    /* pages above are cut off by this or a later input */
    LZ4F_dctx *legacy;
} ltx_input;

typedef struct {
    ltx_encoder out;
    ltx_input *inputs;
    size_t count;
    size_t failed; /* the input that an error is about */
    uint8_t *page; /* scratch: one decompressed page */
} ltx_merger;

static int ltx_input_read(ltx_input *input, size_t wanted)
{
    ssize_t got = ltx_read(input->fd, input->window + input->end, wanted, input->position);
    if (got < 0) {
        input->run.error = errno;
        return LTX_E_IO;
    }
    if ((size_t)got < wanted)
        return LTX_E_TRUNCATED;
    input->position += wanted;
    input->end += wanted;
    return LTX_OK;
}

/* Move what is left to the front of the window and fill it up. */
static int ltx_input_refill(ltx_input *input)
{
    size_t left = input->end - input->start;
    memmove(input->window, input->window + input->start, left);
    input->start = 0;
    input->end = left;
    uint64_t wanted = input->size - input->position;
    if (wanted > input->capacity - left)
        wanted = input->capacity - left;
    return wanted == 0 ? LTX_E_TRUNCATED : ltx_input_read(input, (size_t)wanted);
}

/* Bring the next frame whole into the window. */
static int ltx_input_next(ltx_input *input)
{
    int status;
    while ((status = ltx_measure(&input->run, input->window + input->start,
                input->end - input->start, &input->frame))
        == LTX_MORE) {
        status = ltx_input_refill(input);
        if (status != LTX_OK)
            return status;
    }
    if (status == LTX_DONE) {
        input->pgno = LTX_NO_PGNO;
        input->start += LTX_PAGE_HEADER_BYTES;
        return LTX_OK;
    }
    input->pgno = input->frame.pgno;
    return status;
}

/* Allocate the window and load the first frame. */
static int ltx_input_open(ltx_input *input, size_t window)
{
    size_t least = ltx_max_read(&input->run);
    input->capacity = window > least ? window : least;
    if (input->capacity > input->size)
        input->capacity = (size_t)input->size + 1;
    input->window = malloc(input->capacity);
    if (input->window == NULL)
        return LTX_E_MEMORY;
    input->position = LTX_HEADER_BYTES;
    return ltx_input_next(input);
}

/* Decode the frame at hand for its checksum and go on to the next. */
static int ltx_input_pass(ltx_input *input, uint8_t *page, uint64_t *crc)
{
    const uint8_t *src = input->window + input->start;
    input->run.bad_pgno = input->frame.pgno;
    int status = ltx_decode_page(&input->run, &input->legacy, src, &input->frame, page);
    if (status != LTX_OK)
        return status;
    *crc = input->run.crc64(0, page, input->run.page_size);
    ltx_account(&input->run, &input->frame, src, *crc);
    input->start += input->frame.size;
    return LTX_OK;
}

/* Read everything after the terminator. */
static int ltx_input_tail(ltx_input *input)
{
    for (;;) {
        int status = ltx_tail_feed(&input->run, &input->tail, input->window + input->start,
            input->end - input->start);
        if (status != LTX_OK)
            return status;
        input->start = input->end;
        if (input->position == input->size)
            return LTX_OK;
        status = ltx_input_refill(input);
        if (status != LTX_OK)
            return status;
    }
}

static void ltx_input_free(ltx_input *input)
{
    free(input->window);
    input->window = NULL;
    LZ4F_freeDecompressionContext(input->legacy);
    input->legacy = NULL;
}

static uint64_t ltx_lowest(const ltx_merger *merger)
{
    uint64_t lowest = LTX_NO_PGNO;
    for (size_t i = 0; i < merger->count; i++) {
        if (merger->inputs[i].pgno < lowest)
            lowest = merger->inputs[i].pgno;
    }
    return lowest;
}

/* Write the winner's frame; its decompressed page is in merger->page. */
static int ltx_merge_write(ltx_merger *merger, ltx_frame frame, uint64_t crc, const uint8_t *src,
    uint8_t *out, size_t *used)
{
    int status;
    if (frame.flags == ltx_written_flags(&merger->out.run)) {
        status = ltx_check_pgno(&merger->out.run, frame.pgno);
        if (status == LTX_OK)
            memcpy(out + *used, src, frame.size);
    } else {
        status = ltx_encode_page(&merger->out.run, merger->out.state, frame.pgno, merger->page,
            out + *used, &frame);
    }
    if (status == LTX_OK)
        status = ltx_commit_frame(
            &merger->out.run, &merger->out.index, &frame, out + *used, crc);
    if (status == LTX_OK)
        *used += frame.size;
    return status;
}

/* Pass one page number on all inputs that have it; the last of them wins. */
static int ltx_merge_page(ltx_merger *merger, uint64_t pgno, uint8_t *out, size_t *used)
{
    int won = 0;
    for (size_t i = merger->count; i-- > 0;) {
        ltx_input *input = &merger->inputs[i];
        if (input->pgno != pgno)
            continue;
        const ltx_frame frame = input->frame;
        const uint8_t *src = input->window + input->start; /* stays there until the refill */
        uint64_t crc = 0;
        merger->failed = i;
        int status = ltx_input_pass(input, merger->page, &crc);
        if (status != LTX_OK)
            return status;
        if (!won && pgno <= input->keep) {
            merger->failed = merger->count;
            status = ltx_merge_write(merger, frame, crc, src, out, used);
        }
        won = 1;
        if (status != LTX_OK)
            return status;
        merger->failed = i;
        status = ltx_input_next(input);
        if (status != LTX_OK)
            return status;
    }
    return LTX_OK;
}

/* Merge pages as long as another frame surely fits; DONE: there are no more. */
static int ltx_merge_pages(ltx_merger *merger, uint8_t *out, size_t room, size_t *used)
{
    const size_t frame = ltx_max_write(&merger->out.run);
    while (room - *used >= frame) {
        uint64_t pgno = ltx_lowest(merger);
        if (pgno == LTX_NO_PGNO)
            return LTX_DONE;
        int status = ltx_merge_page(merger, pgno, out, used);
        if (status != LTX_OK)
            return status;
    }
    return LTX_OK;
}

#endif
