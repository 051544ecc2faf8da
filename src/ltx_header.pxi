@cython.final
cdef class Header:
    """Hold the header of an LTX file; immutable.

    ``is_pyrep`` says that the reserved bytes carry pyrep's mark and the database checksums
    before and after (``pre_checksum``, ``post_checksum``; 0 is unknown).

    :raises LTXError: the fields contradict each other (:class:`LTXCorruptError` from ``parse``)
    """

    cdef readonly uint32_t flags
    cdef readonly uint32_t page_size
    cdef readonly uint32_t commit
    cdef readonly uint64_t min_txid
    cdef readonly uint64_t max_txid
    cdef readonly int64_t timestamp_ms
    cdef readonly uint64_t pre_apply_checksum
    cdef readonly int64_t wal_offset
    cdef readonly int64_t wal_size
    cdef readonly uint32_t wal_salt1
    cdef readonly uint32_t wal_salt2
    cdef readonly uint64_t node_id
    cdef readonly bint is_pyrep
    cdef readonly uint64_t pre_checksum
    cdef readonly uint64_t post_checksum
    cdef uint8_t raw[LTX_HEADER_BYTES]

    def __cinit__(
        self,
        *,
        uint32_t page_size,
        uint32_t commit,
        uint64_t min_txid,
        uint64_t max_txid,
        int64_t timestamp_ms,
        uint32_t flags=NO_CHECKSUM,
        uint64_t pre_apply_checksum=0,
        int64_t wal_offset=0,
        int64_t wal_size=0,
        uint32_t wal_salt1=0,
        uint32_t wal_salt2=0,
        uint64_t node_id=0,
        bint is_pyrep=True,
        uint64_t pre_checksum=0,
        uint64_t post_checksum=0,
    ):
        self.flags = flags
        self.page_size = page_size
        self.commit = commit
        self.min_txid = min_txid
        self.max_txid = max_txid
        self.timestamp_ms = timestamp_ms
        self.pre_apply_checksum = pre_apply_checksum
        self.wal_offset = wal_offset
        self.wal_size = wal_size
        self.wal_salt1 = wal_salt1
        self.wal_salt2 = wal_salt2
        self.node_id = node_id
        self.is_pyrep = is_pyrep
        self.pre_checksum = pre_checksum
        self.post_checksum = post_checksum
        problem = self._problem()
        if problem:
            raise LTXError(problem, op="header", min_txid=min_txid, max_txid=max_txid)
        if not is_pyrep and (pre_checksum or post_checksum):
            raise LTXError("only pyrep's files carry database checksums", op="header")
        self._fill()

    cdef str _problem(self):
        """Return what is wrong, in the order in which Litestream checks; None if nothing is."""
        if self.flags & ~<uint32_t>KNOWN_FLAGS:
            return f"invalid flags: 0x{self.flags:08x}"
        if not _valid_page_size(self.page_size):
            return f"invalid page size: {self.page_size}"
        if self.min_txid == 0:
            return "minimum transaction id required"
        if self.max_txid == 0:
            return "maximum transaction id required"
        if self.min_txid > self.max_txid:
            return f"transaction ids out of order: ({self.min_txid:x},{self.max_txid:x})"
        if self.wal_offset < 0:
            return f"negative wal offset: {self.wal_offset}"
        if self.wal_size < 0:
            return f"negative wal size: {self.wal_size}"
        if self.wal_offset == 0 and (self.wal_salt1 or self.wal_salt2):
            return "wal salts without wal offset"
        if self.wal_offset == 0 and self.wal_size:
            return "wal size without wal offset"
        if self.min_txid == 1 and self.pre_apply_checksum:
            return "pre-apply checksum must be zero in a snapshot"
        if self.flags & NO_CHECKSUM:
            return "pre-apply checksum not allowed" if self.pre_apply_checksum else None
        if self.min_txid > 1 and not self.pre_apply_checksum & SIGN:
            return f"invalid pre-apply checksum: {self.pre_apply_checksum:016x}"
        return None

    cdef void _fill(self) noexcept:
        memset(self.raw, 0, LTX_HEADER_BYTES)
        ltx_put32(self.raw, MAGIC)
        ltx_put32(self.raw + 4, self.flags)
        ltx_put32(self.raw + 8, self.page_size)
        ltx_put32(self.raw + 12, self.commit)
        ltx_put64(self.raw + 16, self.min_txid)
        ltx_put64(self.raw + 24, self.max_txid)
        ltx_put64(self.raw + 32, <uint64_t>self.timestamp_ms)
        ltx_put64(self.raw + 40, self.pre_apply_checksum)
        ltx_put64(self.raw + 48, <uint64_t>self.wal_offset)
        ltx_put64(self.raw + 56, <uint64_t>self.wal_size)
        ltx_put32(self.raw + 64, self.wal_salt1)
        ltx_put32(self.raw + 68, self.wal_salt2)
        ltx_put64(self.raw + 72, self.node_id)
        if self.is_pyrep:
            ltx_put32(self.raw + 80, PYREP_MAGIC)
            ltx_put64(self.raw + 84, self.pre_checksum)
            ltx_put64(self.raw + 92, self.post_checksum)

    @staticmethod
    def parse(data not None) -> Header:
        """Read a header from the first 100 bytes of ``data``.

        :raises LTXCorruptError: they are too few, or no valid LTX header
        """
        cdef const uint8_t[::1] view = _bytes(data)
        cdef const uint8_t *raw
        if view.shape[0] < LTX_HEADER_BYTES:
            raise LTXCorruptError(f"short header: {view.shape[0]} bytes", op="header")
        raw = &view[0]
        if ltx_be32(raw) != MAGIC:
            raise LTXCorruptError("not an LTX file", op="header")
        pyrep = ltx_be32(raw + 80) == PYREP_MAGIC
        try:
            header = Header(
                flags=ltx_be32(raw + 4),
                page_size=ltx_be32(raw + 8),
                commit=ltx_be32(raw + 12),
                min_txid=ltx_be64(raw + 16),
                max_txid=ltx_be64(raw + 24),
                timestamp_ms=<int64_t>ltx_be64(raw + 32),
                pre_apply_checksum=ltx_be64(raw + 40),
                wal_offset=<int64_t>ltx_be64(raw + 48),
                wal_size=<int64_t>ltx_be64(raw + 56),
                wal_salt1=ltx_be32(raw + 64),
                wal_salt2=ltx_be32(raw + 68),
                node_id=ltx_be64(raw + 72),
                is_pyrep=pyrep,
                pre_checksum=ltx_be64(raw + 84) if pyrep else 0,
                post_checksum=ltx_be64(raw + 92) if pyrep else 0,
            )
        except LTXError as error:
            raise LTXCorruptError(error.message, op="header") from None
        # The file checksum covers the reserved bytes as they are.
        memcpy((<Header>header).raw, raw, LTX_HEADER_BYTES)
        return header

    def pack(self) -> bytes:
        """Return the 100 bytes of the header."""
        return self.raw[:LTX_HEADER_BYTES]

    def __repr__(self) -> str:
        return (
            f"Header({self.min_txid:016x}-{self.max_txid:016x}, page_size={self.page_size}, "
            f"commit={self.commit}, flags=0x{self.flags:x}, timestamp_ms={self.timestamp_ms}, "
            f"node_id={self.node_id:016x}, is_pyrep={self.is_pyrep})"
        )
