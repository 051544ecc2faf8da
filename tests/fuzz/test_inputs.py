"""The short form of ``make fuzz`` for what is no LTX file and no WAL."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from fixtures import effort
from fixtures.hostile import Target, feed
from fixtures.hostile_targets import TARGETS

pytestmark = pytest.mark.fuzz

_INPUTS = {"config": 600, "catalog": 150, "state": 400, "listing": 600, "replica": 100}
# What must have come about: each way was taken, and good inputs are not refused.
_SEEN = {
    "config": ("ConfigError", "expanded"),
    "catalog": ("PyrepError", "used"),
    "state": ("known", "unknown"),
    "listing": ("s3 listed", "gs listed", "abs listed", "webdav listed", "ReplicaTemporaryError"),
    "replica": ("damaged",),
}


@pytest.mark.parametrize("name", TARGETS)
def test_hostile_inputs(tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)
    with ExitStack() as stack:
        report = feed(name, TARGETS[name](tmp_path, stack), 1, effort.times(_INPUTS[name]))
    print(*report.lines(), sep="\n")
    for outcome in _SEEN[name]:
        assert report.outcomes[outcome], outcome


def _slow(rng: object) -> str:
    until = time.process_time() + 1.1
    while time.process_time() < until:
        pass
    return "done"


def _foreign(rng: object) -> str:
    raise KeyError("broken")


@pytest.mark.parametrize(("target", "error"), [(_slow, AssertionError), (_foreign, KeyError)])
def test_a_rule_that_is_broken_ends_the_run(
    target: Callable[[object], str], error: type[Exception]
) -> None:
    wrong: Target = target
    with pytest.raises(error):
        feed("wrong", wrong, 1, 1)
