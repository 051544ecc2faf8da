"""Whose -wal and -shm the daemon may create, and on which file systems it attaches."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from fixtures.app import App
from pyrep.errors import DatabaseError, DatabaseNotReadyError
from pyrep.tenant import opening
from pyrep.tenant.opening import check_openable

OTHER = 65533


@pytest.fixture
def database(tmp_path: Path, start_app: Callable[..., App]) -> Path:
    path = tmp_path / "app.db"
    app = start_app(path, journal_mode="wal")
    app.execute("create table t (a)")
    app.exit()
    return path


def somebody_else(monkeypatch: pytest.MonkeyPatch, group: int) -> None:
    """Run as a user that is neither root nor the owner; POSIX rights are not the point here."""
    monkeypatch.setattr(os, "geteuid", lambda: OTHER)
    monkeypatch.setattr(os, "getegid", lambda: group)


@pytest.mark.parametrize("mode", [0o644, 0o600, 0o640])
def test_another_user_without_a_common_group_is_refused(
    database: Path, monkeypatch: pytest.MonkeyPatch, mode: int
) -> None:
    database.chmod(mode)
    somebody_else(monkeypatch, OTHER)
    with pytest.raises(DatabaseError, match=r"app\.db: belongs to user \d+, who could not write"):
        check_openable(database, same_host=True)


def test_a_common_group_that_may_write_is_enough(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database.chmod(0o660)
    somebody_else(monkeypatch, database.stat().st_gid)
    assert check_openable(database, same_host=True).is_wal
    somebody_else(monkeypatch, OTHER)
    with pytest.raises(DatabaseError, match="common group"):
        raise_with_hint(database)
    database.parent.chmod(0o2770)  # new files get the folder's group
    assert check_openable(database, same_host=True).is_wal


def raise_with_hint(database: Path) -> None:
    try:
        check_openable(database, same_host=True)
    except DatabaseError as error:
        raise DatabaseError(f"{error} {error.hint}") from error


def test_everybody_may_write(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    database.chmod(0o666)
    somebody_else(monkeypatch, OTHER)
    assert check_openable(database, same_host=True).is_wal


@pytest.mark.parametrize("kind", ["nfs4", "cifs", "9p", "virtiofs", "fuse.sshfs"])
def test_file_systems_without_locks_need_same_host(
    database: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(opening, "file_system_type", lambda path: kind)
    with pytest.raises(DatabaseError, match=rf"app\.db: lies on a {kind} file system"):
        check_openable(database, same_host=False)
    assert check_openable(database, same_host=True).is_wal


def test_what_is_no_whole_database_is_named(tmp_path: Path, database: Path) -> None:
    empty, text, cut = tmp_path / "empty.db", tmp_path / "text.db", tmp_path / "cut.db"
    empty.touch()
    text.write_bytes(b"SQLite format 2\0" + bytes(200))
    cut.write_bytes(database.read_bytes()[:4096])
    with pytest.raises(DatabaseNotReadyError, match=r"empty\.db: is empty"):
        check_openable(empty, same_host=True)
    with pytest.raises(DatabaseError, match=r"text\.db: is not a SQLite database"):
        check_openable(text, same_host=True)
    with pytest.raises(DatabaseNotReadyError, match=r"cut\.db: is shorter \(4096 bytes\)"):
        check_openable(cut, same_host=True)
    with pytest.raises(DatabaseNotReadyError, match="does not exist"):
        check_openable(tmp_path / "none.db", same_host=True)
    with pytest.raises(DatabaseError, match="not a regular file"):
        check_openable(tmp_path, same_host=True)
