"""When a checkpoint is due, when a reader is reported, when the emergency begins."""

from __future__ import annotations

import logging
from datetime import timedelta

import pytest

from pyrep.config.model import DatabaseConfig
from pyrep.sqlite import CheckpointState
from pyrep.tenant.checkpoint import Checkpointer, wal_bytes


def checkpointer(**settings: object) -> Checkpointer:
    return Checkpointer(DatabaseConfig(**settings), "/data/a.db")


@pytest.mark.parametrize(
    ("log", "backfilled", "now", "due"),
    [
        (0, 0, 1000.0, False),
        (999, 0, 59.0, False),
        (1000, 0, 0.0, True),
        (1000, 1000, 1000.0, False),
        (2, 0, 60.0, True),
        (2, 2, 60.0, False),
        (1, 0, 60.0, False),
    ],
)
def test_due_by_size_or_by_time(log: int, backfilled: int, now: float, due: bool) -> None:
    assert checkpointer().due(log, backfilled, now) is due


def test_no_interval_means_by_size_only() -> None:
    assert not checkpointer(checkpoint_interval=timedelta()).due(999, 0, 1e9)


def test_a_pinned_wal_is_reported_after_a_minute_and_once_a_minute(caplog) -> None:
    caplog.set_level(logging.WARNING)
    subject = checkpointer()
    for now in range(0, 200, 10):
        subject.judge(CheckpointState(500, 20), 1000.0 + now, 400)
    assert [(record.seconds, record.frames) for record in caplog.records] == [
        (60, 480),
        (120, 480),
        (180, 480),
    ]
    assert caplog.records[0].db == "/data/a.db"


def test_commits_of_a_moment_ago_are_no_reader(caplog) -> None:
    """Under load each checkpoint is short by what came meanwhile; R's mark was reached."""
    caplog.set_level(logging.WARNING)
    subject = checkpointer()
    for now in range(200):
        subject.judge(CheckpointState(500 + now, 490 + now), 1000.0 + now, 490 + now)
    assert caplog.records == []
    assert subject.short_rounds == 200


def test_a_reader_that_left_is_forgotten(caplog) -> None:
    caplog.set_level(logging.WARNING)
    subject = checkpointer()
    for now, backfilled in [(0, 20), (50, 500), (55, 20), (100, 20)]:
        subject.judge(CheckpointState(500, backfilled), 1000.0 + now, 400)
    assert caplog.records == []


@pytest.mark.parametrize(
    ("limit", "log", "rounds", "expected"),
    [
        (100, 100, 5, True),
        (100, 99, 5, False),
        (100, 100, 4, False),
        (-1, 10**9, 100, False),
        (0, 121_358, 5, False),
        (0, 121_359, 5, True),
    ],
)
def test_emergency_needs_size_and_rounds(limit: int, log: int, rounds: int, expected: bool) -> None:
    subject = checkpointer(truncate_page_n=limit)
    for _ in range(rounds):
        subject.judge(CheckpointState(log, 1), 0.0, 1)
    assert subject.emergency(log) is expected


def test_no_emergency_while_a_reader_pins_the_wal() -> None:
    subject = checkpointer(truncate_page_n=10)
    for _ in range(9):
        subject.judge(CheckpointState(50, 1), 5.0, 40)
    assert not subject.emergency(50)
    subject.judge(CheckpointState(60, 50), 5.0, 50)
    assert subject.emergency(60)


def test_a_complete_checkpoint_ends_the_count() -> None:
    subject = checkpointer(truncate_page_n=10)
    for _ in range(9):
        subject.judge(CheckpointState(50, 1), 0.0, 1)
    subject.judge(CheckpointState(50, 50), 0.0, 1)
    assert not subject.emergency(50)


def test_logical_size_counts_headers() -> None:
    assert wal_bytes(0, 4096) == 32
    assert wal_bytes(3, 512) == 32 + 3 * 536
