"""Scenarios of opening and leaving a database: locks, names, fingerprints, replaced files."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fixtures.app import App, differing_pages
from fixtures.power import salts
from fixtures.rig import Rig
from pyrep import osfs
from pyrep.errors import DatabaseBusyError, DatabaseError
from pyrep.osfs import Failpoint
from pyrep.sqlite import Attachment, attached_count, page_crcs, probe
from pyrep.tenant import hold as tenant_hold
from pyrep.tenant.position import Fingerprint
from pyrep.tenant.session import Session

_INSERT = "insert into t (a) values (randomblob(2000))"


@pytest.fixture
def make_rig(tmp_path: Path) -> Iterator[Callable[..., Rig]]:
    """Return a function that makes a rig with these settings; all are closed at the end."""
    with ExitStack() as stack:

        def build(folder: Path = tmp_path, **settings: Any) -> Rig:
            rig = Rig(folder, **settings)
            stack.callback(rig.close)
            stack.callback(osfs.disarm)
            return rig

        yield build


@pytest.fixture
def rig(make_rig: Callable[..., Rig]) -> Rig:
    return make_rig()


@pytest.fixture
def app(rig: Rig, start_app: Callable[..., App]) -> App:
    return open_app(rig.db, start_app)


def open_app(path: Path, start_app: Callable[..., App]) -> App:
    app = start_app(path, busy_timeout_ms=100, autocheckpoint=0)
    app.execute("create table if not exists t (id integer primary key, a)")
    return app


def fill(app: App, rows: int) -> None:
    for _ in range(rows):
        app.execute(_INSERT)


def causes(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return why more than a range of the WAL was shipped, each time."""
    return [record.cause for record in caplog.records if hasattr(record, "cause")]


def our_locks(path: Path) -> int:
    """Return how many POSIX locks this process holds on a file."""
    inode = f":{path.stat().st_ino} "
    lines = Path("/proc/locks").read_text().splitlines()
    return sum(inode in line and f" {os.getpid()} " in line for line in lines)


# --- POSIX locks belong to a process ---


def test_a_probe_of_an_attached_database_drops_no_lock(rig, app) -> None:
    fill(app, 5)
    rig.ship()
    fill(app, 5)  # R stands on a mark below: a restart of the WAL has to wait for it
    locks = our_locks(rig.db)
    assert locks > 0
    for _ in range(3):
        assert probe(rig.db).is_database
    assert our_locks(rig.db) == locks
    busy, _, _ = app.checkpoint("restart")
    assert busy
    with pytest.raises(DatabaseBusyError, match="attached by this process"):
        page_crcs(rig.db, 4096, 1, 1)
    assert our_locks(rig.db) == locks
    rig.ship()
    rig.expect_equal()


def test_an_open_and_close_of_our_own_would_drop_them(rig, app) -> None:
    """What the test above would see."""
    fill(app, 5)
    rig.ship()
    assert our_locks(rig.db) > 0
    os.close(os.open(rig.db, os.O_RDONLY))
    assert our_locks(rig.db) == 0


def test_a_probe_closes_what_it_opened(rig, app) -> None:
    before = len(os.listdir("/proc/self/fd"))
    probe(rig.db)
    assert len(os.listdir("/proc/self/fd")) == before
    assert attached_count() == 0


def test_two_names_of_one_inode_are_a_clear_error(rig, app, tmp_path, make_rig) -> None:
    fill(app, 3)
    other = make_rig(tmp_path / "other")
    os.link(rig.db, other.db)
    rig.ship()
    locks = our_locks(rig.db)
    with pytest.raises(DatabaseError, match="second name of a database that is already attached"):
        other.ship()
    assert our_locks(rig.db) == locks
    assert attached_count() == 1
    rig.expect_equal()


def test_a_hard_link_is_one_warning(rig, app, tmp_path, caplog) -> None:
    fill(app, 3)
    os.link(rig.db, tmp_path / "snapshot.db")
    for _ in range(3):
        rig.ship()
        rig.tenant.park(force=True)
        fill(app, 1)
    warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert [record.message for record in warnings] == [
        "the database file has more than one hard link"
    ]
    rig.ship()
    rig.expect_equal()


