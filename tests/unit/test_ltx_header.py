"""The LTX header: layout, validation in Litestream's order, pyrep's reserved bytes."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from fixtures.ltxspec import PAGE_SIZES
from oracle.ltx import LTX
from pyrep._ltx import FLAG_NO_CHECKSUM, FLAG_ZSTD, HEADER_SIZE, Header
from pyrep.errors import LTXCorruptError, LTXError

FIELDS: dict[str, Any] = {
    "page_size": 4096,
    "commit": 3,
    "min_txid": 7,
    "max_txid": 9,
    "timestamp_ms": 1_700_000_000_123,
    "wal_offset": 32,
    "wal_size": 4120,
    "wal_salt1": 0xAABBCCDD,
    "wal_salt2": 0x11223344,
    "node_id": 0xFEDCBA9876543210,
    "pre_checksum": 0x0102030405060708,
    "post_checksum": 0xF1F2F3F4F5F6F7F8,
}


def _raw(**changes: Any) -> bytes:
    """Return header bytes without any check."""
    fields = {"page_size": 4096, "commit": 3, "min_txid": 7, "max_txid": 9, **changes}
    return LTX(**fields).header()


def test_layout() -> None:
    data = Header(**FIELDS).pack()
    assert len(data) == HEADER_SIZE == 100
    assert data == struct.pack(
        ">4sIIIQQqQqqIIQ4sQQ",
        b"LTX1",
        FLAG_NO_CHECKSUM,
        4096,
        3,
        7,
        9,
        1_700_000_000_123,
        0,
        32,
        4120,
        0xAABBCCDD,
        0x11223344,
        0xFEDCBA9876543210,
        b"PYR1",
        0x0102030405060708,
        0xF1F2F3F4F5F6F7F8,
    )


def test_every_field_comes_back() -> None:
    header = Header.parse(Header(**FIELDS).pack() + b"what follows")
    assert {name: getattr(header, name) for name in FIELDS} == FIELDS
    assert header.is_pyrep
    assert (header.flags, header.pre_apply_checksum) == (FLAG_NO_CHECKSUM, 0)
    assert "0000000000000007-0000000000000009" in repr(header)
    with pytest.raises(AttributeError):
        header.commit = 1  # type: ignore[misc]


def test_without_the_mark_the_reserved_bytes_are_kept_but_not_read() -> None:
    plain = Header(**{**FIELDS, "is_pyrep": False, "pre_checksum": 0, "post_checksum": 0})
    assert plain.pack()[80:] == bytes(20)
    foreign = _raw(reserved=bytes(range(20)))
    header = Header.parse(foreign)
    assert not header.is_pyrep
    assert (header.pre_checksum, header.post_checksum) == (0, 0)
    assert header.pack() == foreign
    with pytest.raises(LTXError, match="only pyrep's files"):
        Header(**{**FIELDS, "is_pyrep": False})


@pytest.mark.parametrize("page_size", PAGE_SIZES)
def test_page_sizes(page_size: int) -> None:
    assert Header.parse(_raw(page_size=page_size)).page_size == page_size


# In the order in which they are checked: each breaks what the ones before leave whole.
WRONG: list[tuple[str, dict[str, Any]]] = [
    ("invalid flags: 0x00000001", {"flags": 1, "page_size": 1000}),
    ("invalid flags: 0x00000402", {"flags": 0x402}),
    ("invalid page size: 1000", {"page_size": 1000, "min_txid": 0}),
    ("invalid page size: 256", {"page_size": 256}),
    ("invalid page size: 131072", {"page_size": 131072}),
    ("invalid page size: 0", {"page_size": 0}),
    ("minimum transaction id required", {"min_txid": 0, "max_txid": 0}),
    ("maximum transaction id required", {"max_txid": 0}),
    (
        r"transaction ids out of order: \(9,7\)",
        {"min_txid": 9, "max_txid": 7, "wal": (-1, 0, 0, 0)},
    ),
    ("negative wal offset: -1", {"wal": (-1, -1, 0, 0)}),
    ("negative wal size: -1", {"wal": (0, -1, 1, 0)}),
    ("wal salts without wal offset", {"wal": (0, 1, 1, 0)}),
    ("wal salts without wal offset", {"wal": (0, 0, 0, 1)}),
    ("wal size without wal offset", {"wal": (0, 1, 0, 0), "min_txid": 1, "pre_apply": 5}),
    ("pre-apply checksum must be zero in a snapshot", {"min_txid": 1, "pre_apply": 5}),
    ("pre-apply checksum not allowed", {"pre_apply": 1 << 63}),
    ("invalid pre-apply checksum: 0000000000000000", {"flags": 0}),
    ("invalid pre-apply checksum: 0000000000000005", {"flags": 0, "pre_apply": 5}),
]


@pytest.mark.parametrize(("message", "changes"), WRONG)
def test_wrong_headers(message: str, changes: dict[str, Any]) -> None:
    with pytest.raises(LTXCorruptError, match=message) as caught:
        Header.parse(_raw(**changes))
    assert caught.value.op == "header"


def test_wrong_fields_are_refused_at_creation_too() -> None:
    with pytest.raises(LTXError, match="invalid page size: 1000") as caught:
        Header(**{**FIELDS, "page_size": 1000})
    assert not isinstance(caught.value, LTXCorruptError)
    with pytest.raises(OverflowError):
        Header(**{**FIELDS, "commit": 1 << 32})


def test_known_flags() -> None:
    assert Header.parse(_raw(flags=FLAG_NO_CHECKSUM | FLAG_ZSTD)).flags == 0x102
    tracked = Header.parse(_raw(flags=0, pre_apply=1 << 63 | 5))
    assert tracked.pre_apply_checksum == 1 << 63 | 5
    assert Header.parse(_raw(flags=0, min_txid=1)).flags == 0


def test_short_and_foreign_bytes() -> None:
    data = _raw()
    for size in range(HEADER_SIZE):
        with pytest.raises(LTXCorruptError, match=f"short header: {size} bytes"):
            Header.parse(data[:size])
    with pytest.raises(LTXCorruptError, match="not an LTX file"):
        Header.parse(b"LTX2" + data[4:])
