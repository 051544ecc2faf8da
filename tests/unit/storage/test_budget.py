"""A budget spaces requests and bytes, is fair, backs off, and ends its waits at a stop."""

from __future__ import annotations

import io
import logging
import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from fixtures.fakeclock import FakeClock
from fixtures.virtualclock import VirtualClock
from pyrep.clock import SystemClock
from pyrep.errors import ReplicaTemporaryError, ReplicaThrottledError
from pyrep.storage.budget import Budget, Counts, Limits, PacedReader, Pacer, retry_after

MIB = 1 << 20


def budget(clock: FakeClock | None = None, **limits: float) -> tuple[Budget, FakeClock]:
    clock = clock or FakeClock()
    made = Budget(clock=clock, rng=random.Random(1))
    made.tighten(Limits(**limits))
    return made, clock


def seconds(clock: FakeClock, work: Callable[[], object]) -> float:
    before = clock.monotonic()
    work()
    return clock.monotonic() - before


# --- within the limits ---


def test_without_limits_nothing_waits() -> None:
    free, clock = budget()
    assert seconds(clock, lambda: [free.request("x") for _ in range(1000)]) == 0
    assert seconds(clock, lambda: free.spend("x", 1 << 40)) == 0
    assert free.body("x", b"data") == b"data"
    assert free.counts == Counts(requests=1000)


@pytest.mark.parametrize("rate", [1, 7, 200])
def test_requests_are_spaced(rate: int) -> None:
    limited, _ = budget(requests=rate)
    asked = [limited.request("x") for _ in range(10 * rate)]
    assert asked[-1] - asked[0] == pytest.approx(10 - 1 / rate, abs=0.1001)
    for first in asked:  # in no second more than the rate, and a tenth of it after a rest
        assert sum(first <= at < first + 1 for at in asked) <= rate * 1.1 + 1


def test_a_rest_allows_a_tenth_of_a_second_at_once() -> None:
    limited, clock = budget(requests=100)
    clock.advance(1000)
    assert seconds(clock, lambda: [limited.request("x") for _ in range(11)]) == 0
    assert seconds(clock, lambda: limited.request("x")) == pytest.approx(0.01)


def test_bytes_are_spaced_in_pieces() -> None:
    limited, clock = budget(bytes=MIB)
    assert seconds(clock, lambda: limited.spend("x", 10 * MIB)) == pytest.approx(10, abs=0.2)
    body = limited.body("x", bytes(2 * MIB))
    assert not isinstance(body, bytes)
    sizes = []
    began = clock.monotonic()
    while piece := body.read(16 << 10):
        sizes.append(len(piece))
    assert sum(sizes) == 2 * MIB
    assert clock.monotonic() - began == pytest.approx(2, abs=0.1)
    source = PacedReader(io.BytesIO(bytes(2 * MIB)), limited, "x", owned=True)
    with io.BufferedReader(source) as stream:
        assert seconds(clock, lambda: stream.read(MIB)) == pytest.approx(1, abs=0.2)


def test_the_strictest_limit_counts() -> None:
    limited, clock = budget(requests=100)
    limited.tighten(Limits(requests=10))
    limited.tighten(Limits(requests=50, bytes=1000))
    assert seconds(clock, lambda: [limited.request("x") for _ in range(101)]) == pytest.approx(
        10, abs=0.2
    )
    assert Limits().strictest(Limits(1, None)) == Limits(1, None).strictest(Limits())


def test_an_urgent_request_does_not_wait_and_is_counted() -> None:
    limited, clock = budget(requests=1)
    assert seconds(clock, lambda: [limited.request("x", urgent=True) for _ in range(9)]) == 0
    limited.throttled(wanted=200)
    limited.request("x", urgent=True)
    assert limited.counts == Counts(requests=10, throttled=1)


# --- between those who share it ---


def test_small_files_pass_a_large_one() -> None:
    parts, small = 8, 25
    clock = VirtualClock(parts + 1)
    limited = Budget(clock=clock)
    limited.tighten(Limits(bytes=MIB))
    waits: list[float] = []

    def snapshot() -> None:
        limited.request("large")
        limited.spend("large", 12 * MIB)
        clock.leave()

    def puts() -> None:
        for _ in range(small):
            began = clock.monotonic()
            limited.request("small")
            limited.spend("small", 2000)
            waits.append(clock.monotonic() - began)
            clock.wait(threading.Event(), 1.0)
        clock.leave()

    with ThreadPoolExecutor(parts + 1) as pool:
        for done in [*[pool.submit(snapshot) for _ in range(parts)], pool.submit(puts)]:
            done.result()
    assert clock.monotonic() == pytest.approx(parts * 12, rel=0.01)  # nothing was left unused
    assert len(waits) == small
    assert max(waits) <= (parts + 1) * (64 << 10) / MIB  # one piece of each of the others


