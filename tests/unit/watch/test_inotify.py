"""What the kernel reports becomes hints where to look; nothing that happens stays unseen."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from inotify_simple import INotify

from pyrep.clock import SystemClock
from pyrep.watch import inotify
from pyrep.watch.base import Dirty, DirtyKind, Watcher
from pyrep.watch.inotify import INotifyWatcher, best_watcher
from pyrep.watch.polling import PollingWatcher


@pytest.fixture
def changed() -> set[Path]:
    """Hold the databases that have changed, when somebody looks."""
    return set()


@pytest.fixture
def watcher(tmp_path: Path, changed: set[Path]) -> Iterator[INotifyWatcher]:
    with closing(INotifyWatcher(60.0, changed.__contains__, SystemClock())) as made:
        assert made.watch_folder(str(tmp_path))
        yield made


def _all(watcher: Watcher) -> list[Dirty]:
    """Return what is to be reported now."""
    found = watcher.poll(0.0)
    while more := watcher.poll(0.0):
        found += more
    return found


def _write(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"x")


def _named(*paths: Path) -> set[Dirty]:
    return {Dirty(path, DirtyKind.NAMED) for path in paths}


def _folders(*paths: Path) -> set[Dirty]:
    return {Dirty(path, DirtyKind.FOLDER) for path in paths}


# --- quiet databases ---


def test_the_first_write_to_the_wal_is_reported_and_no_other(
    watcher: INotifyWatcher, tmp_path: Path
) -> None:
    database, wal = tmp_path / "a.db", tmp_path / "a.db-wal"
    for path in (database, wal):
        path.touch()
    watcher.poll(0.0)
    watcher.add(database)
    assert _all(watcher) == []
    _write(database)  # a checkpoint: what it writes was in the WAL
    assert _all(watcher) == []
    _write(wal)
    _write(wal)
    assert _all(watcher) == [Dirty(database)]
    _write(wal)
    assert _all(watcher) == []
    watcher.add(database)
    _write(wal)
    assert _all(watcher) == [Dirty(database)]


def test_without_a_wal_the_file_itself_is_watched(watcher: INotifyWatcher, tmp_path: Path) -> None:
    database = tmp_path / "a.db"
    database.touch()
    watcher.poll(0.0)
    watcher.add(database)
    _write(database)
    _write(database)
    assert _all(watcher) == [Dirty(database)]


def test_an_empty_wal_that_appears_only_moves_the_watch(
    watcher: INotifyWatcher, tmp_path: Path, changed: set[Path]
) -> None:
    database, wal = tmp_path / "a.db", tmp_path / "a.db-wal"
    database.touch()
    watcher.poll(0.0)
    watcher.add(database)
    wal.touch()
    (tmp_path / "a.db-shm").touch()
    assert _all(watcher) == []
    _write(wal)
    assert _all(watcher) == [Dirty(database)]
    watcher.add(database)
    changed.add(database)
    wal.unlink()  # whoever did that may have written before
    assert _all(watcher) == [Dirty(database)]


def test_a_wal_that_was_replaced_is_watched_anew(watcher: INotifyWatcher, tmp_path: Path) -> None:
    database, wal = tmp_path / "a.db", tmp_path / "a.db-wal"
    for _ in range(3):
        for path in (database, wal):
            path.touch()
        watcher.add(database)
        wal.unlink()
        wal.touch()
        _all(watcher)
        _write(wal)
        assert Dirty(database) in _all(watcher)


def test_what_changed_before_it_was_watched_is_found_by_a_look(
    watcher: INotifyWatcher, tmp_path: Path, changed: set[Path]
) -> None:
    database = tmp_path / "a.db"
    database.touch()
    watcher.poll(0.0)
    changed.add(database)
    watcher.add(database)
    assert _all(watcher) == [Dirty(database)]


def test_what_is_watched_no_longer_is_not_reported(
    watcher: INotifyWatcher, tmp_path: Path, changed: set[Path]
) -> None:
    database = tmp_path / "a.db"
    database.touch()
    watcher.poll(0.0)
    changed.add(database)
    watcher.add(database)
    watcher.remove(database)
    watcher.remove(database)
    _write(database)
    assert _all(watcher) == []


def test_a_look_that_fails_is_a_change(tmp_path: Path) -> None:
    def look(path: Path) -> bool:
        raise PermissionError(path)

    with closing(INotifyWatcher(60.0, look, SystemClock())) as watcher:
        watcher.add(tmp_path / "a.db")
        assert watcher.poll(0.0) == [Dirty(tmp_path / "a.db")]


def test_two_names_of_one_file_are_both_seen(
    watcher: INotifyWatcher, tmp_path: Path, changed: set[Path]
) -> None:
    first, second = tmp_path / "a.db", tmp_path / "b.db"
    first.touch()
    os.link(first, second)
    with closing(INotifyWatcher(0.001, changed.__contains__, SystemClock())) as fast:
        fast.watch_folder(str(tmp_path))
        fast.add(first)
        fast.add(second)
        changed.update((first, second))
        _write(first)
        found: set[Dirty] = set()
        while found != {Dirty(first), Dirty(second)}:
            found |= set(fast.poll(1.0))


# --- names and folders ---


def test_names_that_come_and_go_are_reported(watcher: INotifyWatcher, tmp_path: Path) -> None:
    first, second, third = (tmp_path / f"{letter}.db" for letter in "abc")
    first.touch()
    assert set(_all(watcher)) == _named(first)
    first.rename(second)
    assert set(_all(watcher)) == _named(first, second)
    second.unlink()
    assert set(_all(watcher)) == _named(second)
    (tmp_path / "c.db-journal").touch()
    (tmp_path / "c.db-wal").touch()
    (tmp_path / "c.db-shm").touch()
    assert _all(watcher) == [Dirty(third, DirtyKind.NAMED)]


def test_folders_are_reported_and_their_own_names_when_they_are_watched(
    watcher: INotifyWatcher, tmp_path: Path
) -> None:
    folder = tmp_path / "team"
    folder.mkdir()
    assert set(_all(watcher)) == _folders(folder)
    (folder / "a.db").touch()
    assert _all(watcher) == []
    assert watcher.watch_folder(str(folder))
    (folder / "b.db").touch()
    assert set(_all(watcher)) == _named(folder / "b.db")
    for child in folder.iterdir():
        child.unlink()
    folder.rmdir()
    assert _folders(folder) < set(_all(watcher))
    watcher.forget_folder(str(folder))
    folder.mkdir()
    assert watcher.watch_folder(str(folder))
    (folder / "c.db").touch()
    assert _named(folder / "c.db") < set(_all(watcher))


def test_a_folder_that_was_renamed_reports_under_its_new_name(
    watcher: INotifyWatcher, tmp_path: Path
) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    (old / "deep").mkdir(parents=True)
    for folder in (old, old / "deep"):
        watcher.watch_folder(str(folder))
    _all(watcher)
    old.rename(new)
    (new / "deep/lost.db").touch()
    assert set(_all(watcher)) == _folders(old, new)
    for folder in (new, new / "deep"):
        watcher.watch_folder(str(folder))
    (new / "deep/a.db").touch()
    (new / "b.db").touch()
    assert set(_all(watcher)) == _named(new / "deep/a.db", new / "b.db")


def test_a_renamed_folder_that_is_watched_again_before_its_event_is_read_keeps_its_watch(
    watcher: INotifyWatcher, tmp_path: Path
) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    watcher.watch_folder(str(old))
    old.rename(new)
    watcher.watch_folder(str(new))  # the kernel gives the same watch
    _all(watcher)
    (new / "a.db").touch()
    assert set(_all(watcher)) == _named(new / "a.db")


def test_the_end_of_a_watched_folder_itself_is_reported(
    watcher: INotifyWatcher, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    root.mkdir()
    watcher.forget_folder(str(tmp_path), below=False)
    watcher.watch_folder(str(root))
    watcher.poll(0.0)
    root.rename(tmp_path / "moved")
    assert set(_all(watcher)) == _folders(root)
    (tmp_path / "moved").rmdir()
    assert set(_all(watcher)) == _folders(root)


def test_a_folder_that_is_gone_or_a_link_is_no_failure(
    watcher: INotifyWatcher, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    (tmp_path / "file").touch()
    _all(watcher)
    for name in ("gone", "link", "file"):
        assert watcher.watch_folder(str(tmp_path / name))
    assert caplog.records == []


# --- when the kernel cannot ---


def _refuse(number: int) -> Callable[..., int]:
    def refuse(*args: object, **named: object) -> int:
        raise OSError(number, os.strerror(number))

    return refuse


def test_without_watches_left_files_are_looked_at(
    tmp_path: Path,
    changed: set[Path],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    first, second = tmp_path / "a.db", tmp_path / "b.db"
    with closing(INotifyWatcher(0.01, changed.__contains__, SystemClock())) as watcher:
        watcher.watch_folder(str(tmp_path))
        monkeypatch.setattr(INotify, "add_watch", _refuse(errno.ENOSPC))
        assert not watcher.watch_folder(str(tmp_path / "."))
        watcher.add(first)
        watcher.add(second)
        assert watcher.poll(0.0) == []
        changed.add(first)
        assert watcher.poll(1.0) == [Dirty(first)]
        (line,) = caplog.records
        assert "max_user_watches" in str(line.__dict__["hint"])
        monkeypatch.undo()
        changed.clear()
        watcher.add(first)  # there is room again: the sweep has only the other one
        watcher.remove(second)
        assert watcher.poll(0.1) == []


def test_a_database_in_a_folder_that_is_not_watched_is_looked_at(
    tmp_path: Path, changed: set[Path]
) -> None:
    with closing(
        INotifyWatcher(0.01, changed.__contains__, SystemClock(), kind_of=lambda path: "nfs4")
    ) as watcher:
        assert not watcher.watch_folder(str(tmp_path))
        watcher.add(tmp_path / "a.db")
        watcher.poll(0.0)
        changed.add(tmp_path / "a.db")
        assert watcher.poll(1.0) == [Dirty(tmp_path / "a.db")]


def test_lost_events_are_made_up_for(
    watcher: INotifyWatcher, tmp_path: Path, changed: set[Path]
) -> None:
    database = tmp_path / "a.db"
    database.touch()
    watcher.poll(0.0)
    watcher.add(database)
    watcher.poll(0.0)
    for number in range(17_000):  # more than the queue holds
        (tmp_path / f"{number}-shm").touch()
    changed.add(database)
    _write(database)
    found = _all(watcher)
    assert Dirty(None, DirtyKind.OVERFLOW) in found
    assert Dirty(database) in found


def test_without_an_instance_there_is_only_the_sweep(
    tmp_path: Path,
    changed: set[Path],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(inotify, "INotify", _refuse(errno.EMFILE))
    caplog.set_level(logging.WARNING)
    watcher = best_watcher(0.01, changed.__contains__, SystemClock())
    assert isinstance(watcher, PollingWatcher)
    assert "max_user_instances" in str(caplog.records[0].__dict__["hint"])
    assert not watcher.watch_folder(str(tmp_path))
    watcher.forget_folder(str(tmp_path))
    assert watcher.due_in() is None
    watcher.add(tmp_path / "a.db")
    assert watcher.due_in() is not None


def test_a_watcher_holds_two_descriptors_and_gives_them_back(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    watcher = best_watcher(1.0, lambda path: False, SystemClock())
    for number in range(100):
        (tmp_path / f"{number}.db").touch()
        watcher.add(tmp_path / f"{number}.db")
    watcher.watch_folder(str(tmp_path))
    assert len(os.listdir("/proc/self/fd")) == before + 2
    watcher.close()
    watcher.close()
    watcher.add(tmp_path / "1.db")
    watcher.remove(tmp_path / "1.db")
    watcher.wake()
    assert len(os.listdir("/proc/self/fd")) == before
