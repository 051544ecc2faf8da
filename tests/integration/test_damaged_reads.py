"""A byte that changes on the way is no damage in the storage: read again, then believed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from fixtures.app import App
from fixtures.bad_line import BadLine
from fixtures.replicas import History
from fixtures.rig import Rig
from pyrep import compactor
from pyrep.errors import FencedError, LTXCorruptError, ReplicaPermanentError, ReplicaTemporaryError
from pyrep.ids import TXID
from pyrep.restore.execute import restore
from pyrep.storage.reread import READS
from pyrep.tenant.lineage import listing
from pyrep.tenant.statedir import StateDir

StartApp = Callable[..., App]
NODE_ID = slice(72, 80)  # of an LTX header


@pytest.fixture
def line() -> Iterator[BadLine]:
    with closing(BadLine()) as client:
        yield client


# --- restore ---


@pytest.mark.parametrize("reads", [1, 2, 3, 4, 7])
def test_a_restore_reads_again(line: BadLine, tmp_path: Path, reads: int) -> None:
    history = History().run(9)
    history.put_singles(line)
    line.damaged, line.only = reads, "0000000000000005-"
    if reads < READS + 1:  # the first pass and its second look
        assert restore(line, tmp_path / "out").txid == 9
        assert (tmp_path / "out").read_bytes() == history.image(9)
        assert line.damaged == 0
    else:
        with pytest.raises(LTXCorruptError, match="0000000000000005-0000000000000005"):
            restore(line, tmp_path / "out")
        assert list(tmp_path.iterdir()) == []


def test_pages_that_went_astray_are_not_kept(line: BadLine, tmp_path: Path) -> None:
    history = History().run(9)
    history.put_singles(line)
    for at in range(100, 112):  # the number of the first page, its size and its first bytes
        line.damaged, line.at, line.only = 1, at, "0000000000000008-"
        restore(line, tmp_path / f"{at}")
        assert (tmp_path / f"{at}").read_bytes() == history.image(9)


def test_damage_in_the_storage_is_an_error_after_few_reads(line: BadLine, tmp_path: Path) -> None:
    history = History().run(3)
    history.put_singles(line)
    line.damaged, line.only = 10**9, "0000000000000002-"
    with pytest.raises(LTXCorruptError, match="level 0 0000000000000002-0000000000000002"):
        restore(line, tmp_path / "out")
    assert line.reads <= 3 + READS


# --- compaction ---


@pytest.mark.parametrize("reads", range(1, READS + 1))
def test_a_merge_reads_again(line: BadLine, tmp_path: Path, reads: int) -> None:
    (tmp_path / "state").mkdir()
    folder = StateDir(tmp_path / "state")
    history = History().run(4)
    history.put_singles(line)
    line.damaged, line.only = reads, "0000000000000003-"
    inputs = compactor.inputs_for(listing(line), 1)
    if reads < READS:
        assert compactor.compact(line, folder, inputs, 1, None).max_txid == 4
    else:
        with pytest.raises(LTXCorruptError):
            compactor.compact(line, folder, inputs, 1, None)
    assert list((tmp_path / "state").iterdir()) == []


@pytest.mark.parametrize("reads", range(1, READS + 1))
def test_a_level_file_in_the_way_is_read_again(line: BadLine, tmp_path: Path, reads: int) -> None:
    (tmp_path / "state").mkdir()
    folder = StateDir(tmp_path / "state")
    history = History().run(4)
    history.put_singles(line)
    inputs = compactor.inputs_for(listing(line), 1)
    line.lose, line.damaged, line.only = 1, reads, "0000000000000001-0000000000000004"
    if reads < READS:
        assert compactor.compact(line, folder, inputs, 1, None).max_txid == 4
        assert line.damaged == 0
    else:
        with pytest.raises(ReplicaPermanentError, match="damaged file in the way"):
            compactor.compact(line, folder, inputs, 1, None)


# --- the engine ---


@pytest.fixture
def rig(tmp_path: Path, line: BadLine) -> Iterator[Rig]:
    with closing(Rig(tmp_path, client=line)) as rig:
        yield rig


def test_our_own_put_is_recognised_through_a_bad_line(
    rig: Rig, line: BadLine, start_app: StartApp
) -> None:
    app = start_app(rig.db)
    app.script("create table t (v); insert into t values (1)")
    rig.ship()
    for reads in (1, READS):  # the comparison of bytes, and all looks but the last
        app.execute("insert into t values (randomblob(3000))")
        line.lose, line.damaged = 1, reads
        rig.ship()
        assert line.damaged == 0
    assert (rig.durable, rig.tenant.status().state) == (3, "attached")
    app.execute("insert into t values (randomblob(3000))")
    line.lose, line.damaged = 1, READS + 1
    with pytest.raises(FencedError, match="is there and damaged"):
        rig.ship()


@pytest.mark.parametrize("at", range(NODE_ID.start, NODE_ID.stop))
def test_a_wrong_byte_in_a_header_fences_nobody(
    rig: Rig, line: BadLine, start_app: StartApp, at: int
) -> None:
    app = start_app(rig.db)
    app.script("create table t (v); insert into t values (1)")
    rig.ship()
    rig.restart()
    line.damaged, line.at = 1, at
    with pytest.raises(ReplicaTemporaryError, match="read twice, with different results"):
        rig.tenant.survey()
    app.execute("insert into t values (2)")
    rig.ship()
    assert rig.durable == TXID(2)
    rig.expect_equal()


def test_who_wrote_the_newest_file_is_asked_once_if_it_was_us(
    rig: Rig, line: BadLine, start_app: StartApp
) -> None:
    start_app(rig.db).script("create table t (v)")
    rig.ship()
    rig.restart()
    line.reads = 0
    rig.tenant.survey()
    assert line.reads == 1


def test_a_header_that_makes_no_sense_is_read_again(
    rig: Rig, line: BadLine, start_app: StartApp
) -> None:
    start_app(rig.db).script("create table t (v)")
    rig.ship()
    rig.restart()
    line.damaged, line.at = READS - 1, 0
    rig.tenant.survey()
    assert line.damaged == 0
