"""Waits after failures double, have a limit, and spread."""

from __future__ import annotations

import pytest

from pyrep.schedule.backoff import Backoff


def _after(failures: int, backoff: Backoff | None = None) -> Backoff:
    backoff = backoff or Backoff()
    for _ in range(failures):
        backoff = backoff.failed()
    return backoff


def test_no_failure_means_no_wait() -> None:
    assert Backoff().delay(lambda: 0.5) == 0.0


@pytest.mark.parametrize(("failures", "whole"), [(1, 1.0), (2, 2.0), (5, 16.0), (9, 256.0)])
def test_each_failure_doubles_the_wait(failures: int, whole: float) -> None:
    assert _after(failures).delay(lambda: 1.0) == whole
    assert _after(failures).delay(lambda: 0.0) == whole / 2


@pytest.mark.parametrize("failures", [10, 100, 10_000])
def test_the_wait_has_a_limit(failures: int) -> None:
    assert _after(failures).delay(lambda: 1.0) == 300.0
    assert _after(failures, Backoff(first=0.5, limit=7.0)).delay(lambda: 1.0) == 7.0


def test_a_success_begins_anew() -> None:
    assert _after(7).succeeded() == Backoff()
    calm = Backoff()
    assert calm.succeeded() is calm
