cdef _Zstd _init_encoder(ltx_encoder *encoder, Header header, object zstd_level):
    """Return what compresses the pages, if that is not liblz4: the caller keeps it."""
    if header.commit == 0:
        raise LTXError("a database of zero pages cannot be stored", op="encode")
    if not header.flags & NO_CHECKSUM:
        raise LTXError("only files without rolling checksums are written", op="encode")
    _init_run(&encoder.run, header, False)
    encoder.salt1 = header.wal_salt1
    encoder.salt2 = header.wal_salt2
    encoder.state = malloc(<size_t>LZ4_sizeofState())
    if encoder.state == NULL:
        raise MemoryError()
    if not header.flags & ZSTD:
        return None
    zstd = _Zstd(header.page_size, zstd_level)
    zstd.serve(&encoder.run, True)
    return zstd


cdef void _free_encoder(ltx_encoder *encoder) noexcept:
    free(encoder.state)
    free(encoder.staging)
    free(encoder.index.data)


cdef Py_ssize_t _write_index(ltx_encoder *encoder, object out) except -1:
    cdef uint8_t[::1] view = _writable(out)
    cdef size_t n
    if view.shape[0] < LTX_ENTRY_BYTES:
        raise ValueError(f"the buffer must hold at least {LTX_ENTRY_BYTES} bytes")
    with nogil:
        n = ltx_index_write(&encoder.index, &encoder.run, &view[0], <size_t>view.shape[0])
    return <Py_ssize_t>n


cdef bytes _rest_of_index(ltx_encoder *encoder):
    pieces = []
    chunk = bytearray(1 << 16)
    n = _write_index(encoder, chunk)
    while n:
        pieces.append(chunk[:n])
        n = _write_index(encoder, chunk)
    return b"".join(pieces)


cdef bytes _trailer(ltx_encoder *encoder, Header header):
    cdef uint8_t trailer[LTX_TRAILER_BYTES]
    cdef uint64_t header_crc = crc64_update(0, header.raw, LTX_HEADER_BYTES)
    ltx_put64(trailer, 0)
    ltx_put64(
        trailer + 8,
        ltx_file_checksum(
            &encoder.run,
            header_crc,
            crc64_power(encoder.run.size),
            crc64_power(ltx_index_size(&encoder.run)),
            0,
        ),
    )
    return trailer[:LTX_TRAILER_BYTES]


cdef bytes _final_header(Header header, uint64_t pre_checksum, uint64_t post_checksum):
    """Put the database checksums into the header's bytes and return them."""
    if header.is_pyrep:
        ltx_put64(header.raw + 84, pre_checksum)
        ltx_put64(header.raw + 92, post_checksum)
        header.pre_checksum = pre_checksum
        header.post_checksum = post_checksum
    elif pre_checksum or post_checksum:
        raise LTXError("only pyrep's files carry database checksums", op="encode")
    return header.pack()


