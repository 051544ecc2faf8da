cdef int _close_tail(ltx_run *run, ltx_tail *tail, Header header) noexcept:
    """Check what follows the frames and return the status."""
    return ltx_tail_close(
        run,
        tail,
        header.flags & NO_CHECKSUM != 0,
        crc64_update(0, header.raw, LTX_HEADER_BYTES),
        crc64_power(run.size),
        crc64_power(ltx_index_size(run)),
    )


@cython.final
cdef class Decoder:
    """Decode and verify one LTX file in one pass, in constant memory.

    Feed ``decode`` with everything from file offset 100 on until it says done, then ``tail``
    with the rest, then call ``close``: only then has the content been proven.  ``part`` decodes
    a span of a large file beside others; ``join`` puts its account into the whole.  After an
    error nothing more may be fed.

    :raises LTXCorruptError: the header's commit is zero
    """

    cdef ltx_run _run
    cdef ltx_tail _tail
    cdef LZ4F_dctx *_legacy
    cdef Header _header
    cdef _Zstd _zstd
    cdef int _state
    cdef uint64_t _start_offset
    cdef uint32_t _start_pgno

    def __cinit__(self, Header header not None):
        memset(&self._run, 0, sizeof(ltx_run))
        memset(&self._tail, 0, sizeof(ltx_tail))
        self._legacy = NULL
        self._header = header
        if header.commit == 0:
            raise LTXCorruptError("a database of zero pages", op="decode")
        _init_run(&self._run, header, header.min_txid == 1 and not header.flags & NO_CHECKSUM)
        if header.flags & ZSTD:
            self._zstd = _Zstd(header.page_size)
            self._zstd.serve(&self._run, False)
        self._start_offset = LTX_HEADER_BYTES
        self._start_pgno = 0

    def __dealloc__(self):
        LZ4F_freeDecompressionContext(self._legacy)

    @staticmethod
    def part(Header header not None, uint64_t offset, uint32_t last_pgno) -> Decoder:
        """Return a decoder of the frames from file offset ``offset`` on.

        ``last_pgno`` is the page of the frame before.
        """
        cdef Decoder decoder = Decoder(header)
        decoder._run.tracks = False
        decoder._run.offset = offset
        decoder._run.last_pgno = last_pgno
        decoder._start_offset = offset
        decoder._start_pgno = last_pgno
        return decoder

    @property
    def pages(self) -> int:
        """Return how many pages were decoded."""
        return self._run.pages

    @property
    def offset(self) -> int:
        """Return the file offset of the next frame, in bytes."""
        return self._run.offset

    @property
    def last_pgno(self) -> int:
        """Return the number of the last page."""
        return self._run.last_pgno

    @property
    def tracks(self) -> bool:
        """Return whether a rolling checksum is verified, which parts cannot do."""
        return self._run.tracks

    def max_frame_size(self) -> int:
        """Return the size of the largest frame, in bytes; ``decode`` needs so many to go on."""
        return ltx_max_read(&self._run)

    cdef object _error(self, int status):
        self._state = CLOSED
        return _error(status, &self._run, LTXCorruptError, "decode", self._header)

    cdef int _check_state(self, int wanted) except -1:
        if self._state != wanted:
            raise LTXCorruptError("the file's parts were fed out of order", op="decode")
        return 0

    cdef int _decode(
        self,
        const uint8_t *src,
        size_t size,
        uint8_t *out,
        size_t room,
        uint32_t *pgnos,
        uint64_t *crcs,
        size_t *used,
        size_t *count,
    ) noexcept nogil:
        """Decode whole frames; return MORE (out of frames or room), DONE or an error."""
        cdef ltx_frame frame
        cdef size_t page_size = self._run.page_size
        cdef uint64_t crc
        cdef int status
        while True:
            status = ltx_measure(&self._run, src + used[0], size - used[0], &frame)
            if status == LTX_DONE:
                used[0] += LTX_PAGE_HEADER_BYTES
                return status
            if status != LTX_OK or count[0] == room:
                return LTX_MORE if status == LTX_OK else status
            status = ltx_decode_page(
                &self._run, &self._legacy, src + used[0], &frame, out + count[0] * page_size
            )
            if status != LTX_OK:
                return status
            crc = crc64_update(0, out + count[0] * page_size, page_size)
            ltx_account(&self._run, &frame, src + used[0], crc)
            pgnos[count[0]] = frame.pgno
            if crcs != NULL:
                crcs[count[0]] = crc
            used[0] += frame.size
            count[0] += 1

    def decode(
        self, src not None, out not None, pgnos not None, crcs=None
    ) -> tuple[int, int, bool]:
        """Decode as many whole frames from ``src`` as there are and as fit.

        Pages go to ``out``, their numbers as native 32-bit words to ``pgnos``, the CRC-64 of
        each as a native 64-bit word to ``crcs``.  Returns the bytes consumed, the number of
        pages, and whether the end of the page block was reached (and consumed).

        :raises LTXCorruptError: a frame breaks the format
        """
        cdef const uint8_t[::1] data = _bytes(src)
        cdef uint8_t[::1] pages = _writable(out)
        cdef uint32_t[::1] numbers = memoryview(pgnos).cast("B").cast("I")
        cdef uint64_t[::1] sums = None if crcs is None else memoryview(crcs).cast("B").cast("Q")
        cdef size_t used = 0, count = 0, room
        cdef int status
        self._check_state(ADDING)
        room = <size_t>(pages.shape[0] // <Py_ssize_t>self._run.page_size)
        room = min(room, <size_t>numbers.shape[0])
        if crcs is not None:
            room = min(room, <size_t>sums.shape[0])
        if room == 0:
            raise ValueError("there is no room for a page")
        if data.shape[0] == 0:
            return 0, 0, False
        cdef uint64_t *sums_start = NULL if crcs is None else &sums[0]
        with nogil:
            status = self._decode(
                &data[0], <size_t>data.shape[0], &pages[0], room, &numbers[0], sums_start, &used,
                &count
            )
        if status < LTX_OK:
            raise self._error(status)
        if status == LTX_DONE:
            self._state = ENDING
        return used, count, status == LTX_DONE

    def join(self, Decoder part not None) -> None:
        """Take over the account of a part that begins where this decoder stands.

        :raises LTXCorruptError: it begins elsewhere, or a rolling checksum is wanted
        """
        self._check_state(ADDING)
        if self._run.tracks or part._state != ADDING:
            raise LTXCorruptError("the file cannot be decoded in parts", op="decode")
        if part._start_offset != self._run.offset or part._start_pgno != self._run.last_pgno:
            raise LTXCorruptError(
                f"the spans do not meet: one ends at {self._run.offset} with page "
                f"{self._run.last_pgno}, the next begins at {part._start_offset} after page "
                f"{part._start_pgno}",
                op="decode",
            )
        self._run.crc = crc64_join(self._run.crc, part._run.crc, part._run.size)
        self._run.size += part._run.size
        self._run.index_crc = crc64_join(
            self._run.index_crc, part._run.index_crc, part._run.index_size
        )
        self._run.index_size += part._run.index_size
        self._run.pages += part._run.pages
        self._run.offset = part._run.offset
        self._run.last_pgno = part._run.last_pgno

    def tail(self, data not None) -> None:
        """Take bytes that follow the page block: page index and trailer, in any pieces.

        :raises LTXCorruptError: there are more bytes than the frames imply
        """
        cdef const uint8_t[::1] view = _bytes(data)
        cdef int status
        self._check_state(ENDING)
        if view.shape[0] == 0:
            return
        with nogil:
            status = ltx_tail_feed(&self._run, &self._tail, &view[0], <size_t>view.shape[0])
        if status != LTX_OK:
            raise self._error(status)

    def close(self) -> int:
        """Check index, trailer, file checksum and completeness; return the post-apply checksum.

        :raises LTXChecksumError: the content does not match a checksum
        :raises LTXCorruptError: the file is cut off, or its index or trailer is wrong
        """
        if self._state == ADDING:
            raise self._error(LTX_E_TRUNCATED)
        self._check_state(ENDING)
        status = _close_tail(&self._run, &self._tail, self._header)
        if status != LTX_OK:
            raise self._error(status)
        self._state = CLOSED
        return ltx_be64(self._tail.last + 8)


@cython.final
cdef class IndexScan:
    """Read a page index in pieces and note where its file can be cut into spans.

    ``points`` lists pairs (file offset of a frame, page number of the frame before), at least
    ``every`` bytes apart, the first one (100, 0).  ``end`` is the offset of the page block's
    terminator.  Nothing is proven about the pages: decoding the spans does that.
    """

    cdef Header _header
    cdef ltx_scan _scan
    cdef uint64_t _every
    cdef readonly list points

    def __cinit__(self, Header header not None, uint64_t end, uint64_t every):
        cdef ltx_run run
        _init_run(&run, header, False)
        memset(&self._scan, 0, sizeof(ltx_scan))
        self._header = header
        self._every = every
        self._scan.end = end
        self._scan.next = LTX_HEADER_BYTES
        self._scan.offset = LTX_HEADER_BYTES
        self._scan.max_frame = ltx_max_read(&run)
        self._scan.commit = header.commit
        self.points = []

    cdef object _wrong(self):
        return LTXCorruptError(
            f"broken page index near page {self._scan.last_pgno}",
            op="index",
            min_txid=self._header.min_txid,
            max_txid=self._header.max_txid,
        )

    def feed(self, data not None) -> None:
        """Take the next bytes of the index, which begins after the terminator of the pages.

        :raises LTXCorruptError: the entries do not describe adjacent frames in ascending order
        """
        cdef const uint8_t[::1] view = _bytes(data)
        cdef size_t used = 0, size = <size_t>view.shape[0]
        cdef int result
        while used < size:
            with nogil:
                result = ltx_scan_feed(&self._scan, &view[0], size, &used)
            if result == LTX_SCAN_WRONG:
                raise self._wrong()
            if result == LTX_SCAN_POINT:
                self.points.append((self._scan.offset, self._scan.last_pgno))
                self._scan.next = self._scan.offset + self._every

    def close(self) -> None:
        """Check that the index was whole and ends where the page block does.

        :raises LTXCorruptError: it is not, or does not
        """
        if not self._scan.done or self._scan.offset != self._scan.end or self._scan.shift:
            raise self._wrong()
