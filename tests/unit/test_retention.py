"""What may be deleted, and what never is."""

from __future__ import annotations

import time
from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyrep.clock import SystemClock
from pyrep.errors import PyrepError
from pyrep.ids import SNAPSHOT_LEVEL, TXID
from pyrep.ltxfile import FileInfo
from pyrep.restore.plan import plan
from pyrep.retention import Policy, clock_is_plausible, confirmed, decide

HOUR = 3_600_000


def file(level: int, low: int, high: int, ms: int) -> FileInfo:
    return FileInfo(level, TXID(low), TXID(high), 100, ms)


def test_level0_goes_once_level1_holds_it_but_never_the_newest() -> None:
    files = [file(0, n, n, n * 1000) for n in range(1, 8)] + [
        file(1, 1, 4, 4000),
        file(1, 5, 7, 7000),
    ]
    decision = decide(files, 10 * HOUR, Policy(24 * HOUR, 1000))
    assert [info.min_txid for info in decision.delete] == [1, 2, 3, 4, 5, 6]


def test_level0_is_kept_where_level1_has_a_hole_or_retention_is_off() -> None:
    files = [file(0, n, n, n * 1000) for n in range(1, 6)] + [file(1, 1, 2, 2000)]
    assert [i.min_txid for i in decide(files, HOUR, Policy(HOUR, 1000)).delete] == [1, 2]
    assert decide(files, HOUR, Policy(HOUR, 0)).delete == ()


def test_young_level0_is_kept() -> None:
    files = [file(0, 1, 1, 1000), file(0, 2, 2, 5000), file(0, 3, 3, 6000), file(1, 1, 3, 6000)]
    assert [i.min_txid for i in decide(files, 7000, Policy(HOUR, 3000)).delete] == [1]


def test_snapshots_before_the_floor_go_and_the_floor_stays() -> None:
    snapshots = [file(9, 1, n, n * HOUR) for n in (10, 34, 58)]
    level3 = [file(3, n + 1, n + 6, (n + 6) * HOUR) for n in range(0, 60, 6)]
    decision = decide(snapshots + level3, 60 * HOUR, Policy(24 * HOUR, 0))
    assert decision.floor == snapshots[1]
    gone = set(decision.delete)
    assert snapshots[0] in gone
    assert not gone & {snapshots[1], snapshots[2]}
    assert {i.max_txid for i in gone if i.level == 3} == {6, 12, 18, 24, 30}


def test_the_last_snapshot_stays_however_old() -> None:
    only = file(9, 1, 5, 1000)
    assert decide([only], 10_000 * HOUR, Policy(HOUR, HOUR)).delete == ()


@pytest.mark.parametrize("now", [0, 5 * HOUR - 61_000])
def test_a_clock_behind_the_files_deletes_nothing(now: int) -> None:
    files = [file(9, 1, 5, HOUR), file(9, 1, 9, 5 * HOUR)]
    decision = decide(files, now, Policy(1, 1))
    assert decision.delete == ()
    assert "clock" in decision.refused


def test_a_wall_clock_that_jumps_is_not_plausible() -> None:
    assert clock_is_plausible(1_000_000 + 60_000, 1_000_000, 61_000)
    assert not clock_is_plausible(1_000_000 + 10 * HOUR, 1_000_000, 60_000)
    assert not clock_is_plausible(1_000_000 - 10 * HOUR, 1_000_000, 60_000)


def test_the_newest_file_of_each_level_stays() -> None:
    files = [file(0, 9, 9, 9000), file(1, 5, 7, 7000), file(1, 8, 9, 9000), file(2, 1, 7, 7000)]
    files += [file(9, 1, 9, 9000)]
    decision = decide(files, 100 * HOUR, Policy(HOUR, HOUR))
    assert decision.delete == (file(1, 5, 7, 7000),)
    assert decision.floor == file(9, 1, 9, 9000)


def test_level0_below_the_floor_goes_without_a_level_1() -> None:
    files = [file(0, n, n, n * 1000) for n in (1, 2, 3)] + [file(9, 1, 2, 2000)]
    decision = decide(files, 10 * HOUR, Policy(HOUR, HOUR))
    assert (decision.merged, decision.superseded) == ((), (files[0], files[1]))
    assert decide(files, 10 * HOUR, Policy(HOUR, 0)).delete == ()
    assert decide(files, 10 * HOUR, Policy(HOUR, 20 * HOUR)).delete == ()


