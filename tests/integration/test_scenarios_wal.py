"""Scenarios of the WAL: phantom commits, holes, restarts under our hands, shrink and growth."""

from __future__ import annotations

import logging
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fixtures.app import App, AppError, differing_pages, integrity
from fixtures.power import (
    append_commits,
    frame_count,
    kill_library,
    lose_frame,
    salts,
)
from fixtures.rig import Rig
from pyrep.ltxio import LTXWriter
from pyrep.sqlite import Attachment
from pyrep.tenant import hold as tenant_hold
from pyrep.tenant.capture import Capture
from pyrep.tenant.session import Session

_INSERT = "insert into t (a) values (randomblob(2000))"


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path)
    yield rig
    rig.close()


@pytest.fixture
def app(rig: Rig, start_app: Callable[..., App]) -> App:
    app = start_app(rig.db, busy_timeout_ms=100, autocheckpoint=0)
    app.execute("create table t (id integer primary key, a)")
    return app


@pytest.fixture
def wal(rig: Rig) -> Path:
    return Path(f"{rig.db}-wal")


def fill(app: App, rows: int) -> None:
    for _ in range(rows):
        app.execute(_INSERT)


def rows_of(output: Path, table: str, start_app: Callable[..., App]) -> list[object]:
    with start_app(output, journal_mode=None) as reader:
        return [row[0] for row in reader.execute(f"select a from {table} order by rowid")]


def once_before(monkeypatch: pytest.MonkeyPatch, owner: type, name: str, act: Callable) -> list:
    """Run ``act`` before the first call of a method; return the list of the calls it saw."""
    original, calls = getattr(owner, name), []

    def hooked(self, *arguments, **named):
        calls.append(name)
        if len(calls) == 1:
            act()
        return original(self, *arguments, **named)

    monkeypatch.setattr(owner, name, hooked)
    return calls


# --- a writer that died between the frames and the index ---


@pytest.mark.crash
@pytest.mark.parametrize("seen", ["shipped-between", "covered-before"])
@pytest.mark.parametrize("held", ["attached", "attaching"])
def test_phantom_commit(rig, app, wal, start_app, monkeypatch, tmp_path, seen, held) -> None:
    library, trigger = kill_library(tmp_path), tmp_path / "now"
    app.execute("create table u (a)")
    app.execute("insert into u values ('before')")
    if held == "attached":
        rig.ship()
        rig.ship()
    monkeypatch.setenv("LD_PRELOAD", str(library))
    monkeypatch.setenv("KILL_WHEN", str(trigger))
    doomed = start_app(rig.db, synchronous="full")
    monkeypatch.delenv("LD_PRELOAD")
    committed = frame_count(wal)
    trigger.touch()
    doomed.execute("begin immediate")
    doomed.execute("insert into t (a) values ('phantom')")
    doomed.execute("insert into u values ('phantom')")
    with pytest.raises(AppError, match=r"died|no answer"):
        doomed.execute("commit")
    trigger.unlink()
    phantom = frame_count(wal) - committed
    assert phantom >= 2  # its last frame is a valid commit frame that nobody may believe
    if seen == "shipped-between":
        assert rig.ship() == (held == "attaching")
        assert rows_of(rig.restored(), "u", start_app) == ["before"]
    app.execute("insert into u values ('real')")
    assert frame_count(wal) == committed + phantom  # the real commit lies over the phantom's frames
    rig.ship()
    rig.expect_equal()
    app.checkpoint("truncate")
    rig.ship()
    app.execute("insert into u values ('after')")
    rig.ship()
    rig.expect_equal()
    output = rig.restored()
    assert rows_of(output, "u", start_app) == ["before", "real", "after"]
    assert rows_of(output, "t", start_app) == []


# --- a hole in the WAL after a power cut ---


@pytest.mark.crash
@pytest.mark.parametrize("boot", ["the-same-boot", "another-boot"])
@pytest.mark.parametrize("later", [1, 12])
def test_hole_in_the_wal_after_a_power_cut(
    rig, app, wal, start_app, monkeypatch, caplog, later, boot
) -> None:
    caplog.set_level(logging.INFO)
    fill(app, 8)
    rig.ship()
    app.kill()
    rig.crash()
    Path(f"{rig.db}-shm").unlink(missing_ok=True)
    lose_frame(wal, frame_count(wal) - 4)
    if boot == "another-boot":
        monkeypatch.setattr(tenant_hold, "boot_id", lambda: "after the power cut")
        rig.trusted = frozenset()
    rig.restart(clean=False)
    again = start_app(rig.db, busy_timeout_ms=100, autocheckpoint=0)
    fill(again, later)  # they lie below and, with more of them, over our last frame
    rig.ship()
    rig.expect_equal()
    causes = [record.cause for record in caplog.records if hasattr(record, "cause")]
    expected = "machine was restarted" if boot == "another-boot" else "last synced frame"
    assert len(causes) == 2, causes  # the first backup, and this
    assert expected in causes[1]
    fill(again, 3)
    rig.ship()
    rig.expect_equal()


