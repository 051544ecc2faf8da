"""Databases in trouble beside healthy ones: one clear line each, and recovery by itself."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fixtures.app import App
from fixtures.host import Host, Line

_LOAD = Path(__file__).parents[2] / "benchmarks" / "load.py"
_GOOD = ("good.db", "team/good.db")

Cure = Callable[[], object]


@dataclass(frozen=True)
class Trouble:
    """Say how a database is spoilt, and what the log then says of it.

    ``first``: found so at the first start; ``known``: it was replicated before.  A line is
    (level, message, error without the path, hint).
    """

    name: str
    spoil: Callable[[Path], Cure]
    first: tuple[str, str, str, str] | None
    known: tuple[str, str, str, str]


def _exclusive(path: Path) -> Cure:
    app = App(path)
    app.execute("pragma locking_mode = exclusive")
    app.execute("insert into t (a) values ('mine')")
    return app.exit


def _unreadable(path: Path) -> Cure:
    path.chmod(0)
    return lambda: path.chmod(0o644)


def _truncated(path: Path) -> Cure:
    whole = path.read_bytes()
    os.truncate(path, 8192)

    def finish_copy() -> None:
        with path.open("ab") as file:
            file.write(whole[8192:])

    return finish_copy


def _replaced(content: bytes) -> Callable[[Path], Cure]:
    def spoil(path: Path) -> Cure:
        aside = path.with_suffix(".aside")
        path.rename(aside)
        path.write_bytes(content)
        return lambda: aside.replace(path)

    return spoil


def _emptied(path: Path) -> Cure:
    os.truncate(path, 0)
    return lambda: _fill(path)


def _read_only_folder(path: Path) -> Cure:
    _fill(path, 1)  # what has not changed is not opened, so nobody would notice
    path.parent.chmod(0o555)
    return lambda: path.parent.chmod(0o755)


_NO_DATABASE = (
    "is not a SQLite database, or is encrypted",
    "Exclude it from the pattern, or replace it by a database.",
)
_LEFT_OUT = ("WARN", "file is no database and left out")
_LOCKED = (
    "WARN",
    "sync failed",
    "database is locked by another process",
    "An application in exclusive locking mode keeps every backup out; "
    "set PRAGMA locking_mode=NORMAL in it.",
)
_DENIED = (
    "cannot be read: Permission denied",
    "Give the user that runs pyrep read and write access to the file.",
)
_TROUBLES = (
    Trouble("exclusive.db", _exclusive, _LOCKED, _LOCKED),
    Trouble(
        "unreadable.db",
        _unreadable,
        ("ERROR", "database cannot be replicated yet", *_DENIED),
        ("ERROR", "sync failed", *_DENIED),
    ),
    Trouble(
        "truncated.db",
        _truncated,
        None,  # half a minute long it may be a copy under way
        (
            "WARN",
            "sync failed",
            "is shorter (8192 bytes) than its header says (27 pages of 4096 bytes): half copied "
            "or truncated",
            "Finish the copy or restore the file; pyrep looks again by itself.",
        ),
    ),
    Trouble(
        "text.db",
        _replaced(b"hello\n" * 1000),
        (*_LEFT_OUT, *_NO_DATABASE),
        ("ERROR", "sync failed", *_NO_DATABASE),
    ),
    Trouble(
        "encrypted.db",
        _replaced(bytes(range(1, 256)) * 160),
        (*_LEFT_OUT, *_NO_DATABASE),
        ("ERROR", "sync failed", *_NO_DATABASE),
    ),
    Trouble(
        "empty.db",
        _emptied,
        (*_LEFT_OUT, "is empty", "It is replicated from its first write on."),
        ("WARN", "sync failed", "is empty; it is replicated from its first write on", ""),
    ),
    Trouble(
        "folder/read-only.db",
        _read_only_folder,
        (
            "ERROR",
            "database cannot be replicated yet",
            "state directory {folder}/.read-only.db-pyrep cannot be written: permission denied",
            "Give the user that runs pyrep write access there, or set meta-dir to a folder in "
            "which it has it.",
        ),
        (
            "ERROR",
            "sync failed",
            "is read-only for pyrep",
            "Give the user that runs pyrep write access to the file and its folder.",
        ),
    ),
)


def _fill(path: Path, rows: int = 50) -> None:
    """Be an application that writes some rows, and ends."""
    path.parent.mkdir(exist_ok=True)
    with App(path) as app:
        app.execute("create table if not exists t (id integer primary key, a)")
        app.execute_many("insert into t (a) values (randomblob(?))", [(2000,)] * rows)
        app.close()


def _said(host: Host, name: str) -> list[tuple[str, str, str, str]]:
    """Return the lines above INFO about a database, without what is the same in all of them."""
    path = host.data / name
    return [_without_path(line, path) for line in host.about(name)]


def _without_path(line: Line, path: Path) -> tuple[str, str, str, str]:
    error = line["error"].removeprefix(f"{path}: ").replace(str(path.parent), "{folder}")
    return line["level"], line["msg"], error, line.get("hint", "")


def _endure(host: Host, expected: dict[str, list[tuple[str, str, str, str]]]) -> None:
    """Spoil, start, see the others go on; cure, and see all of them recover by themselves."""
    cures: list[Cure] = []
    try:
        for trouble in _TROUBLES:
            cures.append(trouble.spoil(host.data / trouble.name))
        host.start()
        for name, lines in expected.items():
            wanted = len(lines)
            host.wait_for(lambda n=name, w=wanted: len(host.about(n)) >= w, f"a word about {name}")
        for name in _GOOD:
            _fill(host.data / name)
        host.wait_shipped(*_GOOD)
        assert {name: _said(host, name) for name in expected} == expected
        assert [host.about(name) for name in _GOOD] == [[], []]
    finally:
        for cure in cures:
            cure()
    for trouble in _TROUBLES:
        _fill(host.data / trouble.name)
    names = [trouble.name for trouble in _TROUBLES]
    host.wait_shipped(*names)
    assert host.stop() == 0, host.text()
    host.expect_equal([*_GOOD, *names])


@pytest.mark.slow
@pytest.mark.interop
def test_databases_that_are_found_in_trouble(tmp_path: Path) -> None:
    with Host(tmp_path, plain=True) as host:
        for name in [*_GOOD, *(trouble.name for trouble in _TROUBLES)]:
            _fill(host.data / name)
        _endure(host, {t.name: [t.first] if t.first else [] for t in _TROUBLES})


@pytest.mark.slow
@pytest.mark.interop
def test_databases_that_get_into_trouble(tmp_path: Path) -> None:
    with Host(tmp_path, plain=True, entry={"meta_dir": str(tmp_path / "meta")}) as host:
        names = [*_GOOD, *(trouble.name for trouble in _TROUBLES)]
        for name in names:
            _fill(host.data / name)
        host.start()
        host.wait_shipped(*names)
        assert host.stop() == 0, host.text()
        _endure(host, {trouble.name: [trouble.known] for trouble in _TROUBLES})


@contextmanager
def _small_disk(path: Path) -> Iterator[None]:
    """Mount a tmpfs of 3 MiB for the ``with`` block; skip the test where that is not allowed."""
    path.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", "size=3m", "none", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"a tmpfs cannot be mounted here ({done.stderr.strip()})")
    try:
        yield
    finally:
        subprocess.run(["umount", str(path)], check=True)


def _fill_disk(path: Path) -> None:
    """Write until the file system is full."""
    with path.open("wb", buffering=0) as file:
        size = 1 << 16
        while size:
            try:
                file.write(bytes(size))
            except OSError:
                size //= 2


@pytest.mark.interop
def test_full_disk(tmp_path: Path) -> None:
    names = ("good.db", "full/tenant.db")
    with _small_disk(tmp_path / "data" / "full"), Host(tmp_path) as host:
        for name in names:
            _fill(host.data / name)
        with App(host.data / "full/tenant.db") as app:
            host.start()
            host.wait_shipped(*names)
            host.signal(signal.SIGSTOP)
            app.execute_many("insert into t (a) values (randomblob(?))", [(4000,)] * 100)
            _fill_disk(host.data / "full" / "filler")
            host.signal(signal.SIGCONT)
            host.wait_for(lambda: bool(host.about("full/tenant.db")), "the full disk is told")
            _fill(host.data / "good.db")
            host.wait_shipped("good.db")
            # One line about the sync, and one about a merge if that fell due meanwhile.
            told = host.about("full/tenant.db")
            assert sorted(line["op"] for line in told) in (["sync"], ["maintenance", "sync"])
            path = host.data / "full" / ".tenant.db-pyrep"
            for line in told:
                assert line["error"].endswith(f": no space left to stage changes in {path}")
                assert line["hint"].startswith("Free space there; nothing is lost")
            assert host.status()["full/tenant.db"]["status"] == "degraded"
            assert host.about("good.db") == []
            (host.data / "full" / "filler").unlink()
            app.execute("insert into t (a) values ('goes on')")
            host.wait_shipped("full/tenant.db")
        assert host.stop() == 0, host.text()
        host.expect_equal(names)


@pytest.mark.parametrize("step", ["stage.open:3", "stage.rename:3", "state.write:4"])
def test_disk_that_is_full_for_a_moment(tmp_path: Path, step: str) -> None:
    """Whichever tenant meets it: one line with its name, and all go on."""
    names = ("one.db", "two.db")
    environ = {"PYREP_ALLOW_FAILPOINTS": "1", "PYREP_FAILPOINT": f"{step}:enospc"}
    with Host(tmp_path) as host:
        for name in names:
            _fill(host.data / name)
        host.start(environ=environ)
        host.wait_shipped(*names)
        for name in names:
            _fill(host.data / name)
        host.wait_shipped(*names)
        (line,) = host.problems()
        assert line["db"] in [str(host.data / name) for name in names]
        assert "no space left to stage changes in" in line["error"]
        assert host.stop() == 0, host.text()
        host.expect_equal(names, others=False)


def test_rollback_journal_is_switched_to_wal(tmp_path: Path) -> None:
    with Host(tmp_path) as host, App(host.data / "old.db", journal_mode="delete") as app:
        app.execute("create table t (id integer primary key, a)")
        app.execute("insert into t (a) values (1)")
        host.start()
        host.wait_for(lambda: bool(host.lines("switched database to WAL mode")), "the switch")
        app.execute("insert into t (a) values (2)")
        host.wait_shipped("old.db")
        assert app.execute("pragma journal_mode") == [("wal",)]
        (line,) = host.lines("switched database to WAL mode")
        assert (line["level"], line["db"]) == ("INFO", str(host.data / "old.db"))
        app.close()
        assert host.stop() == 0, host.text()
        assert host.problems() == []


def test_rollback_journal_is_kept_and_never_blocks_a_writer(tmp_path: Path) -> None:
    entry = {"journal_mode": "keep", "monitor_interval": "100ms"}
    with Host(tmp_path, entry=entry, replica={"sync_interval": "100ms"}) as host:
        database = host.data / "kept.db"
        _load_kept(database, "--fill=300", "--duration=0.01")
        host.start()
        host.wait_shipped("kept.db")
        report = _load_kept(database, "--busy-timeout=100", "--rate=50", "--duration=8")
        host.wait_shipped("kept.db")
        assert (report["errors"], report["first_error"]) == (0, "")
        assert report["writes"] >= 200
        assert int(host.status()["kept.db"]["durable_txid"], 16) >= 8, "hardly any diff succeeded"
        assert database.read_bytes()[18:20] == b"\x01\x01"
        assert host.stop() == 0, host.text()
        assert host.lines("switched database to WAL mode") == []
        host.expect_equal(["kept.db"], others=False)


def _load_kept(database: Path, *flags: str) -> dict[str, Any]:
    """Write to a database with a rollback journal; return the report."""
    command = [sys.executable, str(_LOAD), str(database), "--journal-mode=delete", *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return dict(json.loads(done.stdout))
