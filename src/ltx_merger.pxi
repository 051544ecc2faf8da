cdef Header _read_header(int fd, str name):
    cdef uint8_t raw[LTX_HEADER_BYTES]
    cdef ssize_t got = ltx_read(fd, raw, LTX_HEADER_BYTES, 0)
    if got < 0:
        raise OSError(errno, os.strerror(errno))
    try:
        return Header.parse(raw[:got])
    except LTXCorruptError as error:
        raise LTXCorruptError(error.message, op="header", path=name) from None


cdef int _check_follows(Header before, Header after) except -1:
    """Check that two inputs follow each other: overlap is allowed, containment is not."""
    if before.page_size != after.page_size:
        raise LTXError(
            f"input files have mismatched page sizes: {before.page_size} != {after.page_size}",
            op="merge",
        )
    if after.min_txid - 1 > before.max_txid or after.max_txid <= before.max_txid:
        raise LTXGapError(
            "non-contiguous transaction ids in input files: "
            f"({before.min_txid:x},{before.max_txid:x}) -> "
            f"({after.min_txid:x},{after.max_txid:x})",
            op="merge",
            min_txid=after.min_txid,
            max_txid=after.max_txid,
        )
    return 0


cdef Header _merged_header(list headers, bint zstd):
    """Return the header of the merged file; WAL fields are zero, what differs is unknown."""
    first, last = <Header>headers[0], <Header>headers[len(headers) - 1]
    node_ids = {(<Header>header).node_id for header in headers}
    return Header(
        page_size=last.page_size,
        commit=last.commit,
        min_txid=first.min_txid,
        max_txid=last.max_txid,
        timestamp_ms=last.timestamp_ms,
        flags=NO_CHECKSUM | (ZSTD if zstd else 0),
        node_id=last.node_id if len(node_ids) == 1 else 0,
        is_pyrep=any((<Header>header).is_pyrep for header in headers),
        pre_checksum=first.pre_checksum,
        post_checksum=last.post_checksum,
    )