# --- the WAL is restarted while its old content is being read ---


def on_mark_zero(rig: Rig, app: App) -> None:
    """Leave the tenant shipped and parked, then changed with everything backfilled."""
    fill(app, 20)
    rig.ship()
    rig.tenant.park(force=True)
    app.checkpoint("truncate")
    fill(app, 10)
    app.execute("update t set a = randomblob(1900) where id % 5 = 0")
    _, log, done = app.checkpoint("passive")
    assert log == done


@pytest.mark.parametrize("place", [(Capture, "current_crcs"), (LTXWriter, "add_pages")])
def test_wal_overwritten_under_a_diff(rig, app, wal, monkeypatch, place) -> None:
    on_mark_zero(rig, app)
    truth, before = rig.truth(), salts(wal)
    calls = once_before(monkeypatch, *place, lambda: fill(app, 40))
    rig.ship()
    assert calls
    assert salts(wal) != before, "the application did not restart the WAL"
    rig.expect_equal(2, source=truth)
    rig.ship()
    rig.expect_equal()


def test_wal_overwritten_under_a_first_snapshot(rig, app, wal, monkeypatch) -> None:
    fill(app, 30)
    app.checkpoint("passive")
    truth, before = rig.truth(), salts(wal)
    calls = once_before(monkeypatch, LTXWriter, "add_pages", lambda: fill(app, 50))
    rig.ship()
    assert calls
    assert salts(wal) != before, "the application did not restart the WAL"
    rig.expect_equal(1, source=truth)
    rig.ship()
    rig.expect_equal()


@pytest.mark.parametrize("mode", ["passive", "full", "restart", "truncate"])
def test_checkpoint_under_a_snapshot_that_reads_the_wal(rig, app, monkeypatch, mode) -> None:
    """R stands above mark 0: its frames may be backfilled, but stay where they are."""
    fill(app, 30)
    truth = rig.truth()

    def act() -> None:
        fill(app, 3)
        app.checkpoint(mode)
        fill(app, 3)

    once_before(monkeypatch, LTXWriter, "add_pages", act)
    rig.ship()
    rig.expect_equal(1, source=truth)
    rig.ship()
    rig.expect_equal()


@pytest.mark.parametrize("place", [(Capture, "stage_range"), (LTXWriter, "add_pages")])
def test_mark_zero_lets_the_wal_be_restarted_once_and_nothing_tears(
    rig, app, wal, monkeypatch, place
) -> None:
    fill(app, 20)
    rig.ship()
    app.checkpoint("passive")
    rig.ship()  # R stands on mark 0 now
    first = salts(wal)
    fill(app, 2)
    assert salts(wal) != first, "R was not on mark 0"
    truth, generation = rig.truth(), salts(wal)

    def act() -> None:
        app.checkpoint("passive")
        app.checkpoint("truncate")
        fill(app, 30)

    once_before(monkeypatch, *place, act)
    rig.ship()
    assert salts(wal) == generation, "frames that were not read yet could be overwritten"
    rig.expect_equal(2, source=truth)
    rig.ship()
    rig.expect_equal()


def test_a_restart_between_header_and_index_is_looked_at_again(
    rig, app, wal, monkeypatch, caplog
) -> None:
    """The header of one generation and the mxFrame of the next prove nothing together."""
    caplog.set_level(logging.INFO)
    fill(app, 20)
    rig.ship()
    app.checkpoint("passive")
    rig.ship()
    generation = salts(wal)
    calls = once_before(monkeypatch, Attachment, "noop", lambda: fill(app, 2))
    rig.ship()
    assert calls
    assert salts(wal) != generation
    assert [record.cause for record in caplog.records if hasattr(record, "cause")] == [
        "this is the first backup"
    ]
    rig.expect_equal()