def test_a_stop_ends_every_wait_at_once() -> None:
    stop = threading.Event()
    limited = Budget(clock=SystemClock(), stop=stop)
    limited.tighten(Limits(requests=0.001, bytes=0.001))
    limited.request("x")
    limited.spend("x", 1)
    with ThreadPoolExecutor(8) as pool:
        waiting = [pool.submit(limited.request, "s3://b/x") for _ in range(4)]
        waiting += [pool.submit(limited.spend, "s3://b/x", MIB) for _ in range(4)]
        stop.set()
        for each in waiting:
            with pytest.raises(ReplicaTemporaryError, match="s3://b/x: stopped while it waited"):
                each.result(timeout=30)


# --- when the storage complains ---


def test_throttling_pauses_and_halves_and_is_forgiven_slowly(
    caplog: pytest.LogCaptureFixture,
) -> None:
    free, clock = budget()
    for _ in range(1000):
        asked = free.request("x")
        clock.advance(0.01)
    free.answered(asked, 503, {})
    assert 0.25 <= seconds(clock, lambda: free.request("x")) <= 0.5

    def rate() -> float:
        return 300 / seconds(clock, lambda: [free.request("x") for _ in range(300)])

    assert rate() == pytest.approx(55, rel=0.15)  # half of 100, and a little has grown back
    clock.advance(12)
    assert 80 <= rate() <= 160
    clock.advance(200)
    assert seconds(clock, lambda: [free.request("x") for _ in range(10_000)]) == 0
    assert free.counts.throttled == 1
    (line,) = caplog.records
    assert (line.levelno, line.message) == (logging.WARNING, "storage asks for fewer requests")


def test_answers_to_requests_under_way_count_once() -> None:
    free, clock = budget()
    for _ in range(400):
        free.request("x")
        clock.advance(0.01)
    asked = [free.request("x") for _ in range(8)]
    clock.advance(0.1)
    for at in asked:
        free.answered(at, 429, {})
    free.request("x")
    assert 300 / seconds(clock, lambda: [free.request("x") for _ in range(300)]) > 40
    assert free.counts.throttled == 8


def test_pauses_grow_while_the_storage_complains() -> None:
    free, clock = budget()
    pauses = []
    for _ in range(5):
        free.answered(free.request("x"), 503, {})
        pauses.append(seconds(clock, lambda: free.request("x")))
        clock.advance(0.001)
    assert all(0.5 * 2**n / 2 <= pause <= 0.5 * 2**n + 0.1 for n, pause in enumerate(pauses))
    free.answered(free.request("x"), 200, {})
    free.answered(free.request("x"), 503, {})
    assert seconds(clock, lambda: free.request("x")) <= 0.6


def test_the_storage_may_say_how_long_it_wants_to_rest() -> None:
    free, clock = budget()
    free.answered(free.request("x"), 429, {"retry-after": "7"})
    assert seconds(clock, lambda: free.request("x")) == pytest.approx(7)
    free.answered(free.request("x"), 503, {"retry-after": "3600"})
    with pytest.raises(ReplicaThrottledError, match=r"x: not asked, .* a pause of 300 seconds"):
        free.request("x")
    clock.advance(291)
    assert seconds(clock, lambda: free.request("x")) == pytest.approx(9)


def test_who_waits_meanwhile_lines_up_anew() -> None:
    clock = FakeClock()
    limited, _ = budget(clock, requests=2)
    limited.request("x")
    real_wait = clock.wait

    def wait(event: threading.Event, timeout: float | None) -> bool:
        clock.wait = real_wait  # type: ignore[method-assign]
        answer = clock.wait(event, timeout)
        limited.throttled(wanted=5)
        return answer

    clock.wait = wait  # type: ignore[method-assign]
    assert seconds(clock, lambda: limited.request("x")) == pytest.approx(5.5, abs=0.11)


def test_a_budget_says_what_was_used(caplog: pytest.LogCaptureFixture) -> None:
    free, _ = budget()
    free.endpoint = "http://127.0.0.1:1"
    free.request("x")
    with caplog.at_level(logging.DEBUG):
        free.close()
    (line,) = caplog.records
    assert (line.message, line.__dict__["requests"]) == ("storage was used", 1)
    assert line.__dict__["endpoint"] == "http://127.0.0.1:1"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", None),
        ("0", 0.0),
        ("120", 120.0),
        ("9" * 5000, 999999999.0),
        ("-5", None),
        ("1.5", None),
        ("\u0663", None),
        ("soon", None),
        ("Thu, 01 Jan 2026 00:01:00 GMT", 60.0),
        ("Wed, 31 Dec 2025 00:00:00 GMT", 0.0),
        ("Thu, 01 Jan 2026 00:01:00", None),
        ("Thu, 99 Jan 2026 00:01:00 GMT", None),
    ],
)
def test_retry_after_is_seconds_or_a_date(text: str, wanted: float | None) -> None:
    assert retry_after(text, FakeClock()) == wanted


def test_a_pacer_forgets_a_long_rest() -> None:
    pacer = Pacer()
    assert pacer.take(1, 1.0, 1000.0) == 1000.0
    assert pacer.take(1, 1.0, 1000.0) == pytest.approx(1000.9)
    pacer.hold(1010.0)
    assert pacer.take(1, 1.0, 1001.0) == 1010.0