def test_whether_others_have_it_open_is_asked_without_touching_locks(rig, app) -> None:
    fill(app, 3)
    rig.ship()
    session = rig.tenant._engine.session
    locks = our_locks(rig.db)
    assert session.att.used_by_others()
    assert rig.tenant.idle_limit() == 60.0
    app.close()
    assert not session.att.used_by_others()
    assert rig.tenant.idle_limit() == 5.0
    assert our_locks(rig.db) == locks
    app.open()
    assert session.att.used_by_others()
    fill(app, 1)
    rig.ship()
    rig.expect_equal()


# --- names ---


def test_path_that_is_a_link(tmp_path, make_rig, start_app) -> None:
    """The WAL lies beside the target, wherever the link is."""
    target = tmp_path / "elsewhere" / "real.db"
    target.parent.mkdir()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "tenant.db").symlink_to(target)
    app = open_app(tmp_path / "data" / "tenant.db", start_app)
    fill(app, 5)
    rig = make_rig()
    rig.ship()
    fill(app, 5)
    rig.ship()
    session = rig.tenant._engine.session
    assert session.att.wal_path == Path(f"{target}-wal")
    assert not Path(f"{rig.db}-wal").exists()
    rig.expect_equal(source=_copy_of(rig, target))


def _copy_of(rig: Rig, target: Path) -> Path:
    real, rig.db = rig.db, target
    try:
        return rig.truth()
    finally:
        rig.db = real


# --- the file is replaced while it is attached ---


@pytest.mark.parametrize("how", ["cp", "mv", "rm+mv"])
@pytest.mark.parametrize("unshipped", [False, True])
def test_a_backup_is_put_back_while_the_database_is_attached(
    rig, app, start_app, tmp_path, caplog, how, unshipped
) -> None:
    caplog.set_level(logging.INFO)
    backup = tmp_path / "backup.db"
    app.execute("insert into t (a) values ('old backup')")
    app.execute("vacuum into ?", (str(backup),))
    fill(app, 30)
    rig.ship()
    app.checkpoint("passive")
    rig.ship()
    assert not rig.ship()
    if unshipped:
        app.execute("create table z (a)")
    app.exit()
    if how == "rm+mv":
        for name in (rig.db, Path(f"{rig.db}-wal"), Path(f"{rig.db}-shm")):
            name.unlink(missing_ok=True)
    command = ["cp", backup, rig.db] if how == "cp" else ["mv", backup, rig.db]
    subprocess.run(command, check=True)  # our own close of the file would drop our locks
    rig.ship()
    assert differing_pages(rig.truth(), rig.restored()) == []
    assert len(causes(caplog)) == 2
    assert ("written by something other" if how == "cp" else "database file was") in causes(caplog)[
        1
    ]


def test_a_replaced_file_that_an_application_writes_at_once(rig, app, start_app, tmp_path) -> None:
    fill(app, 20)
    rig.ship()
    app.exit()
    other = tmp_path / "other.db"
    with open_app(other, start_app) as with_other:
        fill(with_other, 40)
    for name in (Path(f"{rig.db}-wal"), Path(f"{rig.db}-shm")):
        name.unlink(missing_ok=True)
    other.rename(rig.db)
    again = open_app(rig.db, start_app)
    fill(again, 3)
    rig.ship()
    fill(again, 3)
    rig.ship()
    rig.expect_equal()


def test_a_removed_database_is_waited_for(rig, app, start_app) -> None:
    fill(app, 20)
    rig.ship()
    app.exit()
    for name in (rig.db, Path(f"{rig.db}-wal"), Path(f"{rig.db}-shm")):
        name.unlink(missing_ok=True)
    with pytest.raises(DatabaseError, match="does not exist"):
        rig.ship()
    assert not rig.tenant.attached
    again = open_app(rig.db, start_app)
    fill(again, 2)
    rig.ship()
    rig.expect_equal()