def test_it_says_when_more_may_go() -> None:
    level0 = [file(0, n, n, n * 1000) for n in (1, 2, 3)]
    files = [*level0, file(1, 1, 3, 3000)]
    policy = Policy(10_000, 5000)
    assert decide(level0, 4000, policy).next_ms is None
    assert decide(files, 4000, policy).next_ms == 6000
    assert decide(files, 6000, policy).next_ms == 7000
    assert decide(files, 9000, policy).next_ms is None  # the newest stays for ever
    files.append(file(9, 1, 3, 3000))
    assert decide(files, 9000, policy).next_ms == 13_000
    assert decide(files, 13_000, policy).next_ms is None


def test_a_listing_confirms_what_is_to_stay() -> None:
    files = [file(9, 1, 5, 1000), file(9, 1, 9, 2000), file(3, 1, 6, 1500), file(3, 7, 9, 2000)]
    decision = decide(files, HOUR, Policy(1000, 0))
    assert [info.max_txid for info in decision.delete] == [6, 5]
    later = file(0, 10, 10, 3000)
    assert confirmed(decision, files, [*files[1:], later])
    assert not confirmed(decision, files, [files[0], files[2], files[3]])
    short = FileInfo(9, TXID(1), TXID(9), 99, 2000)
    assert not confirmed(decision, files, [files[0], short, files[2], files[3]])


def replica(steps: list[tuple[int, int]]) -> list[FileInfo]:
    """Build a whole replica: one level-0 file a step, levels 1 and 2 and snapshots over them."""
    files, ms = [], 0
    for txid, (gap, _) in enumerate(steps, 1):
        ms += gap
        files.append(file(0, txid, txid, ms))
    times = {info.max_txid: info.timestamp_ms for info in files}
    for level, width in ((1, 3), (2, 7)):
        for low in range(1, len(steps) - width + 2, width):
            files.append(file(level, low, low + width - 1, times[TXID(low + width - 1)]))
    for txid, (_, snapshot) in enumerate(steps, 1):
        if snapshot == 0:
            files.append(file(SNAPSHOT_LEVEL, 1, txid, times[TXID(txid)]))
    return files


def reached(files: list[FileInfo], ms: int) -> int:
    """Return the newest TXID that can be restored for a time, 0 if none."""
    try:
        return plan(files, timestamp_ms=ms).max_txid
    except PyrepError:
        return 0


@given(
    st.lists(st.tuples(st.integers(1, 5000), st.integers(0, 4)), min_size=1, max_size=60),
    st.integers(0, 20_000),
    st.integers(1, 60_000),
    st.integers(0, 30_000),
)
def test_every_retained_point_stays_restorable(
    steps: list[tuple[int, int]], later: int, keep: int, l0: int
) -> None:
    files = replica(steps)
    newest = max(info.timestamp_ms for info in files)
    now = newest + later
    decision = decide(files, now, Policy(keep, l0))
    left = [info for info in files if info not in set(decision.delete)]
    assert plan(left).max_txid == len(steps)
    assert max(i.max_txid for i in left if i.level == 0) == len(steps)
    for wanted in chain(range(max(now - keep, 0), now, max(1, keep // 5)), [now]):
        before, after = reached(files, wanted), reached(left, wanted)
        # Level-0 files that level 1 holds may go: the point is then its nearest merged one.
        merged = [i.max_txid for i in files if i.level and i.timestamp_ms <= wanted]
        assert max(merged, default=0) <= after <= before


def test_a_machine_that_slept_has_not_had_its_clock_set(monkeypatch: pytest.MonkeyPatch) -> None:
    times = {time.CLOCK_BOOTTIME: 100.0, time.CLOCK_MONOTONIC: 100.0}
    monkeypatch.setattr(time, "clock_gettime", times.__getitem__)
    began = SystemClock().monotonic()
    times[time.CLOCK_BOOTTIME] += 3600.0  # the other clock stands still meanwhile
    elapsed_ms = int((SystemClock().monotonic() - began) * 1000)
    assert clock_is_plausible(wall_ms=9 * HOUR, began_wall_ms=8 * HOUR, elapsed_ms=elapsed_ms)
