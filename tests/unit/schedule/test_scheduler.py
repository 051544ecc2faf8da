"""One heap, one entry per key, fired in order of their times."""

from __future__ import annotations

import logging
import threading

import pytest

from fixtures.effort import wait_until
from fixtures.fakeclock import FakeClock
from pyrep.clock import SystemClock
from pyrep.schedule.scheduler import Scheduler


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def fired() -> list[str]:
    return []


@pytest.fixture
def scheduler(clock: FakeClock, fired: list[str]) -> Scheduler[str]:
    return Scheduler(fired.append, clock)


def test_keys_fire_in_the_order_of_their_times(
    scheduler: Scheduler[str], clock: FakeClock, fired: list[str]
) -> None:
    scheduler.schedule("late", 3.0)
    scheduler.schedule("early", 1.0)
    scheduler.schedule("now")
    assert scheduler.run_due() == 1.0
    assert fired == ["now"]
    clock.advance(5.0)
    assert scheduler.run_due() is None
    assert fired == ["now", "early", "late"]


def test_a_key_has_one_entry_the_earliest(
    scheduler: Scheduler[str], clock: FakeClock, fired: list[str]
) -> None:
    for delay in (5.0, 2.0, 8.0, 2.0):
        scheduler.schedule("key", delay)
    assert scheduler.run_due() == 2.0
    clock.advance(20.0)
    scheduler.run_due()
    assert fired == ["key"]


def test_a_cancelled_key_does_not_fire_and_may_come_back(
    scheduler: Scheduler[str], clock: FakeClock, fired: list[str]
) -> None:
    scheduler.schedule("key", 1.0)
    scheduler.cancel("key")
    scheduler.cancel("unknown")
    clock.advance(2.0)
    assert scheduler.run_due() is None
    assert fired == []
    scheduler.schedule("key", 1.0)
    clock.advance(2.0)
    scheduler.run_due()
    assert fired == ["key"]


def test_the_heap_does_not_grow_with_what_was_superseded(
    scheduler: Scheduler[str], fired: list[str]
) -> None:
    for number in range(10_000):
        scheduler.schedule("key", 20_000.0 - number)
        scheduler.schedule(f"other {number % 10}", 50_000.0 - number)
    assert len(scheduler._heap) < 200
    assert fired == []


def test_an_error_of_one_key_does_not_stop_the_others(
    clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    fired = []

    def fire(key: str) -> None:
        if key == "bad":
            raise ValueError("broken on purpose")
        fired.append(key)

    scheduler = Scheduler(fire, clock)
    scheduler.schedule("bad")
    scheduler.schedule("good", 0.1)
    clock.advance(1.0)
    with caplog.at_level(logging.ERROR):
        scheduler.run_due()
    assert fired == ["good"]
    assert "internal error" in caplog.text


def test_the_thread_fires_what_is_scheduled_while_it_waits() -> None:
    done = threading.Event()
    scheduler: Scheduler[str] = Scheduler(lambda key: done.set(), SystemClock())
    scheduler.start()
    try:
        scheduler.schedule("far", 3600.0)
        scheduler.schedule("near", 0.01)
        assert done.wait(10.0)
    finally:
        scheduler.stop()
    assert "pyrep-scheduler" not in {thread.name for thread in threading.enumerate()}


def test_many_threads_may_schedule() -> None:
    fired: set[int] = set()
    scheduler: Scheduler[int] = Scheduler(fired.add, SystemClock())
    scheduler.start()
    try:
        threads = [
            threading.Thread(
                target=lambda start=start: [scheduler.schedule(start + n) for n in range(200)]
            )
            for start in range(0, 800, 200)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        wait_until(lambda: len(fired) == 800, "every key fired")
    finally:
        scheduler.stop()
