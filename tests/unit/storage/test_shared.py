"""Things that several clients share."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from pyrep.errors import ReplicaPermanentError
from pyrep.storage.shared import Current, Shared


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


def test_a_connection_is_made_once_for_all_who_wait() -> None:
    made: list[Thing] = []
    gate = threading.Event()

    def make() -> Thing:
        gate.wait(10)
        made.append(Thing())
        return made[-1]

    current = Current(make)
    with ThreadPoolExecutor(8) as pool:
        waiting = [pool.submit(current.get) for _ in range(8)]
        gate.set()
        assert {id(one.result()) for one in waiting} == {id(made[0])}
    current.drop(made[0])
    assert current.get() is made[1]
    current.drop(made[0])  # late: it is not the one in use
    assert current.get() is made[1]
    current.close()
    assert [one.closed for one in made] == [2, 1]
    with pytest.raises(ReplicaPermanentError, match="closed by its last user"):
        current.get()


def test_a_failed_attempt_is_told_to_all_who_waited_and_made_again() -> None:
    gate = threading.Event()
    tries: list[int] = []

    def make() -> Thing:
        gate.wait(10)
        tries.append(1)
        if len(tries) == 1:
            raise OSError("down")
        return Thing()

    current = Current(make)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(current.get)
        gate.set()
        with pytest.raises(OSError, match="down"):
            first.result()
    assert current.get() is current.get()
    assert len(tries) == 2


def test_what_is_made_after_the_end_is_closed() -> None:
    thing = Thing()
    began, gate = threading.Event(), threading.Event()

    def make() -> Thing:
        began.set()
        gate.wait(10)
        return thing

    current = Current(make)
    with ThreadPoolExecutor(1) as pool:
        late = pool.submit(current.get)
        began.wait(10)
        current.close()
        gate.set()
        assert late.result() is thing
    assert thing.closed == 1
