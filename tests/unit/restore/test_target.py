"""The place of a restored file: what is refused, what is moved aside, what a failure leaves."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import stat
from pathlib import Path

import pytest

from pyrep import osfs
from pyrep.errors import DatabaseBusyError, OutputExistsError, PyrepError
from pyrep.osfs import Failpoint
from pyrep.restore.target import Ownership, Target, TempFile, describe_os_errors

OLD = {"": b"old database", "-wal": b"old wal", "-shm": b"old shm", "-journal": b"old journal"}


@pytest.fixture(autouse=True)
def _no_failpoints():
    yield
    osfs.disarm()


def make_old(output: Path, suffixes=tuple(OLD)) -> None:
    for suffix in suffixes:
        Path(f"{output}{suffix}").write_bytes(OLD[suffix])


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def no_guard(path: Path) -> None:
    """Let every file be replaced."""


def run(output: Path, *, force=False, guard=no_guard, ownership=None, data=b"new") -> None:
    """Go the way of a restore with some bytes."""
    target = Target(output, force=force)
    target.check()
    ownership = ownership or Ownership()
    target.make_parent(ownership)
    with TempFile(target.output) as temp:
        osfs.write_all("restore.write", temp.fd, data)
        temp.finish(ownership, target.replaced())
        target.publish(temp, guard)


def test_a_free_place_gets_the_file_and_nothing_else(tmp_path):
    run(tmp_path / "db")
    assert contents(tmp_path) == {"db": b"new"}
    assert stat.S_IMODE((tmp_path / "db").stat().st_mode) == 0o600


def test_an_empty_file_is_replaced_silently_and_keeps_its_mode(tmp_path):
    (tmp_path / "db").touch()
    (tmp_path / "db").chmod(0o640)
    asked = []
    run(tmp_path / "db", guard=asked.append)
    assert contents(tmp_path) == {"db": b"new"}
    assert stat.S_IMODE((tmp_path / "db").stat().st_mode) == 0o640
    assert asked == [tmp_path / "db"]


def test_an_existing_file_is_refused(tmp_path):
    make_old(tmp_path / "db", [""])
    with pytest.raises(OutputExistsError) as caught:
        run(tmp_path / "db")
    assert str(caught.value) == (
        f"cannot restore, output path already exists and is not empty: {tmp_path}/db. "
        "Use -force to overwrite"
    )
    assert contents(tmp_path) == {"db": OLD[""]}


@pytest.mark.parametrize("suffix", ["-wal", "-shm", "-journal"])
@pytest.mark.parametrize("empty", [False, True])
def test_a_sidecar_counts_as_existing(tmp_path, suffix, empty):
    make_old(tmp_path / "db", [suffix])
    if empty:
        (tmp_path / "db").touch()
    with pytest.raises(OutputExistsError) as caught:
        run(tmp_path / "db")
    assert str(caught.value) == (
        f"cannot restore, SQLite sidecar path already exists: {tmp_path}/db{suffix}. "
        "Use -force to overwrite"
    )


@pytest.mark.parametrize("force", [False, True])
def test_what_is_no_file_is_refused_even_with_force(tmp_path, force):
    (tmp_path / "dir").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    os.mkfifo(tmp_path / "pipe")
    for name, kind in [("dir", "a directory"), ("link", "a symbolic link"), ("pipe", "a special")]:
        with pytest.raises(OutputExistsError, match=f"output path is {kind}"):
            run(tmp_path / name, force=force)
    assert sorted(os.listdir(tmp_path)) == ["dir", "link", "pipe"]


def test_a_link_is_answered_with_the_path_to_give(tmp_path):
    (tmp_path / "link").symlink_to("real/db")
    with pytest.raises(OutputExistsError) as caught:
        run(tmp_path / "link")
    assert caught.value.hint == f"Give the path it points to: {tmp_path}/real/db"


def test_links_in_the_directory_part_are_followed(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    run(tmp_path / "link" / "db")
    assert contents(tmp_path / "real") == {"db": b"new"}


def test_a_parent_that_is_a_file_is_an_error(tmp_path):
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(PyrepError, match="Not a directory"):
        run(tmp_path / "file" / "db")


@pytest.mark.parametrize("suffixes", [("",), ("", "-wal"), ("-wal",), tuple(OLD)])
def test_force_replaces_the_whole_set(tmp_path, suffixes):
    make_old(tmp_path / "db", suffixes)
    run(tmp_path / "db", force=True)
    assert contents(tmp_path) == {"db": b"new"}


def test_the_guard_sees_the_old_file_and_may_refuse(tmp_path):
    make_old(tmp_path / "db")

    def guard(path):
        assert path.read_bytes() == OLD[""]
        raise DatabaseBusyError(f"{path}: in use")

    with pytest.raises(DatabaseBusyError, match="in use"):
        run(tmp_path / "db", force=True, guard=guard)
    assert contents(tmp_path) == {f"db{s}": data for s, data in OLD.items()}


def test_a_file_that_appears_meanwhile_is_not_overwritten(tmp_path):
    target = Target(tmp_path / "db", force=False)
    target.check()
    with TempFile(target.output) as temp:
        temp.finish(Ownership(), None)
        make_old(tmp_path / "db", [""])
        with pytest.raises(OutputExistsError):
            target.publish(temp, no_guard)
    assert contents(tmp_path) == {"db": OLD[""]}


def test_owner_and_mode_of_the_replaced_file_come_first(tmp_path):
    if os.geteuid():
        pytest.skip("needs root to give files away")
    make_old(tmp_path / "db", [""])
    os.chown(tmp_path / "db", 1234, 4321)
    (tmp_path / "db").chmod(0o664)
    run(tmp_path / "db", force=True, ownership=Ownership(5, 6, 0o600))
    status = (tmp_path / "db").stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (1234, 4321, 0o664)


def test_given_owner_and_mode_count_for_a_new_file_and_its_new_directories(tmp_path):
    if os.geteuid():
        pytest.skip("needs root to give files away")
    run(tmp_path / "a" / "b" / "db", ownership=Ownership(1234, 4321, 0o660))
    for name in ["a", "a/b", "a/b/db"]:
        status = (tmp_path / name).stat()
        assert (status.st_uid, status.st_gid) == (1234, 4321)
    assert stat.S_IMODE((tmp_path / "a/b/db").stat().st_mode) == 0o660
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o750


def test_without_options_the_owner_is_that_of_the_directory(tmp_path):
    if os.geteuid():
        pytest.skip("needs root to give files away")
    os.chown(tmp_path, 1234, 4321)
    run(tmp_path / "new" / "db")
    status = (tmp_path / "new" / "db").stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (1234, 4321, 0o600)


def test_a_refused_chown_is_said_and_does_no_harm(tmp_path, monkeypatch, caplog):
    def chown(op, fd, uid, gid):
        raise PermissionError(errno.EPERM, "not permitted")

    monkeypatch.setattr(osfs, "chown", chown)
    with caplog.at_level(logging.WARNING):
        run(tmp_path / "db", ownership=Ownership(12345, None))
    assert contents(tmp_path) == {"db": b"new"}
    assert "not allowed to give the file to uid 12345" in caplog.text


OPS = ["restore.open", "restore.write", "restore.chmod", "restore.fsync", "restore.aside"]
OPS += ["restore.rename", "restore.fsync_dir"]


def outcome(output: Path) -> PyrepError | None:
    """Return the error of a forced restore; those of ``restore.write`` are its caller's."""
    try:
        run(output, force=True)
    except PyrepError as error:
        return error
    except OSError as error:
        return PyrepError(f"{output}: {error}", hint="translated by the caller")
    return None


