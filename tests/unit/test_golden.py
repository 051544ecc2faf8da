"""Replicas that Litestream wrote: every file verifies, and all ways through them agree."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from fixtures.golden import CASES, GoldenCase, GoldenFile, case, golden_root, sha256
from oracle import ltx as oracle
from oracle.ltx import LTX
from pyrep import _checksum, ltxio

__all__ = ["golden_root"]


@pytest.fixture(params=_checksum.available(), autouse=True, scope="module")
def implementation(request: pytest.FixtureRequest) -> Iterator[None]:
    """Run everything once with each CRC implementation."""
    before = _checksum.implementation()
    _checksum.select(request.param)
    yield
    _checksum.select(before)


@pytest.fixture(params=CASES)
def golden(request: pytest.FixtureRequest, golden_root: Path) -> GoldenCase:
    """Give each case."""
    return case(golden_root, request.param)


def _apply(target: Path, files: list[Path]) -> bytes:
    fd = os.open(target, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        for path in files:
            with path.open("rb") as source:
                ltxio.apply(source, fd, name=path.name)
    finally:
        os.close(fd)
    return target.read_bytes()


def _merge(target: Path, files: list[Path]) -> Path:
    fds = [os.open(path, os.O_RDONLY) for path in files]
    fd = os.open(target, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        ltxio.merge(fds, fd, names=[path.name for path in files])
    finally:
        for opened in [*fds, fd]:
            os.close(opened)
    return target


def _within(golden: GoldenCase, file: GoldenFile) -> list[GoldenFile]:
    """Return the level-0 files that a file of a higher level was merged from."""
    return [
        small
        for small in golden.files(0)
        if file.min_txid <= small.min_txid and small.max_txid <= file.max_txid
    ]


def _crcs(path: Path) -> dict[int, int]:
    with path.open("rb") as source:
        _, pgnos, crcs = ltxio.page_crcs(source, name=path.name)
    return dict(zip(pgnos, crcs, strict=True))


def test_archive_is_whole(golden: GoldenCase) -> None:
    assert sha256((golden.folder / "latest.db").read_bytes()) == golden.latest_sha256
    files = golden.files()
    assert max(file.max_txid for file in files) == golden.max_txid


def test_every_file_verifies(golden: GoldenCase) -> None:
    for file in golden.files():
        with file.path.open("rb") as source:
            header = ltxio.verify(source, name=file.path.name)
        assert (header.min_txid, header.max_txid) == (file.min_txid, file.max_txid)
        assert header.page_size == golden.page_size
        assert not header.is_pyrep
        assert header.timestamp_ms * 1_000_000 == file.path.stat().st_mtime_ns


def test_level_0_leads_to_the_database_at_each_txid(golden: GoldenCase, tmp_path: Path) -> None:
    files = golden.files(0)
    assert [file.min_txid for file in files] == list(range(1, golden.max_txid + 1))
    for txid, digest in [*golden.txid_sha256.items(), (golden.max_txid, golden.latest_sha256)]:
        paths = [file.path for file in files if file.max_txid <= txid]
        assert sha256(_apply(tmp_path / "db", paths)) == digest


def test_level_0_merged_leads_there_too(golden: GoldenCase, tmp_path: Path) -> None:
    paths = [file.path for file in golden.files(0)]
    merged = _merge(tmp_path / "merged.ltx", paths)
    assert sha256(_apply(tmp_path / "db", [merged])) == golden.latest_sha256


def test_own_merge_has_the_pages_of_litestreams(golden: GoldenCase, tmp_path: Path) -> None:
    compared = 0
    for file in golden.files():
        if not 0 < file.level < 9:
            continue
        small = _within(golden, file)
        merged = _merge(tmp_path / "merged.ltx", [one.path for one in small])
        assert _crcs(merged) == _crcs(file.path), file.path
        with merged.open("rb") as ours, file.path.open("rb") as theirs:
            mine, other = ltxio.read_header(ours), ltxio.read_header(theirs)
        assert mine.pack() == other.pack()
        compared += 1
    assert compared > 0


def test_snapshots_are_the_database_at_their_txid(golden: GoldenCase, tmp_path: Path) -> None:
    small = golden.files(0)
    snapshots = golden.files(9)
    assert snapshots
    for file in snapshots:
        paths = [one.path for one in small if one.max_txid <= file.max_txid]
        assert _apply(tmp_path / "a", [file.path]) == _apply(tmp_path / "b", paths)


def test_the_oracle_reads_the_same(golden: GoldenCase) -> None:
    for file in golden.files()[:4]:
        slow: LTX = oracle.decode(file.path.read_bytes())
        with file.path.open("rb") as source:
            assert dict(ltxio.pages(source)) == slow.pages
