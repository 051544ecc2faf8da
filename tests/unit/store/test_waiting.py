"""Those who wait are told once, and only when what they wait for is durable."""

from __future__ import annotations

import pytest

from pyrep.errors import PyrepError
from pyrep.ids import TXID
from pyrep.store.waiting import Waiter, Waiting

Told = list[tuple[int, PyrepError | None]]


@pytest.fixture
def told() -> Told:
    return []


@pytest.fixture
def waiter(told: Told) -> Waiter:
    return Waiter(lambda txid, error: told.append((txid, error)))


def test_one_is_told_when_the_sync_that_covers_it_is_durable(waiter: Waiter, told: Told) -> None:
    waiting = Waiting()
    waiting.add("a", waiter)
    waiting.settle("a", TXID(9))
    assert told == [], "no sync has begun since"
    waiting.cover("a", waiting.take("a"), TXID(10))
    waiting.settle("a", TXID(9))
    assert told == []
    assert waiting.is_covered("a")
    waiting.settle("b", TXID(10))
    assert told == []
    waiting.settle("a", TXID(11))
    waiting.settle("a", TXID(12))
    assert told == [(11, None)]
    assert not waiting.is_covered("a")


def test_one_that_comes_during_a_sync_waits_for_the_next(waiter: Waiter, told: Told) -> None:
    waiting = Waiting()
    began = waiting.take("a")
    waiting.add("a", waiter)
    waiting.cover("a", began, TXID(1))
    waiting.settle("a", TXID(1))
    assert told == []
    assert waiting.wants_sync("a")


def test_a_failed_sync_leaves_everybody_waiting(waiter: Waiter, told: Told) -> None:
    waiting, later = Waiting(), Waiter(lambda *_: None)
    waiting.add("a", waiter)
    taken = waiting.take("a")
    waiting.add("a", later)
    waiting.put_back("a", taken)
    assert waiting.take("a") == [waiter, later]
    assert told == []


def test_failures_reach_everybody_once(waiter: Waiter, told: Told) -> None:
    waiting, error = Waiting(), PyrepError("gone")
    waiting.add("a", waiter)
    waiting.cover("a", waiting.take("a"), TXID(5))
    waiting.fail_all(error)
    waiting.fail("a", error)
    waiting.settle("a", TXID(5))
    assert told == [(0, error)]


def test_those_who_gave_up_are_forgotten_and_never_told(told: Told) -> None:
    waiting = Waiting()
    for _ in range(1000):
        waiter = Waiter(lambda txid, error: told.append((txid, error)))
        waiting.add("a", waiter)
        waiter.over = True
    assert len(waiting._fresh["a"]) < 100
    assert waiting.take("a") == []
    waiter.end(TXID(1), None)
    assert told == []