@pytest.mark.parametrize("action", ["eio", "enospc"])
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("nth", [1, 2, 3])
def test_a_failing_step_leaves_the_old_set_whole(tmp_path, op, nth, action):
    make_old(tmp_path / "db")
    point = Failpoint(op, nth, action)
    osfs.arm([point])
    error = outcome(tmp_path / "db")
    osfs.disarm()
    found = contents(tmp_path)
    assert (error is not None) == (point.calls >= nth)
    if error is not None:
        assert str(tmp_path) in str(error)
        assert error.hint
    if error is None or (op == "restore.fsync_dir" and nth == 2):
        assert found["db"] == b"new"
        assert not any(f"db{suffix}" in found for suffix in OLD if suffix)
    else:
        assert found == {f"db{suffix}": data for suffix, data in OLD.items()}


def test_a_failing_delete_of_the_old_set_is_only_said(tmp_path, caplog):
    make_old(tmp_path / "db")
    osfs.arm([Failpoint("restore.unlink", 1, "eio")])
    run(tmp_path / "db", force=True)
    assert contents(tmp_path) == {"db": b"new", "db.pyrep-old-1": OLD[""]}
    assert "db.pyrep-old-1 cannot be deleted" in caplog.text
    caplog.clear()
    run(tmp_path / "db", force=True, data=b"newer")
    assert "an earlier restore left replaced files" in caplog.text
    assert contents(tmp_path) == {"db": b"newer", "db.pyrep-old-1": OLD[""]}


def test_a_failure_to_move_back_names_the_file(tmp_path):
    make_old(tmp_path / "db", ["", "-wal"])
    osfs.arm([Failpoint("restore.rename", 1, "eio"), Failpoint("restore.move_back", 2, "eio")])
    with pytest.raises(PyrepError, match=r"so did moving .*db\.pyrep-old-1 back") as caught:
        run(tmp_path / "db", force=True)
    assert "(without .pyrep-old-1)" in caught.value.hint
    assert contents(tmp_path) == {"db.pyrep-old-1": OLD[""], "db-wal": OLD["-wal"]}