@cython.final
cdef class Encoder:
    """Encode the pages of one LTX file, in ascending order.

    The caller leaves 100 bytes free, appends what ``add_page`` and ``add_pages`` put into its
    buffer, then what ``index`` gives piece by piece (optional), then the tail that ``finish``
    returns, and writes the header last.  ``part`` encodes some of the pages beside others;
    ``join`` puts its account into the whole, whose bytes are the same either way.  After an error
    the file must be thrown away.  A header with ``FLAG_ZSTD`` has the pages compressed with
    zstd, at ``zstd_level`` (None: the default).

    :raises LTXError: the header's commit is zero, or it asks for rolling checksums
    """

    cdef ltx_encoder _encoder
    cdef Header _header
    cdef int _state
    cdef uint32_t _start_pgno
    cdef _Zstd _zstd
    cdef object _zstd_level

    def __cinit__(self, Header header not None, *, zstd_level=None):
        memset(&self._encoder, 0, sizeof(ltx_encoder))
        self._header = Header.parse(header.pack())
        self._start_pgno = 0
        self._zstd_level = zstd_level
        self._zstd = _init_encoder(&self._encoder, header, zstd_level)

    def __dealloc__(self):
        _free_encoder(&self._encoder)

    @property
    def offset(self) -> int:
        """Return the file offset of the next frame, in bytes."""
        return self._encoder.run.offset

    @property
    def pages(self) -> int:
        """Return how many pages were encoded."""
        return self._encoder.run.pages

    @property
    def last_pgno(self) -> int:
        """Return the number of the last page, 0 before the first."""
        return self._encoder.run.last_pgno

    def part(self, uint32_t last_pgno) -> Encoder:
        """Return an encoder of pages of the same file, those after page ``last_pgno``."""
        cdef Encoder encoder = Encoder(self._header, zstd_level=self._zstd_level)
        encoder._encoder.run.last_pgno = last_pgno
        encoder._start_pgno = last_pgno
        return encoder

    def join(self, Encoder part not None) -> None:
        """Take over the account of a part that begins where this encoder stands.

        The part is used up.

        :raises LTXError: it begins elsewhere
        """
        cdef ltx_run *run = &self._encoder.run
        self._check_state(ADDING)
        part._check_state(ADDING)
        if part._start_pgno != run.last_pgno:
            raise LTXError(
                f"the parts do not meet: one ends with page {run.last_pgno}, the next begins "
                f"after page {part._start_pgno}",
                op="encode",
            )
        part._state = CLOSED
        run.crc = crc64_join(run.crc, part._encoder.run.crc, part._encoder.run.size)
        run.size += part._encoder.run.size
        if ltx_join_entries(&self._encoder, &part._encoder.index) != LTX_OK:
            self._raise(LTX_E_MEMORY)

    cdef int _check_state(self, int latest) except -1:
        if self._state > latest:
            raise LTXError("the encoder is closed", op="encode")
        return 0

    cdef int _raise(self, int status) except -1:
        self._state = CLOSED
        raise _error(status, &self._encoder.run, LTXError, "encode", self._header)

    def max_frame_size(self) -> int:
        """Return the size of the largest frame a page can become, in bytes."""
        return ltx_max_write(&self._encoder.run)

    def add_page(self, uint32_t pgno, data not None, out not None) -> int:
        """Encode a page into ``out`` and return the number of bytes.

        :raises LTXError: the page may not come next, or ``data`` is no page
        """
        cdef const uint8_t[::1] page = _bytes(data)
        cdef uint8_t[::1] room = _writable(out)
        cdef size_t size = 0
        cdef uint64_t crc = 0
        cdef int status
        self._check_state(ADDING)
        if page.shape[0] != self._header.page_size:
            raise LTXError(
                f"invalid page buffer size: {page.shape[0]}, expecting {self._header.page_size}",
                op="encode",
            )
        self._check_room(room.shape[0])
        with nogil:
            status = ltx_add_page(&self._encoder, pgno, &page[0], &room[0], &size, &crc)
        if status != LTX_OK:
            self._raise(status)
        return size

    cdef int _check_room(self, Py_ssize_t room) except -1:
        if <size_t>room < ltx_max_write(&self._encoder.run):
            raise ValueError(f"the buffer must hold max_frame_size() bytes, it has {room}")
        return 0

    def add_pages(
        self,
        int db_fd,
        int wal_fd,
        pgnos not None,
        offsets not None,
        Py_ssize_t start,
        out not None,
        crcs=None,
    ) -> tuple[int, int]:
        """Read and encode pages from number ``start`` of the lists on, as many as fit in ``out``.

        ``pgnos`` holds native 32-bit page numbers, ``offsets`` native signed 64-bit offsets of
        WAL frame headers, -1 for a page of the database file (zeros past its end).  ``crcs``
        takes the CRC-64 of each page at the same place.  Returns the next ``start`` and the
        number of bytes in ``out``.

        :raises WALError: a frame is not the mapped one any more: number, salts or length
        :raises LTXError: a page may not come next
        :raises OSError: a read failed
        """
        cdef const uint32_t[::1] numbers = memoryview(pgnos).cast("B").cast("I")
        cdef const int64_t[::1] places = memoryview(offsets).cast("B").cast("q")
        cdef uint8_t[::1] room = _writable(out)
        cdef uint64_t[::1] sums = None if crcs is None else memoryview(crcs).cast("B").cast("Q")
        cdef size_t next_page = <size_t>start, used = 0, count = <size_t>numbers.shape[0]
        cdef int status
        self._check_state(ADDING)
        self._check_room(room.shape[0])
        if places.shape[0] != numbers.shape[0] or not 0 <= start <= numbers.shape[0]:
            raise ValueError("page numbers and offsets differ in length, or start is beyond them")
        if crcs is not None and sums.shape[0] < numbers.shape[0]:
            raise ValueError("there is no room for the checksums of all pages")
        if next_page == count:
            return start, 0
        cdef uint64_t *sums_start = NULL if crcs is None else &sums[0]
        with nogil:
            status = ltx_add_pages(
                &self._encoder, db_fd, wal_fd, &numbers[0], &places[0], count, &next_page,
                &room[0], <size_t>room.shape[0], &used, sums_start
            )
        if status != LTX_OK:
            self._raise(status)
        return next_page, used

    def index(self, out not None) -> int:
        """Put the next piece of the tail into ``out``; return its size, 0 when only the trailer
        is left.

        No page may follow.  It saves ``finish`` from returning the whole index at once.
        """
        self._end_pages()
        return _write_index(&self._encoder, out)

    cdef int _end_pages(self) except -1:
        self._check_state(ENDING)
        status = ltx_check_complete(&self._encoder.run)
        if status != LTX_OK:
            self._raise(status)
        self._state = ENDING
        return 0

    def finish(self, uint64_t pre_checksum, uint64_t post_checksum) -> tuple[bytes, bytes]:
        """Return the header with the database checksums, and what is left of the tail.

        :raises LTXError: a snapshot lacks pages, or the header carries no checksums
        """
        self._end_pages()
        self._state = CLOSED
        header = _final_header(self._header, pre_checksum, post_checksum)
        tail = _rest_of_index(&self._encoder)
        return header, tail + _trailer(&self._encoder, self._header)
