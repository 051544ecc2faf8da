/* CRC-64/ISO by carry-less multiplication: 128-bit and 256-bit kernels for x86-64.
 *
 * A 16-byte block is the polynomial low * x^64 + high (reflected).  Moving it D bits further
 * multiplies by x^D, that is low by x^(D+64) and high by x^D; the product of two reflected
 * words carries one factor x too much, so the constants are x^(D+63) and x^(D-1).  The last
 * 16 bytes and the rest of the message go through the table, which reduces them.
 */
#ifndef PYREP_CRC64_CLMUL_H
#define PYREP_CRC64_CLMUL_H

#include "crc64_table.h"

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define PYREP_HAVE_CLMUL 1
#include <immintrin.h>

#define PYREP_TARGET_128 __attribute__((target("pclmul,sse4.1")))
#define PYREP_TARGET_256 __attribute__((target("pclmul,sse4.1,avx2,vpclmulqdq")))

/* Folding constants {for the low word, for the high word}; set once at import. */
static uint64_t crc64_fold16[2], crc64_fold64[2], crc64_fold128[2];

static inline void crc64_clmul_init(void)
{
    crc64_fold16[0] = crc64_x_to(16 * 8 + 63);
    crc64_fold16[1] = crc64_x_to(16 * 8 - 1);
    crc64_fold64[0] = crc64_x_to(64 * 8 + 63);
    crc64_fold64[1] = crc64_x_to(64 * 8 - 1);
    crc64_fold128[0] = crc64_x_to(128 * 8 + 63);
    crc64_fold128[1] = crc64_x_to(128 * 8 - 1);
}

static inline int crc64_have_128(void)
{
    return __builtin_cpu_supports("pclmul") && __builtin_cpu_supports("sse4.1");
}

static inline int crc64_have_256(void)
{
    return crc64_have_128() && __builtin_cpu_supports("avx2")
        && __builtin_cpu_supports("vpclmulqdq");
}

PYREP_TARGET_128 static inline __m128i crc64_load128(const uint8_t *data)
{
    return _mm_loadu_si128((const __m128i *)data);
}

PYREP_TARGET_128 static inline __m128i crc64_fold(__m128i block, __m128i constants, __m128i next)
{
    __m128i low = _mm_clmulepi64_si128(block, constants, 0x00);
    __m128i high = _mm_clmulepi64_si128(block, constants, 0x11);
    return _mm_xor_si128(_mm_xor_si128(low, high), next);
}

/* Finish a message whose folded block is `block` and of which `size` bytes are left. */
PYREP_TARGET_128 static inline uint64_t crc64_finish(
    __m128i block, const uint8_t *data, size_t size)
{
    const __m128i by16 = crc64_load128((const uint8_t *)crc64_fold16);
    uint8_t last[16];
    for (; size >= 16; data += 16, size -= 16)
        block = crc64_fold(block, by16, crc64_load128(data));
    _mm_storeu_si128((__m128i *)last, block);
    return ~crc64_raw_table(crc64_raw_table(0, last, 16), data, size);
}

PYREP_TARGET_128 static uint64_t crc64_update_128(uint64_t crc, const uint8_t *data, size_t size)
{
    if (size < 64)
        return crc64_update_table(crc, data, size);
    const __m128i by64 = crc64_load128((const uint8_t *)crc64_fold64);
    const __m128i by16 = crc64_load128((const uint8_t *)crc64_fold16);
    __m128i a = _mm_xor_si128(crc64_load128(data), _mm_cvtsi64_si128((long long)~crc));
    __m128i b = crc64_load128(data + 16);
    __m128i c = crc64_load128(data + 32);
    __m128i d = crc64_load128(data + 48);
    for (data += 64, size -= 64; size >= 64; data += 64, size -= 64) {
        a = crc64_fold(a, by64, crc64_load128(data));
        b = crc64_fold(b, by64, crc64_load128(data + 16));
        c = crc64_fold(c, by64, crc64_load128(data + 32));
        d = crc64_fold(d, by64, crc64_load128(data + 48));
    }
    a = crc64_fold(a, by16, b);
    a = crc64_fold(a, by16, c);
    a = crc64_fold(a, by16, d);
    return crc64_finish(a, data, size);
}

PYREP_TARGET_256 static inline __m256i crc64_load256(const uint8_t *data)
{
    return _mm256_loadu_si256((const __m256i *)data);
}

PYREP_TARGET_256 static inline __m256i crc64_fold_wide(
    __m256i block, __m256i constants, __m256i next)
{
    __m256i low = _mm256_clmulepi64_epi128(block, constants, 0x00);
    __m256i high = _mm256_clmulepi64_epi128(block, constants, 0x11);
    return _mm256_xor_si256(_mm256_xor_si256(low, high), next);
}

/* Fold both halves of a 32-byte block, in order, into `block`. */
PYREP_TARGET_256 static inline __m128i crc64_fold_halves(
    __m128i block, __m128i by16, __m256i next)
{
    block = crc64_fold(block, by16, _mm256_castsi256_si128(next));
    return crc64_fold(block, by16, _mm256_extracti128_si256(next, 1));
}

PYREP_TARGET_256 static uint64_t crc64_update_256(uint64_t crc, const uint8_t *data, size_t size)
{
    if (size < 256)
        return crc64_update_128(crc, data, size);
    const __m256i by128 = _mm256_broadcastsi128_si256(
        crc64_load128((const uint8_t *)crc64_fold128));
    const __m128i by16 = crc64_load128((const uint8_t *)crc64_fold16);
    __m256i start = _mm256_inserti128_si256(
        _mm256_setzero_si256(), _mm_cvtsi64_si128((long long)~crc), 0);
    __m256i a = _mm256_xor_si256(crc64_load256(data), start);
    __m256i b = crc64_load256(data + 32);
    __m256i c = crc64_load256(data + 64);
    __m256i d = crc64_load256(data + 96);
    for (data += 128, size -= 128; size >= 128; data += 128, size -= 128) {
        a = crc64_fold_wide(a, by128, crc64_load256(data));
        b = crc64_fold_wide(b, by128, crc64_load256(data + 32));
        c = crc64_fold_wide(c, by128, crc64_load256(data + 64));
        d = crc64_fold_wide(d, by128, crc64_load256(data + 96));
    }
    __m128i block = crc64_fold(
        _mm256_castsi256_si128(a), by16, _mm256_extracti128_si256(a, 1));
    block = crc64_fold_halves(block, by16, b);
    block = crc64_fold_halves(block, by16, c);
    block = crc64_fold_halves(block, by16, d);
    return crc64_finish(block, data, size);
}

#else
#define PYREP_HAVE_CLMUL 0

/* Other processors have the table path only; these keep the callers free of conditions. */
static inline void crc64_clmul_init(void) { }
static inline int crc64_have_128(void) { return 0; }
static inline int crc64_have_256(void) { return 0; }
static uint64_t crc64_update_128(uint64_t crc, const uint8_t *data, size_t size)
{
    return crc64_update_table(crc, data, size);
}
static uint64_t crc64_update_256(uint64_t crc, const uint8_t *data, size_t size)
{
    return crc64_update_table(crc, data, size);
}

#endif
#endif
