/* CRC-64/ISO: arithmetic modulo the polynomial.
 *
 * Reflected representation throughout: bit 63 of a word is the coefficient of x^0.  CRCs are
 * "finalised" values (initial and final XOR are all ones), so an empty message is 0 and
 * crc64(a + b) continues from crc64(a); it equals crc64(a) * x^(8 * len(b)) + crc64(b).
 */
#ifndef PYREP_CRC64_POLY_H
#define PYREP_CRC64_POLY_H

#include <stdint.h>

#define CRC64_POLY 0xD800000000000000ULL
#define CRC64_ONE 0x8000000000000000ULL /* x^0 */

/* Multiply two polynomials modulo the polynomial. */
static inline uint64_t crc64_multiply(uint64_t a, uint64_t b)
{
    uint64_t product = 0;
    for (uint64_t bit = CRC64_ONE; bit != 0; bit >>= 1) {
        if (a & bit)
            product ^= b;
        b = (b >> 1) ^ ((b & 1) ? CRC64_POLY : 0);
    }
    return product;
}

/* Return x^bits modulo the polynomial, for a small number of bits. */
static inline uint64_t crc64_x_to(unsigned bits)
{
    uint64_t value = CRC64_ONE;
    while (bits-- > 0)
        value = (value >> 1) ^ ((value & 1) ? CRC64_POLY : 0);
    return value;
}

#endif
