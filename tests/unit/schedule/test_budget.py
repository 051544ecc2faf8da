"""Places for attached databases are limited and go round in order."""

from __future__ import annotations

import pytest

from fixtures.fakeclock import FakeClock
from pyrep.schedule.budget import AttachBudget, ReadBudget


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def test_who_finds_no_place_waits_and_is_named_when_one_is_free(clock: FakeClock) -> None:
    budget = AttachBudget(2, clock)
    assert [budget.enter(name) for name in ("a", "b", "c", "d")] == [True, True, False, False]
    assert budget.waiting == 2
    assert budget.leave("a") == "c"
    assert budget.enter("c")
    assert budget.leave("b") == "d"


def test_a_holder_keeps_its_place_when_it_asks_again(clock: FakeClock) -> None:
    budget = AttachBudget(1, clock)
    assert budget.enter("a")
    assert budget.enter("a")
    assert budget.waiting == 0


def test_nobody_overtakes_the_queue(clock: FakeClock) -> None:
    budget = AttachBudget(1, clock)
    budget.enter("a")
    budget.enter("first")
    budget.leave("a")
    assert not budget.enter("newcomer")
    assert budget.enter("first")
    assert budget.leave("first") == "newcomer"


def test_one_that_is_gone_does_not_block_the_queue(clock: FakeClock) -> None:
    budget = AttachBudget(1, clock)
    budget.enter("a")
    budget.enter("gone")
    budget.enter("b")
    assert budget.leave("gone") is None
    assert budget.leave("a") == "b"


def test_the_longest_wait_is_that_of_the_first(clock: FakeClock) -> None:
    budget = AttachBudget(1, clock)
    budget.enter("a")
    assert budget.longest_wait() == 0.0
    budget.enter("b")
    clock.advance(2.0)
    budget.enter("c")
    clock.advance(3.0)
    budget.enter("b")  # asking again does not begin the wait anew
    assert budget.longest_wait() == 5.0
    assert budget.next_waiting() is None
    budget.leave("a")
    assert budget.next_waiting() == "b"


def test_there_is_always_one_place(clock: FakeClock) -> None:
    assert AttachBudget(0, clock).enter("a")


# --- reading whole databases ----------------------------------------------------------------------


def test_few_are_read_at_a_time_and_the_others_wait_in_order() -> None:
    budget = ReadBudget(2)
    assert [budget.enter(name) for name in "abcd"] == [True, True, False, False]
    assert budget.following() == []
    budget.leave("a")
    assert budget.following() == ["c"]
    assert not budget.enter("d")
    assert not budget.enter("a")  # it comes last now
    budget.leave("b")
    assert budget.following() == ["c", "d"]
    assert budget.enter("d")  # both may; none waits for the other
    assert budget.enter("c")
    assert budget.enter("c")
    assert [budget.waits(name) for name in "abcd"] == [True, False, False, False]


def test_who_goes_away_waits_no_more() -> None:
    budget = ReadBudget(1)
    assert [budget.enter(name) for name in "abc"] == [True, False, False]
    budget.leave("b")
    budget.leave("a")
    assert budget.following() == ["c"]
