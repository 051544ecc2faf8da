"""The tables of docs/formats.md and docs/architecture.md, parsed and compared with the code."""

from __future__ import annotations

import importlib.util
import re
import struct
from pathlib import Path

from fixtures.sources import ROOT
from pyrep import _checksum, _ltx
from pyrep.ids import TXID
from pyrep.tenant.pages import PageTable

# Values with a byte pattern of their own, so that a field in the wrong place is seen.
_HEADER_VALUES = {
    "flags": 2,
    "page size in bytes": 512,
    "commit: pages of the database after this file": 0x01020304,
    "min TXID": 0x1111111111111111,
    "max TXID": 0x2222222222222222,
    "timestamp, milliseconds since the epoch": 0x19AA0000001,
    "pre-apply checksum": 0,
    "WAL offset": 0x0A0B0C0D,
    "WAL size": 0x0E0F1011,
    "WAL salt 1": 0x12131415,
    "WAL salt 2": 0x16171819,
    "node id": 0x3333333333333333,
    "database checksum before": 0x4444444444444444,
    "database checksum after": 0x5555555555555555,
}


def _table(page: str, heading: str) -> list[list[str]]:
    """Return the rows of the first table below a heading, without the two lines of its head."""
    text = (ROOT / "docs" / page).read_text().split(f"{heading}\n", 1)[1]
    found = re.search(r"(?:^\|.*\|\n)+", text, re.MULTILINE)
    assert found is not None
    rows = found[0].strip().split("\n")[2:]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def _fields(page: str, heading: str) -> dict[str, tuple[int, int]]:
    rows = [row for row in _table(page, heading) if row[1].isdigit()]
    return {row[2]: (int(row[0]), int(row[1])) for row in rows}


def test_header_table_is_the_header_that_is_written() -> None:
    fields = _fields("formats.md", "### Header")
    v = _HEADER_VALUES
    header = _ltx.Header(
        page_size=v["page size in bytes"],
        commit=v["commit: pages of the database after this file"],
        min_txid=v["min TXID"],
        max_txid=v["max TXID"],
        timestamp_ms=v["timestamp, milliseconds since the epoch"],
        wal_offset=v["WAL offset"],
        wal_size=v["WAL size"],
        wal_salt1=v["WAL salt 1"],
        wal_salt2=v["WAL salt 2"],
        node_id=v["node id"],
        pre_checksum=v["database checksum before"],
        post_checksum=v["database checksum after"],
    )
    packed = header.pack()
    expected = {"magic": b"LTX1", "mark of pyrep": b"PYR1"}
    for name, value in _HEADER_VALUES.items():
        expected[name] = value.to_bytes(fields[name][1], "big")
    assert {name: packed[at : at + size] for name, (at, size) in fields.items()} == expected
    assert sum(size for _, size in fields.values()) == len(packed) == _ltx.HEADER_SIZE


def test_page_table_of_the_docs_is_the_one_that_is_written() -> None:
    fields = _fields("formats.md", "### Page-checksum table")
    packed = PageTable(4096, 77, TXID(0x1122334455667788), 0x99AABBCCDDEEFF00).pack()
    found = {name: packed[at : at + size] for name, (at, size) in fields.items()}
    assert found == {
        "magic `PYRT`": b"PYRT",
        "version, 1": struct.pack("<I", 1),
        "page size in bytes": struct.pack("<I", 4096),
        "page count": struct.pack("<I", 77),
        "TXID": struct.pack("<Q", 0x1122334455667788),
        "database checksum at that TXID": struct.pack("<Q", 0x99AABBCCDDEEFF00),
        "CRC-64/ISO of bytes 0 to 31": struct.pack("<Q", _checksum.crc64(packed[:32])),
        "zeros": bytes(24),
    }
    assert max(at + size for at, size in fields.values()) == len(packed)


def test_database_checksum_example_is_true() -> None:
    text = (ROOT / "docs" / "formats.md").read_text()
    pages = [bytes([fill]) * 512 for fill in (1, 2, 3)]
    swapped = [pages[0], pages[2], pages[1]]
    for order in (pages, swapped):
        checksum = 0
        for pgno, page in enumerate(order, start=1):
            checksum ^= _checksum.page_term(_checksum.crc64(page), pgno)
        assert f"`{checksum:016x}`" in text


def test_layers_in_the_docs_are_those_that_are_tested() -> None:
    spec = importlib.util.spec_from_file_location(
        "layers_table", Path(__file__).with_name("test_layers.py")
    )
    assert spec is not None
    assert spec.loader is not None
    layers = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(layers)
    rows = _table("architecture.md", "## Who may import whom")
    documented = [tuple(name.strip(" `") for name in row[1].split(",")) for row in rows]
    assert [int(row[0]) for row in rows] == list(range(len(layers.LAYERS)))
    assert tuple(documented) == layers.LAYERS
