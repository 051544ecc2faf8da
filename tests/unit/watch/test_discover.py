"""Which files are databases, and when they are ready."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from fixtures.fakeclock import FakeClock
from pyrep.errors import DatabaseError
from pyrep.sqlite import Probe, probe
from pyrep.watch.discover import Discovery, Finding, Kind


@dataclass(frozen=True)
class File:
    """Be a candidate."""

    db_path: Path


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def discovery(clock: FakeClock) -> Discovery[File]:
    return Discovery(clock)


def _make(path: Path, clock: FakeClock, *, age: float = 60.0, rows: int = 100) -> File:
    """Build a database whose file was last written ``age`` seconds ago by ``clock``."""
    with closing(sqlite3.connect(path)) as db:
        db.execute("create table t (x)")
        db.executemany("insert into t values (?)", [("x" * 100,)] * rows)
        db.commit()
    _touch(path, clock, age)
    return File(path)


def _touch(path: Path, clock: FakeClock, age: float) -> None:
    then = clock.now().timestamp() - age
    os.utime(path, (then, then))


def _kinds(findings: list[Finding[File]]) -> list[Kind]:
    return [finding.kind for finding in findings]


def test_a_database_at_rest_is_ready_at_once(
    discovery: Discovery[File], clock: FakeClock, tmp_path: Path
) -> None:
    file = _make(tmp_path / "a.db", clock)
    finding = discovery.offer(file)
    status = file.db_path.stat()
    assert finding == Finding(file, Kind.READY, inode=(status.st_dev, status.st_ino))
    assert discovery.pending == 0


def test_one_that_was_just_written_waits_for_a_second(
    discovery: Discovery[File], clock: FakeClock, tmp_path: Path
) -> None:
    file = _make(tmp_path / "a.db", clock, age=0.2)
    assert discovery.offer(file).kind is Kind.WAITING
    assert discovery.waiting == 1
    clock.advance(0.5)
    assert discovery.look_again() == []
    clock.advance(0.5)
    assert _kinds(discovery.look_again()) == [Kind.READY]
    assert discovery.pending == 0


def test_a_time_in_the_future_does_not_keep_it_waiting(
    discovery: Discovery[File], clock: FakeClock, tmp_path: Path
) -> None:
    file = _make(tmp_path / "a.db", clock, age=-3600.0)
    assert discovery.offer(file).kind is Kind.WAITING
    clock.advance(1.0)
    assert _kinds(discovery.look_again()) == [Kind.READY]


def test_a_wal_beside_it_makes_it_ready(
    discovery: Discovery[File], clock: FakeClock, tmp_path: Path
) -> None:
    file = _make(tmp_path / "a.db", clock, age=0.0)
    (tmp_path / "a.db-wal").touch()
    assert discovery.offer(file).kind is Kind.READY


def test_a_copy_under_way_waits_until_its_size_covers_its_pages(
    discovery: Discovery[File], clock: FakeClock, tmp_path: Path
) -> None:
    file = _make(tmp_path / "a.db", clock)
    whole = file.db_path.read_bytes()
    file.db_path.write_bytes(whole[:4096])
    (tmp_path / "a.db-wal").touch()
    _touch(file.db_path, clock, 60.0)
    finding = discovery.offer(file)
    assert (finding.kind, finding.reason) == (Kind.WAITING, "is shorter than its header says")
    file.db_path.write_bytes(whole)
    assert _kinds(discovery.look_again()) == [Kind.READY]


def test_after_half_a_minute_of_unrest_it_is_taken_as_it_is(
    discovery: Discovery[File], clock: FakeClock, tmp_path: Path
) -> None:
    file = _make(tmp_path / "a.db", clock, age=0.0)
    discovery.offer(file)
    for _ in range(59):
        clock.advance(0.5)
        _touch(file.db_path, clock, 0.0)
        assert discovery.look_again() == []
    clock.advance(0.5)
    _touch(file.db_path, clock, 0.0)
    assert _kinds(discovery.look_again()) == [Kind.READY]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"hello", "is not a SQLite database, or is encrypted"),
        (os.urandom(8192), "is not a SQLite database, or is encrypted"),
        (b"SQLite format 3\0" + bytes(84), "is not a SQLite database, or is encrypted"),
    ],
    ids=["empty", "short", "random", "no page size"],
)
def test_what_is_no_database_is_rejected_and_recovers(
    discovery: Discovery[File], clock: FakeClock, tmp_path: Path, content: bytes, reason: str
) -> None:
    path = tmp_path / "a.db"
    path.write_bytes(content)
    os.utime(path, (0, 0))  # it was not created a moment ago
    finding = discovery.offer(File(path))
    assert (finding.kind, finding.reason) == (Kind.REJECTED, reason)
    assert discovery.look_again() == []
    path.unlink()
    _make(path, clock)
    assert _kinds(discovery.look_again()) == [Kind.READY]


def test_an_empty_file_is_given_a_moment(
    discovery: Discovery[File], clock: FakeClock, tmp_path: Path
) -> None:
    path = tmp_path / "a.db"
    path.touch()
    _touch(path, clock, 0.0)
    assert discovery.offer(File(path)).kind is Kind.WAITING
    assert discovery.restless
    clock.advance(1.1)
    (found,) = discovery.look_again()
    assert (found.kind, found.reason) == (Kind.REJECTED, "is empty")
    assert not discovery.restless
    _make(path, clock)
    found_now = discovery.look(path)
    assert found_now is not None
    assert found_now.kind is Kind.READY
    assert discovery.look(path) is None
    assert discovery.candidates() == []


def test_a_missing_database_is_waited_for(
    discovery: Discovery[File], clock: FakeClock, tmp_path: Path
) -> None:
    path = tmp_path / "later.db"
    finding = discovery.offer(File(path))
    assert (finding.kind, finding.reason) == (Kind.MISSING, "database file does not exist")
    clock.advance(100.0)
    assert discovery.look_again() == []
    _make(path, clock)
    assert _kinds(discovery.look_again()) == [Kind.READY]


def test_what_is_rejected_is_not_read_again_before_it_changes(
    clock: FakeClock, tmp_path: Path
) -> None:
    looks: list[Path] = []

    def look(path: Path) -> Probe:
        looks.append(path)
        return probe(path)

    discovery: Discovery[File] = Discovery(clock, look)
    path = tmp_path / "a.db"
    path.write_bytes(b"text")
    discovery.offer(File(path))
    for _ in range(20):
        clock.advance(1.0)
        discovery.look_again()
    assert len(looks) == 1
    path.write_bytes(b"other text")
    discovery.look_again()
    assert len(looks) == 2


def test_one_that_cannot_be_read_is_tried_again(clock: FakeClock, tmp_path: Path) -> None:
    file = _make(tmp_path / "a.db", clock)
    denied = True

    def look(path: Path) -> Probe:
        if denied:
            raise DatabaseError(f"{path}: cannot be read: no", hint="Give access.")
        return probe(path)

    discovery: Discovery[File] = Discovery(clock, look)
    finding = discovery.offer(file)
    assert (finding.kind, finding.reason) == (Kind.UNREADABLE, "cannot be read: no")
    assert finding.hint == "Give access."
    denied = False
    assert discovery.look_again() == []  # its status shows no difference
    clock.advance(30.0)
    assert _kinds(discovery.look_again()) == [Kind.READY]


def test_what_is_forgotten_is_not_looked_at(
    discovery: Discovery[File], clock: FakeClock, tmp_path: Path
) -> None:
    path = tmp_path / "a.db"
    discovery.offer(File(path))
    assert discovery.knows(path)
    discovery.forget(path)
    discovery.forget(path)
    _make(path, clock)
    assert discovery.look_again() == []
