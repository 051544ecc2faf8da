/* CRC-64/ISO: the table path (slice-by-8), and powers for joining CRCs. */
#ifndef PYREP_CRC64_TABLE_H
#define PYREP_CRC64_TABLE_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "crc64_poly.h"

/* Written once by crc64_tables_init() at import, read-only afterwards. */
static uint64_t crc64_slices[8][256];
static uint64_t crc64_powers[64]; /* x^(8 * 2^k) */

static inline void crc64_tables_init(void)
{
    for (unsigned byte = 0; byte < 256; byte++) {
        uint64_t state = byte;
        for (int bit = 0; bit < 8; bit++)
            state = (state >> 1) ^ ((state & 1) ? CRC64_POLY : 0);
        crc64_slices[0][byte] = state;
    }
    for (unsigned slice = 1; slice < 8; slice++) {
        for (unsigned byte = 0; byte < 256; byte++) {
            uint64_t state = crc64_slices[slice - 1][byte];
            crc64_slices[slice][byte] = (state >> 8) ^ crc64_slices[0][state & 0xff];
        }
    }
    crc64_powers[0] = crc64_x_to(8);
    for (unsigned k = 1; k < 64; k++)
        crc64_powers[k] = crc64_multiply(crc64_powers[k - 1], crc64_powers[k - 1]);
}

/* Return x^(8 * size) modulo the polynomial: what appending `size` bytes multiplies a state by. */
static inline uint64_t crc64_power_of(uint64_t size)
{
    uint64_t power = CRC64_ONE;
    for (unsigned k = 0; size != 0; k++, size >>= 1) {
        if (size & 1)
            power = crc64_multiply(power, crc64_powers[k]);
    }
    return power;
}

static inline uint64_t crc64_load(const uint8_t *data)
{
    uint64_t word;
    memcpy(&word, data, sizeof word);
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    word = __builtin_bswap64(word);
#endif
    return word;
}

/* Advance a raw state (no inversions) by eight bytes. */
static inline uint64_t crc64_step8(uint64_t state, const uint8_t *data)
{
    uint64_t word = state ^ crc64_load(data);
    return crc64_slices[7][word & 0xff] ^ crc64_slices[6][(word >> 8) & 0xff]
        ^ crc64_slices[5][(word >> 16) & 0xff] ^ crc64_slices[4][(word >> 24) & 0xff]
        ^ crc64_slices[3][(word >> 32) & 0xff] ^ crc64_slices[2][(word >> 40) & 0xff]
        ^ crc64_slices[1][(word >> 48) & 0xff] ^ crc64_slices[0][word >> 56];
}

/* Advance a raw state (no inversions) by any number of bytes. */
static inline uint64_t crc64_raw_table(uint64_t state, const uint8_t *data, size_t size)
{
    for (; size >= 8; data += 8, size -= 8)
        state = crc64_step8(state, data);
    for (; size > 0; data++, size--)
        state = (state >> 8) ^ crc64_slices[0][(state ^ *data) & 0xff];
    return state;
}

static uint64_t crc64_update_table(uint64_t crc, const uint8_t *data, size_t size)
{
    return ~crc64_raw_table(~crc, data, size);
}

#endif
