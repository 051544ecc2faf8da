/* SQLite's cumulative WAL checksum, in both byte orders. */
#ifndef PYREP_WAL_SUM_H
#define PYREP_WAL_SUM_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

static inline uint32_t wal_word(const uint8_t *data, int swap)
{
    uint32_t word;
    memcpy(&word, data, sizeof word);
    return swap ? __builtin_bswap32(word) : word;
}

static inline void wal_sum(uint32_t sums[2], const uint8_t *data, size_t size, const int swap)
{
    uint32_t s0 = sums[0], s1 = sums[1];
    for (size_t i = 0; i < size; i += 8) {
        s0 += wal_word(data + i, swap) + s1;
        s1 += wal_word(data + i + 4, swap) + s0;
    }
    sums[0] = s0;
    sums[1] = s1;
}

/* Advance the cumulative checksum by `size` bytes, a multiple of eight. */
static void wal_checksum_update(uint32_t sums[2], const uint8_t *data, size_t size, int big_endian)
{
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    const int swap = !big_endian;
#else
    const int swap = big_endian;
#endif
    if (swap) /* two loops: the compiler keeps the test out of them */
        wal_sum(sums, data, size, 1);
    else
        wal_sum(sums, data, size, 0);
}

#endif
