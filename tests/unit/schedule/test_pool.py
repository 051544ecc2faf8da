"""A bounded number of threads, each key once at a time, no error lost."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from fixtures.effort import wait_until
from pyrep.schedule.pool import Pool

Start = Callable[..., Pool[str]]


@pytest.fixture
def start() -> Iterator[Start]:
    with ExitStack() as stack:

        def make(
            work: Callable[[str], None],
            *,
            size: int = 2,
            failed: Callable[[str, Exception], None] = lambda key, error: None,
            **options: Any,
        ) -> Pool[str]:
            pool = Pool("test", size, work, failed, **options)
            stack.callback(pool.close, 10.0)
            pool.start()
            return pool

        yield make


def test_every_key_is_worked_on(start: Start) -> None:
    done: set[str] = set()
    pool = start(done.add)
    for number in range(100):
        assert pool.submit(str(number))
    wait_until(lambda: len(done) == 100, "all keys done")


def test_the_threads_are_named_and_as_many_as_said(start: Start) -> None:
    start(lambda key: None, size=5)
    names = {t.name for t in threading.enumerate() if t.name.startswith("pyrep-test-")}
    assert names == {f"pyrep-test-{number}" for number in range(5)}


def test_a_key_never_runs_twice_at_once_and_runs_again_when_asked(start: Start) -> None:
    began, go = threading.Semaphore(0), threading.Semaphore(0)
    running: Counter[str] = Counter()
    most: list[int] = []

    def work(key: str) -> None:
        running[key] += 1
        most.append(running[key])
        began.release()
        go.acquire(timeout=10.0)
        running[key] -= 1

    pool = start(work, size=4)
    pool.submit("key")
    assert began.acquire(timeout=10.0)
    for _ in range(5):
        pool.submit("key")  # while it runs: once more, not five times
    assert not began.acquire(blocking=False)
    go.release()
    assert began.acquire(timeout=10.0)
    go.release()
    wait_until(lambda: running["key"] == 0, "the second run ended")
    assert most == [1, 1]


def test_keys_that_wait_are_there_once_and_in_order(start: Start) -> None:
    began, go = threading.Event(), threading.Event()
    order: list[str] = []

    def work(key: str) -> None:
        order.append(key)
        began.set()
        go.wait(10.0)

    pool = start(work, size=1)
    pool.submit("first")
    assert began.wait(10.0)
    for key in ("b", "a", "b", "c", "a"):
        pool.submit(key)
    assert pool.backlog == 3
    go.set()
    wait_until(lambda: len(order) == 4, "all ran")
    assert order == ["first", "b", "a", "c"]


def test_patient_keys_have_every_second_turn_while_others_wait(start: Start) -> None:
    go, order = threading.Event(), list[str]()

    def work(key: str) -> None:
        assert go.wait(10.0)
        order.append(key)

    pool = start(work, size=1)
    pool.submit("first")
    wait_until(lambda: pool.backlog == 0, "the thread is busy")
    for key in ("p1", "p2", "p3"):
        pool.submit(key, patient=True)
    for key in ("a", "b"):
        pool.submit(key)
    assert pool.backlog == 5
    go.set()
    wait_until(lambda: len(order) == 6, "all keys done")
    assert order == ["first", "p1", "a", "p2", "b", "p3"]


def test_an_exception_reaches_the_caller_and_the_thread_lives_on(start: Start) -> None:
    failures: list[tuple[str, str]] = []
    done = threading.Event()

    def work(key: str) -> None:
        if key == "bad":
            raise OSError("broken on purpose")
        done.set()

    pool = start(work, size=1, failed=lambda key, error: failures.append((key, str(error))))
    pool.submit("bad")
    pool.submit("good")
    assert done.wait(10.0)
    assert failures == [("bad", "broken on purpose")]


def test_an_error_in_the_handler_of_errors_is_logged(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    done = threading.Event()

    def work(key: str) -> None:
        if key == "bad":
            raise OSError("first")
        done.set()

    def failed(key: str, error: Exception) -> None:
        raise ValueError("second")

    with caplog.at_level(logging.ERROR):
        pool = start(work, size=1, failed=failed)
        pool.submit("bad")
        pool.submit("good")
        assert done.wait(10.0)
    assert "second" in caplog.text


def test_close_drops_what_waits_and_names_what_still_runs() -> None:
    began, go = threading.Event(), threading.Event()
    seen: list[str] = []

    def work(key: str) -> None:
        seen.append(key)
        began.set()
        go.wait(10.0)

    pool = Pool("test", 1, work, lambda key, error: None)
    pool.start()
    pool.submit("runs")
    assert began.wait(10.0)
    pool.submit("waits")
    assert pool.close(0.0) == ["runs"]
    assert not pool.submit("late")
    go.set()
    assert pool.close(10.0) == []
    assert seen == ["runs"]


def test_finish_runs_everything_first() -> None:
    seen: set[str] = set()
    pool = Pool("test", 3, seen.add, lambda key, error: None)
    pool.start()
    for number in range(50):
        pool.submit(str(number))
    pool.finish()
    assert len(seen) == 50


def _threads() -> int:
    return sum(t.name.startswith("pyrep-test-") for t in threading.enumerate())


def test_it_has_more_threads_while_keys_wait(start: Start) -> None:
    go, began = threading.Event(), threading.Semaphore(0)
    done: set[str] = set()

    def work(key: str) -> None:
        began.release()
        assert go.wait(30.0)
        done.add(key)

    pool = start(work, size=2, most=5, spare_seconds=0.05)
    for number in range(9):
        pool.submit(str(number))
    for _ in range(5):
        assert began.acquire(timeout=30.0)
    assert _threads() == 5
    assert not began.acquire(blocking=False)
    go.set()
    wait_until(lambda: len(done) == 9, "all keys done")
    wait_until(lambda: _threads() == 2, "the threads that are not needed ended")
    pool.submit("later")
    wait_until(lambda: "later" in done, "it goes on")


def test_it_needs_no_more_threads_for_one_key_after_the_other(start: Start) -> None:
    done: set[str] = set()
    pool = start(done.add, size=1, most=5, spare_seconds=30.0)
    for number in range(20):
        pool.submit(str(number))
        wait_until(lambda count=number + 1: len(done) == count, "done")  # type: ignore[misc]
        wait_until(lambda: pool._idle == 1, "its thread waits again")
    assert _threads() == 1


def test_threads_that_cannot_be_had_are_done_without(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: set[str] = set()
    pool = start(done.add, size=1, most=5)

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    for number in range(200):
        assert pool.submit(str(number))
    wait_until(lambda: len(done) == 200, "all keys done")
