"""Levels are made of what the level below has, from staged files or from the replica's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fixtures.replicas import History, put
from pyrep import compactor, retention
from pyrep.errors import (
    LTXCorruptError,
    LTXGapError,
    LTXNotFoundError,
    PyrepError,
    ReplicaPermanentError,
)
from pyrep.ids import SNAPSHOT_LEVEL, TXID
from pyrep.ltxfile import FileInfo
from pyrep.ltxio import read_header
from pyrep.restore.execute import RestoreOptions, restore
from pyrep.restore.plan import plan
from pyrep.storage.memory import MemoryReplicaClient
from pyrep.tenant.lineage import listing
from pyrep.tenant.statedir import StateDir


def file(level: int, low: int, high: int = 0, ms: int = 0) -> FileInfo:
    return FileInfo(level, TXID(low), TXID(high or low), 100, ms)


class CountingClient(MemoryReplicaClient):
    """Count the files that are read."""

    def __init__(self) -> None:
        super().__init__()
        self.opened: list[str] = []

    def open_ltx(self, info: FileInfo, offset: int = 0, size: int | None = None) -> BinaryIO:
        self.opened.append(f"{info.level}/{info.name}")
        return super().open_ltx(info, offset, size)


@pytest.fixture
def client() -> Iterator[CountingClient]:
    client = CountingClient()
    yield client
    client.close()


@pytest.fixture
def folder(tmp_path: Path) -> StateDir:
    path = tmp_path / "state"
    path.mkdir()
    return StateDir(path)


def restored(client: MemoryReplicaClient, out: Path) -> bytes:
    restore(client, out)
    data = out.read_bytes()
    out.unlink()
    return data


# --- which files ---


def test_a_level_takes_what_it_does_not_hold_yet() -> None:
    files = [file(0, n) for n in range(1, 9)] + [file(1, 1, 3), file(1, 4, 5)]
    assert compactor.inputs_for(files, 1) == [file(0, n) for n in (6, 7, 8)]
    assert compactor.inputs_for(files, 2) == [file(1, 1, 3), file(1, 4, 5)]
    assert compactor.inputs_for(files, 3) == []


def test_a_file_whose_range_another_has_is_left_out() -> None:
    files = [file(1, 1, 4), file(1, 3, 4), file(1, 5, 6)]
    assert compactor.inputs_for(files, 2) == [file(1, 1, 4), file(1, 5, 6)]


def test_one_merge_has_a_bounded_number_of_inputs() -> None:
    files = [file(0, n) for n in range(1, 500)]
    assert len(compactor.inputs_for(files, 1)) == compactor.MAX_INPUTS


def test_a_gap_is_refused_by_its_txids() -> None:
    files = [file(0, n) for n in (1, 2, 3, 6, 7)]
    assert compactor.inputs_for(files, 1) == files[:3]  # up to the gap it goes on
    files.append(file(1, 1, 3))
    with pytest.raises(LTXGapError, match=r"lacks txids 0+4 to 0+5") as caught:
        compactor.inputs_for(files, 1)
    assert (caught.value.min_txid, caught.value.max_txid) == (4, 5)


@pytest.mark.parametrize("bridge", [file(9, 1, 6), file(2, 3, 5), file(9, 1, 20)])
def test_a_hole_of_the_level_that_other_files_fill_is_passed_over(bridge: FileInfo) -> None:
    files = [file(1, 1, 3), *(file(0, n) for n in (6, 7)), bridge]
    assert compactor.inputs_for(files, 1) == [file(0, 6), file(0, 7)]


# --- the merge ---


def test_the_result_restores_to_the_same(
    client: CountingClient, folder: StateDir, tmp_path: Path
) -> None:
    history = History().run(8)
    history.put_singles(client)
    inputs = compactor.inputs_for(listing(client), 1)
    made = compactor.compact(client, folder, inputs, 1, None)
    assert (made.level, made.min_txid, made.max_txid, made.timestamp_ms) == (1, 1, 8, 8000)
    client.delete_ltx(inputs)
    assert restored(client, tmp_path / "out.db") == history.image(8)
    assert list(folder.path.iterdir()) == []


def test_staged_files_are_not_downloaded(client: CountingClient, folder: StateDir) -> None:
    history = History().run(6)
    history.put_singles(client)
    for txid in (2, 3, 5):
        name = file(0, txid).name
        (folder.path / name).write_bytes(history.file(txid, txid))
    inputs = compactor.inputs_for(listing(client), 1)
    compactor.compact(client, folder, inputs, 1, None)
    assert client.opened == [f"0/{file(0, txid).name}" for txid in (1, 4, 6)]


def test_a_staged_file_that_is_not_what_was_uploaded_is_not_used(
    client: CountingClient, folder: StateDir, tmp_path: Path
) -> None:
    history = History().run(3)
    history.put_singles(client)
    short, damaged = (folder.path / file(0, txid).name for txid in (2, 3))
    short.write_bytes(history.file(2, 2)[:-1])
    data = bytearray(history.file(3, 3))
    data[-20] ^= 1
    damaged.write_bytes(data)
    inputs = compactor.inputs_for(listing(client), 1)
    compactor.compact(client, folder, inputs, 1, None)
    client.delete_ltx(inputs)
    assert restored(client, tmp_path / "out.db") == history.image(3)
    assert not damaged.exists()


def test_a_damaged_input_is_named(client: CountingClient, folder: StateDir) -> None:
    history = History().run(3)
    history.put_singles(client)
    data = bytearray(history.file(2, 2))
    data[-20] ^= 1
    put(client, 0, 2, 2, bytes(data))
    with pytest.raises(LTXCorruptError) as caught:
        compactor.compact(client, folder, compactor.inputs_for(listing(client), 1), 1, None)
    assert caught.value.path == file(0, 2).name
    assert [info.level for info in listing(client)] == [0, 0, 0]
    assert list(folder.path.iterdir()) == []


def test_a_missing_input_is_an_error_of_its_own(client: CountingClient, folder: StateDir) -> None:
    history = History().run(3)
    history.put_singles(client)
    inputs = compactor.inputs_for(listing(client), 1)
    client.delete_ltx(inputs[1:2])
    with pytest.raises(LTXNotFoundError):
        compactor.compact(client, folder, inputs, 1, None)


def test_a_new_page_size_ends_the_merge_before_it(client: CountingClient, folder: StateDir) -> None:
    history = History().run(3)
    history.page_size = 1024
    history.write({}, 4)
    history.run(2)
    history.put_singles(client)
    inputs = compactor.inputs_for(listing(client), 1)
    first = compactor.compact(client, folder, inputs, 1, None)
    assert (first.min_txid, first.max_txid) == (1, 3)
    second = compactor.compact(client, folder, compactor.inputs_for(listing(client), 1), 1, None)
    assert (second.min_txid, second.max_txid) == (4, 6)
    with client.open_ltx(second) as source:
        assert read_header(source).page_size == 1024


def test_what_is_there_already_counts_as_written(client: CountingClient, folder: StateDir) -> None:
    history = History().run(4)
    history.put_singles(client)
    inputs = compactor.inputs_for(listing(client), 1)
    there = history.put(client, 1, 1, 4, timestamp_ms=4001)  # of a run that was killed
    assert compactor.compact(client, folder, inputs, 1, None) == there


def test_a_damaged_file_in_the_way_is_an_error(client: CountingClient, folder: StateDir) -> None:
    history = History().run(4)
    history.put_singles(client)
    data = bytearray(history.file(1, 4))
    data[-20] ^= 1
    put(client, 1, 1, 4, bytes(data))
    inputs = compactor.inputs_for([info for info in listing(client) if not info.level], 1)
    with pytest.raises(ReplicaPermanentError, match="damaged file in the way"):
        compactor.compact(client, folder, inputs, 1, None)


# --- levels and retention together ---


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    seed=st.integers(0, 1 << 30),
    steps=st.lists(st.integers(0, 9), min_size=5, max_size=60),
    levels=st.integers(1, 4),
    keep=st.integers(1, 40),
    l0=st.integers(1, 20),
)
def test_whatever_is_merged_and_deleted_every_retained_state_is_restored(
    tmp_path: Path, seed: int, steps: list[int], levels: int, keep: int, l0: int
) -> None:
    """Random commits, compactions, snapshots and passes of retention; a TXID is a second."""
    history = History(seed=seed).run(1 + len(steps), pages=6)
    client = MemoryReplicaClient()
    folder = StateDir(tmp_path)
    policy = retention.Policy(keep * 1000, l0 * 1000)
    newest = 1
    history.put(client, 0, 1, 1)
    for step in steps:
        before = listing(client)
        if 1 <= step <= levels:
            inputs = compactor.inputs_for(before, step)
            if inputs:
                compactor.compact(client, folder, inputs, step, None)
            _expect_reachable(before, listing(client))
        elif step == 8:
            history.put(client, SNAPSHOT_LEVEL, 1, newest)
        elif step == 9:
            now = newest * 1000
            decision = retention.decide(before, now, policy)
            client.delete_ltx(decision.delete)
            _expect_retained(before, listing(client), now - keep * 1000)
        else:
            newest += 1
            history.put(client, 0, newest, newest)
    states = {i.max_txid for i in listing(client) if _reaches(listing(client), i.max_txid)}
    assert max(states) == newest
    for txid in states:
        out = tmp_path / "out.db"
        out.unlink(missing_ok=True)
        restore_to(client, out, txid)
        assert out.read_bytes() == history.image(txid)
    client.close()


def restore_to(client: MemoryReplicaClient, out: Path, txid: int) -> None:
    restore(client, out, RestoreOptions(txid=txid))


def _reaches(files: list[FileInfo], txid: int) -> bool:
    try:
        return plan(files, txid=txid).max_txid == txid
    except PyrepError:
        return False


def _expect_reachable(before: list[FileInfo], after: list[FileInfo]) -> None:
    """Require that a compaction took no state away."""
    for txid in {info.max_txid for info in before}:
        assert not _reaches(before, txid) or _reaches(after, txid)


def _expect_retained(before: list[FileInfo], after: list[FileInfo], cutoff_ms: int) -> None:
    """Require that states since the cutoff stay, at least where a merged file ends."""
    for info in before:
        if info.level and info.timestamp_ms >= cutoff_ms and _reaches(before, info.max_txid):
            assert _reaches(after, info.max_txid), (info, before, after)