# --- the order at attach ---


def commit_checkpoint_commit(app: App) -> None:
    app.execute("update t set a = randomblob(2000) where id < 4")
    app.checkpoint("passive")
    app.execute("update t set a = randomblob(2000) where id > 17")


def sealed(rig: Rig, app: App) -> None:
    fill(app, 20)
    rig.ship()
    app.checkpoint("passive")
    rig.ship()
    rig.park()
    assert rig.tenant._engine.state.fingerprint is not None


@pytest.mark.parametrize("moment", ["before-begin", "between", "after-comparing"])
def test_commit_checkpoint_commit_while_attaching(rig, app, monkeypatch, moment) -> None:
    sealed(rig, app)
    begin, compare = Attachment.begin, Session.begin

    def acting_begin(self: Attachment) -> None:
        if moment == "before-begin":
            commit_checkpoint_commit(app)
        begin(self)
        if moment == "between":
            commit_checkpoint_commit(app)

    def acting_compare(self: Session, state) -> None:
        compare(self, state)
        if moment == "after-comparing":
            commit_checkpoint_commit(app)

    with monkeypatch.context() as patch:
        patch.setattr(Attachment, "begin", acting_begin)
        patch.setattr(Session, "begin", acting_compare)
        rig.ship()
    rig.ship()
    rig.expect_equal()


def test_comparing_before_r_begins_loses_data(rig, app, monkeypatch) -> None:
    """What the test above would see: the same three steps in the wrong order."""
    sealed(rig, app)

    def wrong_order(self: Session, state) -> None:
        self.unbroken = Fingerprint.of(self.att.stat()) == state.fingerprint
        commit_checkpoint_commit(app)
        self.att.begin()

    with monkeypatch.context() as patch:
        patch.setattr(Session, "begin", wrong_order)
        rig.ship()
    rig.ship()
    assert differing_pages(rig.truth(), rig.restored()) != []


# --- fingerprints and power cuts ---