def test_a_reader_on_mark_zero_does_not_protect_the_old_frames(rig, app, wal) -> None:
    """The ground of the tests above: frames that were backfilled are lost to a restart."""
    fill(app, 20)
    app.checkpoint("passive")
    rig.ship()
    old = wal.read_bytes()
    fill(app, 5)
    assert wal.read_bytes()[: len(old) // 4] != old[: len(old) // 4]
    rig.ship()
    rig.expect_equal()


# --- the database shrinks and grows inside one range ---


@pytest.mark.parametrize("backfilled", [True, False], ids=["cut-off-the-file", "in-the-wal-only"])
def test_shrink_and_growth_in_one_range(rig, start_app, monkeypatch, backfilled) -> None:
    app = start_app(rig.db, busy_timeout_ms=100, autocheckpoint=0, auto_vacuum="incremental")
    app.execute("create table t (a)")
    app.execute("create table k (a)")
    for _ in range(60):
        app.execute("insert into t values (zeroblob(3000) || randomblob(1000))")
    app.checkpoint("truncate")
    rig.ship()
    app.execute("insert into k values (0)")

    def shrink() -> None:
        app.execute("delete from t")
        app.execute("vacuum")

    with monkeypatch.context() as patch:
        # After the sync, before R moves: R's mark then lies behind frames that were not shipped.
        once_before(patch, Session, "move", shrink)
        rig.ship()
    pages = app.execute("pragma page_count")[0][0]
    size = rig.db.stat().st_size
    if backfilled:
        app.checkpoint("passive")
        assert rig.db.stat().st_size < size
    app.execute("begin")
    for _ in range(60):
        app.execute("insert into t values (zeroblob(3000) || randomblob(1000))")
    app.execute("delete from t where rowid % 2 = 0")
    app.execute("commit")
    assert app.execute("pragma page_count")[0][0] > pages
    rig.ship()
    expect_as_the_file_is(rig, app)


def expect_as_the_file_is(rig: Rig, app: App) -> None:
    """Compare a restore with the file after the application's own checkpoint.

    A page that was cut off and came back unwritten is what the file holds; a copy of file and
    WAL would be recovered from the WAL's first frame on and bring its older content back.
    """
    rig.stage()
    _, log, done = app.checkpoint("passive")
    assert log == done
    copy = rig.folder / "file-alone.db"
    subprocess.run(["cp", rig.db, copy], check=True)  # our own close would drop our locks
    output = rig.restored()
    assert differing_pages(copy, output) == []
    assert integrity(output) == ["ok"]


@pytest.mark.parametrize("sizes", [(5,), (-3, 2), (-3,), (7, -2, 4)])
@pytest.mark.parametrize("in_the_wal", [True, False], ids=["in-the-wal", "in-the-file"])
def test_pages_that_a_commit_adds_without_a_frame(rig, app, wal, sizes, in_the_wal) -> None:
    """Today's SQLite writes every page that it adds; the format does not ask for it."""
    fill(app, 20)
    rig.ship()
    if not in_the_wal:
        app.checkpoint("passive")
        rig.ship()
        app.execute("pragma user_version = 7")  # a restart; page 1 is written
        rig.ship()
    pages = app.execute("pragma page_count")[0][0]
    end = rig.tenant._engine.state.end_offset
    app.kill()
    rig.crash()
    rig.restart(clean=False)
    commits = [pages + size for size in sizes]
    append_commits(wal, end, commits)
    rig.ship()
    assert rig.durable == (3 if not in_the_wal else 2)
    assert rig.acknowledged[-1].size < rig.acknowledged[0].size
    output = rig.restored()
    assert differing_pages(rig.truth(), output) == []
    assert output.stat().st_size == commits[-1] * 4096


def test_pages_cut_off_the_file_come_back_as_zeros(rig, app, wal, start_app) -> None:
    """A checkpoint between shrink and growth took them away; the replica still has them."""
    fill(app, 20)
    app.checkpoint("passive")
    app.execute("pragma user_version = 7")  # a restart: page 1 alone is in the WAL
    rig.ship()
    pages = app.execute("pragma page_count")[0][0]
    end = rig.tenant._engine.state.end_offset
    app.kill()
    rig.crash()
    append_commits(wal, end, [pages - 3])
    with start_app(rig.db, journal_mode=None, autocheckpoint=0) as other:
        other.checkpoint("passive")
        assert rig.db.stat().st_size == (pages - 3) * 4096
        other.kill()
    append_commits(wal, end + 24 + 4096, [pages + 2])
    rig.restart(clean=False)
    rig.ship()
    assert rig.durable == 2
    assert rig.acknowledged[-1].size < rig.acknowledged[0].size / 2
    assert differing_pages(rig.truth(), rig.restored()) == []
