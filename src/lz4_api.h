/* The calls of liblz4 that are used, declared here so that no header is needed (stable since 1.7). */
#ifndef PYREP_LZ4_API_H
#define PYREP_LZ4_API_H

#include <stddef.h>

#define PYREP_LZ4_MINIMUM 10900 /* 1.9.0 */
#define PYREP_LZ4F_VERSION 100

typedef struct LZ4F_dctx_s LZ4F_dctx;

int LZ4_versionNumber(void);
int LZ4_sizeofState(void);
int LZ4_compressBound(int size);
int LZ4_compress_fast_extState(
    void *state, const char *src, char *dst, int src_size, int dst_size, int acceleration);
int LZ4_decompress_safe(const char *src, char *dst, int src_size, int dst_size);

size_t LZ4F_createDecompressionContext(LZ4F_dctx **context, unsigned version);
size_t LZ4F_freeDecompressionContext(LZ4F_dctx *context);
size_t LZ4F_decompress(LZ4F_dctx *context, void *dst, size_t *dst_size, const void *src,
    size_t *src_size, const void *options);
unsigned LZ4F_isError(size_t code);

#endif
