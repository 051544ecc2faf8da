cdef class _Zstd:
    """Let the C core reach python-zstandard, for one run of frames."""

    cdef object _pages
    cdef object _failure

    def __cinit__(self, uint32_t page_size, object level=None):
        from pyrep.zstdpages import DEFAULT_LEVEL, ZstdPages

        self._pages = ZstdPages(page_size, DEFAULT_LEVEL if level is None else level)

    cdef void serve(self, ltx_run *run, bint packs) noexcept:
        """Let frames of ``run`` be zstd ones; ``packs``: those that are written, too.

        The caller keeps this object as long as the run.
        """
        run.zstd.object = <void *>self
        run.zstd.compress = _zstd_compress
        run.zstd.decompress = _zstd_decompress
        run.zstd.packs = packs

    cdef int put(self, bytes data, uint8_t *out, size_t room, size_t *size) except -1:
        if <size_t>len(data) > room:
            raise ValueError(f"{len(data)} bytes are more than the {room} there may be")
        memcpy(out, <const uint8_t *>data, <size_t>len(data))
        size[0] = <size_t>len(data)
        return 0


cdef int _zstd_compress(
    void *object, const uint8_t *page, size_t page_size, uint8_t *out, size_t room, size_t *size
) noexcept with gil:
    cdef _Zstd zstd = <_Zstd>object
    try:
        zstd.put(zstd._pages.compress(page[:page_size]), out, room, size)
    except BaseException as error:  # goes on at the edge of the core
        zstd._failure = error
        return LTX_E_ZSTD
    return LTX_OK


cdef int _zstd_decompress(
    void *object, const uint8_t *frame, size_t size, uint8_t *page, size_t page_size
) noexcept with gil:
    cdef _Zstd zstd = <_Zstd>object
    cdef size_t got = 0
    try:
        zstd.put(zstd._pages.decompress(frame[:size]), page, page_size, &got)
    except BaseException as error:  # goes on at the edge of the core
        zstd._failure = error
        return LTX_E_ZSTD
    return LTX_OK


cdef object _zstd_failure(ltx_run *run):
    """Return and forget why a frame failed."""
    cdef _Zstd zstd = <_Zstd>run.zstd.object
    failure, zstd._failure = zstd._failure, None
    return failure