@cython.final
cdef class Merger:
    """Merge LTX files that follow each other into one; the newest version of a page wins.

    ``fds`` are open files, the oldest first, of ``sizes`` bytes.  The output is LZ4, or zstd with a
    ``zstd_level``; pages that are compressed so are copied as they are, others are compressed
    anew; every input is verified as a Decoder does.  Output is taken like an Encoder's:
    ``pages_into`` until it returns 0, ``index`` (optional), ``finish``.  The result has what
    applying the files one by one would leave, so a page that any later file cut off is dropped.
    ``names`` are what errors call the inputs.

    :raises LTXGapError: the inputs do not follow each other
    :raises LTXError: there is no input, or page sizes differ
    """

    cdef ltx_merger _merger
    cdef list _headers
    cdef Header _header
    cdef list _names
    cdef list _zstds
    cdef int _state

    def __cinit__(self, fds, sizes, names=(), *, zstd_level=None):
        memset(&self._merger, 0, sizeof(ltx_merger))
        self._headers = []
        self._names = list(names) + [""] * (len(fds) - len(names))
        if not fds or len(fds) != len(sizes):
            raise LTXError("at least one input file is required, each with its size", op="merge")
        self._read_headers(fds)
        self._header = _merged_header(self._headers, zstd_level is not None)
        self._zstds = [_init_encoder(&self._merger.out, self._header, zstd_level)]
        self._open_inputs(fds, sizes)

    def __dealloc__(self):
        cdef size_t i
        for i in range(self._merger.count):
            ltx_input_free(&self._merger.inputs[i])
        free(self._merger.inputs)
        free(self._merger.page)
        _free_encoder(&self._merger.out)

    cdef int _read_headers(self, object fds) except -1:
        for number, fd in enumerate(fds):
            self._headers.append(_read_header(fd, self._names[number]))
            if number > 0:
                _check_follows(self._headers[number - 1], self._headers[number])
        return 0

    cdef int _open_inputs(self, object fds, object sizes) except -1:
        cdef size_t count = <size_t>len(fds), i
        cdef size_t window = min(<size_t>MERGE_WINDOW_BYTES, MERGE_WINDOWS_BYTES // count)
        cdef uint32_t keep = self._header.commit
        cdef ltx_input *item
        cdef Header header
        self._merger.inputs = <ltx_input *>calloc(count, sizeof(ltx_input))
        self._merger.page = <uint8_t *>malloc(self._header.page_size)
        if self._merger.inputs == NULL or self._merger.page == NULL:
            raise MemoryError()
        self._merger.count = count
        for i in reversed(range(count)):
            item = &self._merger.inputs[i]
            header = <Header>self._headers[i]
            if header.commit == 0:
                raise LTXCorruptError(
                    "a database of zero pages", op="merge", path=self._names[i]
                )
            _init_run(
                &item.run, header, header.min_txid == 1 and not header.flags & NO_CHECKSUM
            )
            if header.flags & ZSTD:
                self._serve(&item.run)
            item.fd = fds[i]
            item.size = sizes[i]
            keep = min(keep, header.commit)
            item.keep = keep
            self._merger.failed = i
            self._check(ltx_input_open(item, window))
        return 0

    cdef int _serve(self, ltx_run *run) except -1:
        zstd = _Zstd(run.page_size)
        zstd.serve(run, False)
        self._zstds.append(zstd)
        return 0

    cdef int _check(self, int status) except -1:
        """Raise the error of a status, about the input in ``_merger.failed``."""
        if status >= LTX_OK:
            return 0
        self._state = CLOSED
        if self._merger.failed == self._merger.count:
            raise _error(status, &self._merger.out.run, LTXCorruptError, "merge", self._header)
        raise _error(
            status,
            &self._merger.inputs[self._merger.failed].run,
            LTXCorruptError,
            "merge",
            <Header>self._headers[self._merger.failed],
            self._names[self._merger.failed],
        )

    @property
    def header(self) -> Header:
        """Return the header of the merged file."""
        return self._header

    @property
    def offset(self) -> int:
        """Return the file offset of the next output frame, in bytes."""
        return self._merger.out.run.offset

    @property
    def pages(self) -> int:
        """Return how many pages were put out."""
        return self._merger.out.run.pages

    def max_frame_size(self) -> int:
        """Return the size of the largest output frame, in bytes."""
        return ltx_max_write(&self._merger.out.run)

    cdef int _check_state(self, int latest) except -1:
        if self._state > latest:
            raise LTXError("the merger is closed", op="merge")
        return 0

    def pages_into(self, out not None) -> int:
        """Put the next output frames into ``out``; return their size, 0 when there are no more.

        :raises LTXCorruptError: an input breaks the format
        :raises OSError: a read failed
        """
        cdef uint8_t[::1] room = _writable(out)
        cdef size_t used = 0
        cdef int status
        self._check_state(ADDING)
        if <size_t>room.shape[0] < ltx_max_write(&self._merger.out.run):
            raise ValueError(f"the buffer must hold max_frame_size() bytes, it has {room.shape[0]}")
        with nogil:
            status = ltx_merge_pages(
                &self._merger, &room[0], <size_t>room.shape[0], &used
            )
        self._check(status)
        return used

    cdef int _verify_inputs(self) except -1:
        """Read what follows the pages of each input, and prove its content."""
        cdef size_t i
        cdef ltx_input *item
        cdef int status
        for i in range(self._merger.count):
            item = &self._merger.inputs[i]
            self._merger.failed = i
            with nogil:
                status = ltx_input_tail(item)
            self._check(status)
            self._check(_close_tail(&item.run, &item.tail, <Header>self._headers[i]))
        self._merger.failed = self._merger.count
        return self._check(ltx_check_complete(&self._merger.out.run))

    cdef int _end_pages(self) except -1:
        cdef size_t i
        self._check_state(ENDING)
        if self._state == ENDING:
            return 0
        for i in range(self._merger.count):
            if self._merger.inputs[i].pgno != <uint64_t>-1:
                raise LTXError("there are pages left to merge", op="merge")
        self._verify_inputs()
        self._state = ENDING
        return 0

    def index(self, out not None) -> int:
        """Verify the inputs, and put the next piece of the tail into ``out``, as an Encoder does.

        :raises LTXCorruptError: an input is not proven, or the merged snapshot lacks pages
        """
        self._end_pages()
        return _write_index(&self._merger.out, out)

    def finish(self) -> tuple[bytes, bytes]:
        """Verify the inputs, and return the header and what is left of the tail.

        :raises LTXCorruptError: an input is not proven, or the merged snapshot lacks pages
        """
        self._end_pages()
        self._state = CLOSED
        tail = _rest_of_index(&self._merger.out)
        return self._header.pack(), tail + _trailer(&self._merger.out, self._header)
