"""The sweep asks for each watched database once per interval."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from fixtures.fakeclock import FakeClock
from pyrep.clock import SystemClock
from pyrep.watch.base import Dirty, DirtyKind, Watcher
from pyrep.watch.polling import PollingWatcher

A, B = Path("/data/a.db"), Path("/data/b.db")


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def test_only_what_changed_is_reported(clock: FakeClock) -> None:
    watcher: Watcher = PollingWatcher(1.0, lambda path: path == B, clock)
    watcher.add(A)
    watcher.add(B)
    watcher.add(B)
    assert watcher.poll(None) == [Dirty(B, DirtyKind.CHANGED)]


def test_sweeps_are_an_interval_apart(clock: FakeClock) -> None:
    asked: list[float] = []

    def changed(path: Path) -> bool:
        asked.append(clock.monotonic())
        return False

    watcher = PollingWatcher(5.0, changed, clock)
    watcher.add(A)
    for _ in range(3):
        watcher.poll(None)
    assert asked == [1000.0, 1005.0, 1010.0]
    assert watcher.poll(2.0) == []
    assert len(asked) == 3


def test_what_was_removed_is_not_looked_at(clock: FakeClock) -> None:
    asked: list[Path] = []
    watcher = PollingWatcher(1.0, lambda path: bool(asked.append(path)), clock)
    watcher.add(A)
    watcher.add(B)
    watcher.poll(None)
    watcher.remove(A)
    watcher.remove(A)
    watcher.poll(None)
    assert asked == [A, B, B]


def test_what_cannot_be_looked_at_is_reported(clock: FakeClock) -> None:
    def changed(path: Path) -> bool:
        raise PermissionError(13, "no", str(path))

    watcher = PollingWatcher(1.0, changed, clock)
    watcher.add(A)
    assert watcher.poll(None) == [Dirty(A)]


def test_wake_ends_a_poll_without_a_sweep() -> None:
    watcher = PollingWatcher(3600.0, lambda path: True, SystemClock())
    watcher.poll(0.0)
    watcher.add(A)
    found: list[Dirty] = []
    thread = threading.Thread(target=lambda: found.extend(watcher.poll(None)))
    thread.start()
    watcher.wake()
    thread.join(10.0)
    assert not thread.is_alive()
    assert found == []


def test_nothing_is_left_after_close(clock: FakeClock) -> None:
    watcher = PollingWatcher(1.0, lambda path: True, clock)
    watcher.add(A)
    watcher.close()
    assert watcher.poll(None) == []
