"""Plans over listings: what is chosen, and what every refusal says."""

from __future__ import annotations

import itertools
import random
import time

import pytest

from pyrep.errors import ConfigError, LTXGapError, TXNotAvailableError
from pyrep.ids import TXID
from pyrep.ltxfile import FileInfo
from pyrep.restore.plan import Gap, chain_head, gaps, plan, time_text


def info(level: int, low: int, high: int, ms: int = 0, size: int = 200) -> FileInfo:
    return FileInfo(level, TXID(low), TXID(high), size, ms or high * 1000)


def spans(chosen) -> list[tuple[int, int, int]]:
    return [(f.level, int(f.min_txid), int(f.max_txid)) for f in chosen.files]


def singles(low: int, high: int) -> list[FileInfo]:
    return [info(0, n, n) for n in range(low, high + 1)]


def test_latest_prefers_the_snapshot_and_larger_files():
    files = [*singles(1, 20), info(1, 1, 8), info(1, 9, 16), info(9, 1, 10)]
    chosen = plan(files)
    assert spans(chosen) == [(9, 1, 10), (1, 9, 16), *[(0, n, n) for n in range(17, 21)]]
    assert (chosen.min_txid, chosen.max_txid, chosen.timestamp_ms) == (1, 20, 20_000)
    assert chosen.size == 6 * 200
    assert not chosen.after_newest


def test_a_plan_needs_no_snapshot_level():
    assert spans(plan([info(2, 1, 5), *singles(1, 7)])) == [(2, 1, 5), (0, 6, 6), (0, 7, 7)]


def test_equal_reach_takes_the_least_overlap_then_the_higher_level():
    files = [info(9, 1, 8), info(2, 5, 12), info(1, 9, 12), info(3, 9, 12)]
    assert spans(plan(files)) == [(9, 1, 8), (3, 9, 12)]


def test_listing_order_does_not_matter():
    files = [*singles(1, 12), info(1, 1, 4), info(1, 5, 8), info(2, 1, 8), info(9, 1, 6)]
    wanted = spans(plan(files))
    for seed in range(20):
        random.Random(seed).shuffle(files)
        assert spans(plan(files)) == wanted


def test_txid_uses_smaller_files_rather_than_overshoot():
    files = [*singles(1, 10), info(1, 1, 4), info(1, 5, 10), info(9, 1, 10)]
    assert spans(plan(files, txid=7)) == [(1, 1, 4), (0, 5, 5), (0, 6, 6), (0, 7, 7)]
    assert plan(files, txid=7).timestamp_ms == 7000


def test_txid_inside_a_merged_file_names_the_neighbours():
    files = [info(9, 1, 8), info(1, 9, 16), *singles(12, 20)]
    with pytest.raises(TXNotAvailableError) as caught:
        plan(files, txid=10)
    assert str(caught.value) == (
        "transaction 000000000000000a not available; the nearest below it is "
        "0000000000000008, the nearest above it is 0000000000000010"
    )


def test_txid_before_every_start_names_only_the_one_above():
    with pytest.raises(TXNotAvailableError) as caught:
        plan([info(9, 1, 8), info(9, 1, 12)], txid=3)
    assert str(caught.value) == (
        "transaction 0000000000000003 not available; the nearest above it is 0000000000000008"
    )


def test_txid_after_the_newest_names_only_the_one_below():
    with pytest.raises(TXNotAvailableError) as caught:
        plan(singles(1, 5), txid=6)
    assert str(caught.value) == (
        "transaction 0000000000000006 not available; the nearest below it is 0000000000000005"
    )


@pytest.mark.parametrize("txid", [0, -1])
def test_txid_below_one_is_refused(txid):
    with pytest.raises(ConfigError, match="txid: must be at least 1"):
        plan(singles(1, 3), txid=txid)


def test_both_targets_are_refused():
    with pytest.raises(ConfigError, match="cannot specify index & timestamp"):
        plan(singles(1, 3), txid=1, timestamp_ms=1)


@pytest.mark.parametrize("target", [{}, {"txid": 1}, {"timestamp_ms": 5}])
def test_an_empty_replica_has_nothing(target):
    with pytest.raises(TXNotAvailableError, match="no matching backup files available"):
        plan([], **target)


@pytest.mark.parametrize("target", [{}, {"txid": 13}, {"txid": 11}, {"timestamp_ms": 13_000}])
def test_a_gap_before_the_target_is_exact(target):
    files = [*singles(1, 10), *singles(12, 20)]
    with pytest.raises(LTXGapError) as caught:
        plan(files, **target)
    assert str(caught.value) == (
        "non-contiguous ltx files: have up to 000000000000000a "
        "but next file starts at 000000000000000c"
    )
    assert "-txid 000000000000000a" in caught.value.hint


@pytest.mark.parametrize("target", [{"txid": 10}, {"timestamp_ms": 10_500}])
def test_a_gap_after_the_target_does_no_harm(target):
    assert plan([*singles(1, 10), *singles(12, 20)], **target).max_txid == 10


@pytest.mark.parametrize("target", [{}, {"txid": 4}, {"timestamp_ms": 4000}, {"timestamp_ms": 1}])
def test_a_missing_start_is_a_gap_and_not_an_empty_replica(target):
    with pytest.raises(LTXGapError, match=r"no ltx file starts at txid 0{15}1") as caught:
        plan(singles(3, 6), **target)
    assert (caught.value.min_txid, caught.value.max_txid) == (0, 3)


def test_a_gap_healed_by_a_snapshot_is_none():
    files = [*singles(1, 10), *singles(12, 20), info(9, 1, 21), *singles(21, 22)]
    assert spans(plan(files)) == [(9, 1, 21), (0, 22, 22)]
    assert gaps(files) == []
    with pytest.raises(TXNotAvailableError, match=r"below it is 0{15}a, the nearest above it is 0"):
        plan(files, txid=15)
    assert plan(files, timestamp_ms=15_000).max_txid == 10