def change_unseen(rig: Rig, start_app: Callable[..., App]) -> None:
    """Change a row of the closed database and put size and time back."""
    status = rig.db.stat()
    copy = rig.folder / "changed.db"
    shutil.copyfile(rig.db, copy)
    with start_app(copy, journal_mode=None) as app:
        app.execute("update t set a = zeroblob(2000) where id = 3")
    content = copy.read_bytes()
    assert len(content) == status.st_size
    with rig.db.open("r+b") as file:
        file.write(content)
        file.flush()
        os.utime(file.fileno(), ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize("clean_stop", [True, False], ids=["clean-stop", "power-cut"])
def test_unchanged_fingerprint_after_a_reboot(
    rig, start_app, monkeypatch, caplog, clean_stop
) -> None:
    """Ext4 may keep inode, size, mtime and ctime of a file whose content a power cut changed."""
    caplog.set_level(logging.INFO)
    of = Fingerprint.of
    monkeypatch.setattr(Fingerprint, "of", lambda status: replace(of(status), ctime_ns=0))
    app = open_app(rig.db, start_app)
    fill(app, 20)
    rig.ship()
    app.close()
    rig.park()
    first_boot = rig.tenant._engine.state.boot_id
    change_unseen(rig, start_app)
    monkeypatch.setattr(tenant_hold, "boot_id", lambda: "the boot after")
    rig.trusted = frozenset({first_boot, "the boot after"}) if clean_stop else frozenset()
    rig.restart(clean=clean_stop)
    assert not rig.tenant.changed()  # an idle tenant is not opened for a diff
    app.open()
    fill(app, 1)
    assert rig.tenant.changed()
    rig.ship()
    if clean_stop:  # then the fingerprint counts, and only the WAL was read
        assert causes(caplog) == ["this is the first backup"]
        assert differing_pages(rig.truth(), rig.restored()) != []
    else:
        assert len(causes(caplog)) == 2
        assert "machine was restarted" in causes(caplog)[1]
        rig.expect_equal()


@pytest.mark.parametrize("clean", [True, False], ids=["clean-stop", "killed"])
def test_a_reboot_counts_until_its_diff_is_done(rig, start_app, monkeypatch, clean) -> None:
    """The first run after a power cut cannot stage; the second must not trust the WAL either."""
    app = open_app(rig.db, start_app)
    fill(app, 20)
    app.checkpoint("passive")
    rig.ship()
    fill(app, 1)  # a generation that goes on: its last frame would prove everything
    rig.ship()
    rig.tenant.close()
    lost_change(rig, app)
    monkeypatch.setattr(tenant_hold, "boot_id", lambda: "the boot after")
    rig.trusted = frozenset()
    rig.restart(clean=False)
    app.execute(_INSERT)
    osfs.arm([Failpoint("stage.open", 1, "enospc")])
    with pytest.raises(DatabaseError, match="no space"):
        rig.ship()
    rig.restart(clean=clean)
    app.execute(_INSERT)
    rig.ship()
    assert differing_pages(rig.truth(), rig.restored()) == []


def lost_change(rig: Rig, app: App) -> None:
    """Change a page of the file that no frame tells of, as a power cut may."""
    page = app.execute("select rootpage from sqlite_schema where name = 't'")[0][0] + 1
    command = ["dd", "if=/dev/urandom", f"of={rig.db}", "bs=1", "count=8", "conv=notrunc"]
    subprocess.run([*command, f"seek={page * 4096 - 100}"], check=True, stderr=subprocess.DEVNULL)


@pytest.mark.parametrize("clean", [True, False], ids=["clean-stop", "killed"])
def test_a_foreign_write_counts_until_its_diff_is_done(rig, app, clean) -> None:
    fill(app, 20)
    rig.ship()
    app.checkpoint("passive")
    rig.ship()
    assert not rig.ship()
    lost_change(rig, app)
    osfs.arm([Failpoint("stage.open", 1, "enospc")])
    with pytest.raises(DatabaseError, match="no space"):
        rig.ship()
    rig.restart(clean=clean)
    rig.ship()
    assert rig.durable == 2
    copy = rig.folder / "file-alone.db"  # everything is backfilled: the file is the database
    subprocess.run(["cp", rig.db, copy], check=True)
    assert differing_pages(copy, rig.restored()) == []


def test_a_fingerprint_of_a_young_file_is_not_taken(rig, app) -> None:
    fill(app, 3)
    app.checkpoint("passive")
    rig.ship()
    assert not rig.tenant.park()
    assert rig.tenant.attached
    rig.park()
    assert rig.tenant._engine.state.fingerprint is not None


def test_a_base_ahead_of_the_replica_is_not_diffed_against(rig, app) -> None:
    """Staged, not uploaded, lost in a power cut: the table must describe the replica."""
    fill(app, 20)
    rig.ship()
    for row in (3, 9):
        app.execute("update t set a = randomblob(2000) where id = ?", (row,))
        assert rig.stage()  # no upload
    assert rig.tenant.status().local_txid == 3
    rig.crash()
    for path in rig.spec().state_path.glob("*.ltx"):
        if path.name != "0000000000000001-0000000000000001.ltx":
            path.unlink()
    rig.restart(clean=False)
    app.execute("update t set a = randomblob(2000) where id = 15")
    rig.ship()
    assert rig.durable == 2
    rig.expect_equal()


def test_staged_files_of_a_killed_run_are_uploaded_and_gone_on_from(rig, app) -> None:
    fill(app, 20)
    rig.ship()
    fill(app, 1)
    rig.stage()
    rig.restart(clean=False)
    fill(app, 1)
    before = salts(Path(f"{rig.db}-wal"))
    rig.ship()
    assert salts(Path(f"{rig.db}-wal")) == before
    assert rig.durable == 3
    for txid in (2, 3):
        rig.restored(txid)
    rig.expect_equal()
