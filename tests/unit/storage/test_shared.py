"""Things that several clients share."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from pyrep.storage.shared import Shared


class Thing:
    def __init__(self) -> None:
        self.closed = 0

    def close(self) -> None:
        self.closed += 1


def test_users_of_a_key_share_and_the_last_one_closes() -> None:
    shared: Shared[Thing] = Shared()
    first = shared.acquire("a", Thing)
    assert shared.acquire("a", Thing) is first
    other = shared.acquire("b", Thing)
    assert other is not first
    shared.release("a")
    assert first.closed == 0
    shared.release("a")
    assert (first.closed, other.closed, len(shared)) == (1, 0, 1)
    assert shared.acquire("a", Thing) is not first


def test_a_key_without_users_cannot_be_released() -> None:
    with pytest.raises(KeyError):
        Shared[Thing]().release("a")


def test_a_thing_that_cannot_be_made_leaves_nothing() -> None:
    shared: Shared[Thing] = Shared()

    def fail() -> Thing:
        raise OSError("no")

    with pytest.raises(OSError, match="no"):
        shared.acquire("a", fail)
    assert len(shared) == 0


def test_many_threads_make_one_thing() -> None:
    shared: Shared[Thing] = Shared()
    barrier = threading.Barrier(8)

    def use(_: int) -> Thing:
        barrier.wait()
        return shared.acquire("a", Thing)

    with ThreadPoolExecutor(8) as pool:
        things = set(pool.map(use, range(8)))
    assert len(things) == 1
    for _ in range(8):
        shared.release("a")
    assert (len(shared), things.pop().closed) == (0, 1)