def interrupted(tmp_path: Path) -> None:
    """Leave what a kill between moving the database and moving its WAL aside leaves."""
    make_old(tmp_path / "db", ["", "-wal"])
    (tmp_path / "db").rename(tmp_path / "db.pyrep-old-3")


def test_an_interrupted_restore_is_named_without_force(tmp_path):
    interrupted(tmp_path)
    with pytest.raises(
        OutputExistsError, match=r"moved the old database aside to .*old-3"
    ) as caught:
        run(tmp_path / "db")
    assert "Rename it and its sidecars back (without .pyrep-old-3)" in caught.value.hint
    assert contents(tmp_path) == {"db.pyrep-old-3": OLD[""], "db-wal": OLD["-wal"]}


def test_an_interrupted_restore_is_finished_with_force(tmp_path):
    interrupted(tmp_path)
    (tmp_path / "db.pyrep-old-3").chmod(0o644)
    run(tmp_path / "db", force=True)
    assert contents(tmp_path) == {"db": b"new"}
    assert stat.S_IMODE((tmp_path / "db").stat().st_mode) == 0o644


def test_an_interrupted_restore_keeps_its_set_when_the_next_fails_too(tmp_path):
    interrupted(tmp_path)
    osfs.arm([Failpoint("restore.rename", 1, "eio")])
    with pytest.raises(PyrepError):
        run(tmp_path / "db", force=True)
    assert contents(tmp_path) == {"db.pyrep-old-3": OLD[""], "db-wal": OLD["-wal"]}


def test_left_over_sidecars_alone_do_not_forbid_a_restore(tmp_path, caplog):
    (tmp_path / "db-wal.pyrep-old-1").write_bytes(b"x")
    run(tmp_path / "db")
    assert "an earlier restore left replaced files" in caplog.text
    assert contents(tmp_path) == {"db": b"new", "db-wal.pyrep-old-1": b"x"}


def test_names_like_ours_of_other_databases_are_left_alone(tmp_path):
    names = [
        "db2.pyrep-old-1",
        "xdb.pyrep-old-1",
        "db.pyrep-old-1x",
        "db.tmp-0123",
        "db2.tmp-00000000",
    ]
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    make_old(tmp_path / "db")
    run(tmp_path / "db", force=True)
    assert sorted(os.listdir(tmp_path)) == sorted([*names, "db"])


def test_the_temporary_file_of_a_dead_restore_is_removed(tmp_path):
    (tmp_path / "db.tmp-01234567").write_bytes(b"half")
    run(tmp_path / "db")
    assert contents(tmp_path) == {"db": b"new"}


def test_the_temporary_file_of_a_running_restore_is_kept(tmp_path):
    with TempFile(tmp_path / "db") as running:
        run(tmp_path / "db")
        assert running.path.exists()
    assert contents(tmp_path) == {"db": b"new"}


def test_a_temporary_name_that_is_a_link_is_not_followed(tmp_path):
    (tmp_path / "victim").write_bytes(b"keep")
    (tmp_path / "db.tmp-01234567").symlink_to("victim")
    run(tmp_path / "db")
    assert (tmp_path / "victim").read_bytes() == b"keep"
    assert (tmp_path / "db.tmp-01234567").is_symlink()


def test_a_temporary_file_that_cannot_be_removed_hides_no_error(tmp_path, caplog):
    osfs.arm([Failpoint("restore.fsync", 1, "enospc"), Failpoint("restore.discard", 1, "eio")])
    with pytest.raises(PyrepError, match="making the database durable failed"):
        run(tmp_path / "db")
    assert "the temporary file cannot be deleted" in caplog.text


def test_a_temporary_file_taken_before_its_lock_is_made_again(tmp_path, monkeypatch):
    real, taken = fcntl.flock, []

    def flock(fd, how):
        if not taken:
            taken.append(os.readlink(f"/proc/self/fd/{fd}"))
            os.unlink(taken[0])
        real(fd, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    run(tmp_path / "db")
    assert taken
    assert contents(tmp_path) == {"db": b"new"}


def test_file_systems_without_locks_do(tmp_path, monkeypatch):
    def flock(fd, how):
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    (tmp_path / "db.tmp-01234567").write_bytes(b"perhaps alive")
    run(tmp_path / "db")
    assert sorted(os.listdir(tmp_path)) == ["db", "db.tmp-01234567"]


@pytest.mark.parametrize(
    ("code", "advice"),
    [
        (errno.ENOSPC, "Make room for the whole database in /data"),
        (errno.EROFS, "Restore as a user who may write in /data"),
        (errno.ENAMETOOLONG, "Choose another output path"),
        (errno.EIO, "Check the disk below /data"),
    ],
)
def test_errors_of_the_system_say_what_to_do(code, advice):
    def fail():
        with describe_os_errors(Path("/data/db"), "writing"):
            raise OSError(code, os.strerror(code))

    with pytest.raises(PyrepError) as caught:
        fail()
    assert str(caught.value) == f"/data/db: writing failed: {os.strerror(code)}"
    assert caught.value.hint.startswith(advice)
