/* What liblz4 alone does with pages that lie in memory; compiled by bench_core.py. */
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <unistd.h>

int LZ4_compress_default(const char *src, char *dst, int src_size, int dst_size);
int LZ4_decompress_safe(const char *src, char *dst, int src_size, int dst_size);

/* Compress each page to `out`, one block after the other; put the sizes into `sizes` and return
 * their sum. */
size_t bare_compress(const char *pages, size_t count, int page_size, char *out, size_t room,
    int32_t *sizes)
{
    size_t used = 0;
    for (size_t i = 0; i < count; i++) {
        sizes[i] = LZ4_compress_default(
            pages + i * (size_t)page_size, out + used, page_size, (int)(room - used));
        used += (size_t)sizes[i];
    }
    return used;
}

/* The same for pages that are read from a file, a quarter of a megabyte at a time. */
size_t bare_read_and_compress(int fd, size_t count, int page_size, char *out, size_t room,
    char *buffer, int32_t *sizes)
{
    const size_t batch = (256 * 1024) / (size_t)page_size;
    size_t used = 0;
    for (size_t i = 0; i < count; i += batch) {
        size_t n = count - i < batch ? count - i : batch;
        if (pread(fd, buffer, n * (size_t)page_size, (off_t)(i * (size_t)page_size)) < 0)
            return 0;
        used += bare_compress(buffer, n, page_size, out + used, room - used, sizes + i);
    }
    return used;
}

/* Decompress the blocks into a small buffer, again and again; return the sum of the sizes. */
size_t bare_decompress(
    const char *blocks, size_t count, int page_size, char *out, const int32_t *sizes)
{
    size_t place = 0, total = 0;
    for (size_t i = 0; i < count; i++) {
        total += (size_t)LZ4_decompress_safe(
            blocks + place, out + (i % 64) * (size_t)page_size, sizes[i], page_size);
        place += (size_t)sizes[i];
    }
    return total;
}
