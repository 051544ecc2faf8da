"""Replicas written by Litestream: every state restored to its recorded bytes, by every plan."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tarfile
from pathlib import Path

import pytest

from pyrep.errors import TXNotAvailableError
from pyrep.ids import TXID
from pyrep.restore import apply
from pyrep.restore.execute import RestoreOptions, plan_restore, restore
from pyrep.restore.plan import plan
from pyrep.restore.source import list_files
from pyrep.storage.file import FileReplicaClient

DATA = Path(__file__).parents[1] / "data" / "golden"
MANIFEST = json.loads((DATA / "manifest.json").read_text())
CASES = sorted(MANIFEST)


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    """Unpack all cases once; file replicas carry the times of their files in milliseconds."""
    folder = tmp_path_factory.mktemp("golden")
    with tarfile.open(DATA / "golden.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    for case, facts in MANIFEST.items():
        for name, ms in facts["mtime_ms"].items():
            os.utime(folder / case / "replica" / name, ns=(ms * 1_000_000, ms * 1_000_000))
    yield folder
    shutil.rmtree(folder)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def restored(replica: Path, output: Path, **options) -> str:
    """Restore, and return the SHA-256 of the result, which is then removed."""
    client = FileReplicaClient(replica)
    restore(client, output, RestoreOptions(**options))
    client.close()
    digest = sha256(output)
    output.unlink()
    return digest


def without_levels(replica: Path, folder: Path, levels: frozenset[int]) -> Path:
    """Return a copy of a replica that lacks some levels."""
    copy = folder / f"without-{'-'.join(map(str, sorted(levels)))}"
    hidden = {str(level) for level in levels}
    shutil.copytree(
        replica,
        copy,
        ignore=lambda where, _: hidden if Path(where).name == "ltx" else set(),
    )
    return copy


@pytest.mark.parametrize("case", CASES)
def test_the_newest_state_is_the_source(unpacked, tmp_path, case):
    facts = MANIFEST[case]
    client = FileReplicaClient(unpacked / case / "replica")
    result = restore(client, tmp_path / "db", RestoreOptions(integrity_check="full"))
    client.close()
    assert sha256(tmp_path / "db") == facts["latest_sha256"]
    assert (tmp_path / "db").read_bytes() == (unpacked / case / "latest.db").read_bytes()
    assert result.txid == TXID.parse(facts["max_txid"])
    assert result.page_size == facts["page_size"]
    assert os.listdir(tmp_path) == ["db"]


@pytest.mark.parametrize("case", CASES)
def test_each_recorded_txid_is_what_litestream_restored(unpacked, tmp_path, case):
    recorded = MANIFEST[case]["txid_sha256"]
    assert recorded
    for txid, digest in recorded.items():
        found = restored(unpacked / case / "replica", tmp_path / "db", txid=TXID.parse(txid))
        assert found == digest
        assert sha256(unpacked / case / f"txid-{txid}.db") == digest


@pytest.mark.parametrize("case", CASES)
def test_merged_levels_and_single_files_agree(unpacked, tmp_path, case):
    replica = unpacked / case / "replica"
    levels = {int(level) for level in MANIFEST[case]["levels"]}
    hidden = [set(), {0}, levels - {0}, {9}, {0, 9}, {1, 2, 3}, {1, 2, 9}, {0, 1}]
    chosen = {frozenset(h & levels) for h in hidden}
    views = [without_levels(replica, tmp_path, h) for h in chosen]
    newest = TXID.parse(MANIFEST[case]["max_txid"])
    agreed = 0
    for txid in range(1, newest + 1):
        digests = set()
        ways = set()
        for view in views:
            client = FileReplicaClient(view)
            try:
                files = plan_restore(client, txid=txid).files
            except TXNotAvailableError:
                continue
            finally:
                client.close()
            if files in ways:
                continue
            ways.add(files)
            digests.add(restored(view, tmp_path / "db", txid=txid))
        assert len(digests) == 1, f"txid {txid}: plans {ways} disagree"
        agreed += len(ways) > 1
    assert agreed


@pytest.mark.parametrize("case", ["page512", "page65536", "shrink"])
def test_streams_and_spans_agree_with_whole_files(unpacked, tmp_path, monkeypatch, case):
    monkeypatch.setattr(apply, "SMALL", 0)
    for large in (0, 1 << 40):
        monkeypatch.setattr(apply, "LARGE", large)
        found = restored(unpacked / case / "replica", tmp_path / "db", threads=3)
        assert found == MANIFEST[case]["latest_sha256"]


@pytest.mark.parametrize("case", CASES)
def test_each_time_leads_to_the_state_of_that_time(unpacked, tmp_path, case):
    client = FileReplicaClient(unpacked / case / "replica")
    files = list_files(client)
    client.close()
    singles = [info for info in files if info.level == 0]
    recorded = MANIFEST[case]["txid_sha256"]
    compared = 0
    for info in singles:
        then = plan(files, timestamp_ms=info.timestamp_ms)
        assert then.max_txid >= info.max_txid
        assert then.timestamp_ms <= info.timestamp_ms
        if str(then.max_txid) in recorded:
            options = {"timestamp_ms": info.timestamp_ms}
            found = restored(unpacked / case / "replica", tmp_path / "db", **options)
            assert found == recorded[str(then.max_txid)]
            compared += 1
    assert compared