def test_a_time_takes_the_newest_state_at_or_before_it():
    files = singles(1, 5)
    assert plan(files, timestamp_ms=3999).max_txid == 3
    assert plan(files, timestamp_ms=4000).max_txid == 4
    assert not plan(files, timestamp_ms=5000).after_newest


def test_a_time_after_the_newest_gives_the_newest_and_says_so():
    chosen = plan(singles(1, 5), timestamp_ms=5001)
    assert (chosen.max_txid, chosen.timestamp_ms, chosen.after_newest) == (5, 5000, True)


def test_a_time_before_the_oldest_names_the_oldest():
    files = [info(9, 1, 4), *singles(3, 6)]
    with pytest.raises(TXNotAvailableError) as caught:
        plan(files, timestamp_ms=3500)
    assert str(caught.value) == (
        "no state at or before 1970-01-01T00:00:03.500Z: the oldest on the replica is of "
        "1970-01-01T00:00:04.000Z (txid 0000000000000004)"
    )


def test_a_time_inside_a_merged_file_gives_the_state_before_it():
    # level-0 retention: 9..11 live only in the merged file, whose time is that of 16
    files = [info(1, 1, 8), info(1, 9, 16), *singles(12, 20)]
    assert plan(files, timestamp_ms=13_000).max_txid == 8
    assert plan(files, timestamp_ms=16_000).max_txid == 16
    assert spans(plan(files, timestamp_ms=17_000)) == [(1, 1, 8), (1, 9, 16), (0, 17, 17)]


def test_one_time_for_several_states_gives_the_last():
    files = [info(0, 1, 1, 50), info(0, 2, 2, 50), info(0, 3, 3, 51)]
    assert plan(files, timestamp_ms=50).max_txid == 2


def test_upload_times_of_merged_files_do_not_hide_older_states():
    # a storage without header times: the merged file was uploaded after the level-0 file
    files = [info(1, 1, 10, 99_000), info(0, 11, 11, 50_000), info(0, 12, 12, 60_000)]
    assert spans(plan(files, timestamp_ms=55_000)) == [(1, 1, 10), (0, 11, 11)]


def test_the_time_of_a_state_is_the_earliest_of_its_files():
    files = [info(9, 1, 3, 70_000), info(0, 3, 3, 30_000), *singles(1, 2)]
    assert plan(files).timestamp_ms == 30_000
    assert plan(files, timestamp_ms=40_000).max_txid == 3


def test_chain_head_and_gaps():
    assert chain_head([]) == 0
    assert gaps([]) == []
    files = [*singles(1, 3), info(1, 2, 6), *singles(9, 10), info(1, 14, 15), info(1, 10, 11)]
    assert chain_head(files) == 6
    assert gaps(files) == [Gap(TXID(6), TXID(9)), Gap(TXID(11), TXID(14))]
    assert chain_head(singles(2, 5)) == 0
    assert gaps(singles(2, 5)) == [Gap(TXID(0), TXID(2))]
    assert str(chain_head(files)) == "0000000000000006"


def test_time_text_never_fails():
    assert time_text(0) == "1970-01-01T00:00:00.000Z"
    assert time_text((1 << 63) - 1) == "9223372036854775807 ms"


def reachable(files: list[FileInfo]) -> set[int]:
    """Return every TXID that any order of files leads to, by trying all of them."""
    found = {0}
    while True:
        more = {
            f.max_txid
            for f, n in itertools.product(files, found)
            if f.min_txid <= n + 1 <= f.max_txid and (n or f.min_txid == 1)
        } - found
        if not more:
            return found - {0}
        found |= more


def shortest(files: list[FileInfo], txid: int) -> int:
    """Return the fewest files that lead to a TXID, by breadth-first search."""
    here, steps = {0}, 0
    while txid not in here:
        steps += 1
        here |= {
            f.max_txid
            for f, n in itertools.product(files, here)
            if f.min_txid <= n + 1 <= f.max_txid <= txid
        }
    return steps


@pytest.mark.parametrize("seed", range(150))
def test_every_reachable_txid_is_planned_and_no_other(seed):
    rng = random.Random(seed)
    newest = rng.randint(1, 14)
    files = []
    for _ in range(rng.randint(1, 16)):
        low = rng.randint(1, newest)
        files.append(info(rng.randint(0, 9), low, rng.randint(low, newest)))
    known = reachable(files)
    for txid in range(1, newest + 3):
        if txid not in known:
            with pytest.raises((TXNotAvailableError, LTXGapError)):
                plan(files, txid=txid)
            continue
        chosen = plan(files, txid=txid)
        assert chosen.max_txid == txid
        assert len(chosen.files) == shortest(files, txid)
        reached = 0
        for step in chosen.files:
            assert step.min_txid <= reached + 1 <= step.max_txid
            reached = step.max_txid
        assert chosen.files[0].min_txid == 1


def test_a_hundred_thousand_files_are_planned_quickly():
    files = [*singles(1, 90_000)]
    files += [info(1, n, n + 9) for n in range(1, 90_000, 10)]
    files += [info(2, n, n + 99) for n in range(1, 90_000, 100)]
    random.Random(1).shuffle(files)
    began = time.process_time()
    assert len(plan(files).files) == 900
    assert plan(files, txid=89_999).max_txid == 89_999
    assert plan(files, timestamp_ms=45_678_000).max_txid == 45_678
    with pytest.raises(TXNotAvailableError):
        plan(files[1:], txid=90_001)
    assert time.process_time() - began < 20
