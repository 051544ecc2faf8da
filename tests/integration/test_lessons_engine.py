"""What other replicators lost data by (tests/LESSONS.md), done to the engine of pyrep."""

from __future__ import annotations

import io
import logging
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from fixtures.app import App, differing_pages
from fixtures.effort import times
from fixtures.fakeclock import FakeClock
from fixtures.power import append_commits, salts
from fixtures.rig import Rig
from fixtures.ticking import Hammer
from pyrep.errors import DatabaseError, LTXGapError, ReplicaTemporaryError, TXNotAvailableError
from pyrep.ids import TXID
from pyrep.ltxfile import FileInfo
from pyrep.restore.execute import RestoreOptions, restore
from pyrep.restore.state import write_tenant_state
from pyrep.sqlite import Attachment
from pyrep.storage.memory import MemoryReplicaClient
from pyrep.tenant.capture import Capture

_INSERT = "insert into t (a) values (randomblob(2000))"


@pytest.fixture
def make_rig(tmp_path: Path) -> Iterator[Callable[..., Rig]]:
    """Return a function that makes a rig with these settings; all are closed at the end."""
    with ExitStack() as stack:

        def build(folder: Path = tmp_path, **settings: Any) -> Rig:
            rig = Rig(folder, **settings)
            stack.callback(rig.close)
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
    app.execute("create table t (id integer primary key, a)")
    return app


def fill(app: App, rows: int) -> None:
    for _ in range(rows):
        app.execute(_INSERT)


def causes(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.cause for record in caplog.records if hasattr(record, "cause")]


# --- row 1: SQLite's own WAL-reset race ---

_WITH_VERSION = """
import apsw
apsw.sqlite_lib_version = lambda: {version!r}
import pyrep.sqlite
"""


@pytest.mark.parametrize(
    ("version", "accepted"),
    [("3.7.0", False), ("3.50.4", False), ("3.51.2", False), ("3.51.3", True), ("3.52.0", True)],
)
def test_a_sqlite_with_the_reset_race_is_refused(version: str, accepted: bool) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _WITH_VERSION.format(version=version)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode == 0) is accepted
    if not accepted:
        assert f"needs SQLite >= 3.51.3 in apsw, found {version}" in done.stderr


# --- row 3: checkpoint only what was staged ---


@pytest.mark.slow
def test_only_staged_frames_are_backfilled_by_us(make_rig, start_app, monkeypatch) -> None:
    rig = make_rig(min_checkpoint_page_count=10)
    with start_app(rig.db) as app:
        app.script(
            "create table t (i integer primary key, a);"
            "create table seq (n integer); insert into seq values (0)"
        )
    passive, seen = Attachment.passive, []

    def watched(self: Attachment):
        answer = passive(self)
        state = rig.tenant._engine.state
        header = self.wal_header()
        current = tuple(int.from_bytes(header[at : at + 4], "big") for at in (16, 20))
        if answer.log > 0 and current == state.salts:
            staged = (state.end_offset - 32) // (24 + state.page_size)
            seen.append((answer.backfilled, staged))
        return answer

    monkeypatch.setattr(Attachment, "passive", watched)
    with Hammer(rig.db, 3, busy_timeout_ms=1000, kinds="rows") as hammer:
        while len(seen) < times(150):
            rig.ship()
        hammer.finish()
    # The application's autocheckpoint is bounded by R too, and R by what was staged.
    assert [pair for pair in seen if pair[0] > pair[1]] == []
    rig.ship()
    rig.expect_equal()


# --- row 4: a file that declares growth holds every new page ---


def test_a_file_that_would_lack_new_pages_is_not_published(rig, app, monkeypatch) -> None:
    wal = Path(f"{rig.db}-wal")
    fill(app, 3)
    rig.ship()
    pages = app.execute("pragma page_count")[0][0]
    end = rig.tenant._engine.state.end_offset
    app.kill()
    rig.restart(clean=False)
    append_commits(wal, end, [pages + 5])
    with monkeypatch.context() as patch:
        patch.setattr(
            Capture, "_complete", lambda self, scan, view, page_size: (scan.pgnos, scan.offsets)
        )
        with pytest.raises(DatabaseError, match=f"would lack pages between {pages} and"):
            rig.ship()
    assert rig.durable == 1
    assert rig.tenant.status().pending_files == 0
    rig.ship()
    assert rig.durable == 2
    assert differing_pages(rig.truth(), rig.restored()) == []


# --- rows 5 and 27: while the daemon was away ---


def _checkpointed(app: App, rig: Rig, start_app) -> App:
    app.checkpoint("truncate")
    fill(app, 2)
    return app


def _vacuumed(app: App, rig: Rig, start_app) -> App:
    app.execute("delete from t where id % 2 = 0")
    app.execute("vacuum")
    app.checkpoint("truncate")
    return app


def _closed_last(app: App, rig: Rig, start_app) -> App:
    fill(app, 2)
    app.close()
    assert not Path(f"{rig.db}-wal").exists()
    return app


_PERSIST_WAL = """
import apsw, ctypes, sys
connection = apsw.Connection(sys.argv[1])
flag = ctypes.c_int(1)
assert connection.file_control("main", apsw.SQLITE_FCNTL_PERSIST_WAL, ctypes.addressof(flag))
connection.execute("insert into t (a) values (randomblob(2000))")
connection.close()
"""


def _persisted_wal(app: App, rig: Rig, start_app) -> App:
    app.close()
    subprocess.run([sys.executable, "-c", _PERSIST_WAL, str(rig.db)], check=True)
    assert Path(f"{rig.db}-wal").exists()
    return app


def _replaced(app: App, rig: Rig, start_app) -> App:
    app.close()
    with start_app(rig.folder / "other.db") as other:
        other.execute("create table o (a)")
        other.execute("insert into o values (randomblob(30000))")
    (rig.folder / "other.db").replace(rig.db)
    return app


def _state_deleted(app: App, rig: Rig, start_app) -> App:
    shutil.rmtree(rig.spec().state_path)
    return app


@pytest.mark.parametrize(
    ("deed", "cause"),
    [
        (_checkpointed, "WAL was restarted while nobody watched"),
        (_vacuumed, "WAL no longer holds"),
        (_closed_last, "WAL no longer holds"),
        (_persisted_wal, "WAL was re"),
        (_replaced, "WAL no longer holds"),
        (_state_deleted, None),
    ],
)
@pytest.mark.parametrize("clean", [True, False], ids=["clean-stop", "killed"])
def test_what_happened_while_the_daemon_was_away_is_found_and_named(
    rig, app, start_app, caplog, deed, cause, clean
) -> None:
    caplog.set_level(logging.INFO)
    fill(app, 30)
    rig.ship()
    rig.restart(clean=clean)
    deed(app, rig, start_app)
    rig.ship()
    if cause is None:
        assert rig.durable == 1  # adopted: the database equals the replica's end
    else:
        assert rig.durable == 2  # a new number: an old one never gets another content
        assert len(causes(caplog)) == 2
        assert cause in causes(caplog)[1]
        assert caplog.records[-1].db == str(rig.db)
    rig.expect_equal()


# --- row 7: a restored database goes on after the replica's newest TXID ---


def test_a_restored_database_is_numbered_on(rig, app, start_app) -> None:
    for _ in range(3):
        fill(app, 3)
        rig.ship()
    rig.tenant.close()
    app.exit()
    rig.db.unlink()
    write_tenant_state(rig.spec(), restore(rig.client, rig.db, RestoreOptions()))
    rig.restart(clean=False)
    with start_app(rig.db, autocheckpoint=0) as again:
        again.execute(_INSERT)
        rig.ship()
        assert rig.durable == 4
        rig.expect_equal()
    assert rig.acknowledged[-1].size < rig.acknowledged[0].size * 2


def test_a_restore_to_an_older_state_is_never_numbered_below(rig, app, start_app) -> None:
    for _ in range(3):
        fill(app, 3)
        rig.ship()
    rig.tenant.close()
    app.exit()
    rig.db.unlink()
    write_tenant_state(rig.spec(), restore(rig.client, rig.db, RestoreOptions(txid=1)))
    rig.restart(clean=False)
    with start_app(rig.db, autocheckpoint=0) as again:
        again.execute(_INSERT)
        rig.ship()
        assert rig.durable == 4
        rig.expect_equal()


# --- row 8: times never fall ---


def test_times_of_files_never_fall(make_rig, start_app) -> None:
    clock = FakeClock()
    rig = make_rig(clock=clock)
    app = open_app(rig.db, start_app)
    for step in (10, -3600, 5, 7200):
        clock.advance(step)
        fill(app, 1)
        rig.ship()
    rig.restart()
    clock.advance(-7000)
    fill(app, 1)
    rig.ship()
    moments = [info.timestamp_ms for info in rig.client.list_ltx(0)]
    assert moments == sorted(moments)
    assert len(moments) == 5
    rig.expect_equal()


# --- row 10: a WAL that is used again at the same size ---


@pytest.mark.parametrize("parked", [False, True])
def test_a_wal_that_is_used_again_at_the_same_size_is_noticed(rig, app, parked) -> None:
    wal = Path(f"{rig.db}-wal")
    fill(app, 30)
    app.checkpoint("passive")
    rig.ship()
    assert not rig.ship()
    size = wal.stat().st_size
    for _ in range(4):
        if parked:
            rig.park()
            assert not rig.tenant.changed()
        generation = salts(wal)
        fill(app, 1)
        assert wal.stat().st_size == size
        assert salts(wal) != generation
        if parked:
            assert rig.tenant.changed()
        assert rig.ship()
        rig.expect_equal()
        app.checkpoint("passive")
        assert not rig.ship()


# --- row 11: what is not durable is kept and sent again, in order ---


class Faults:
    """Fail the steps of a memory replica that a test names."""

    def __init__(self) -> None:
        self.steps: set[str] = set()

    def __call__(self, op: str, info: FileInfo | None) -> None:
        if op in self.steps:
            raise ReplicaTemporaryError(f"injected failure of {op}")


@pytest.mark.parametrize("step", ["write", "write-answer"])
@pytest.mark.parametrize("end", ["goes-on", "clean-stop", "killed"])
def test_failed_uploads_are_repeated_and_counted_without_gaps(
    make_rig, start_app, step, end
) -> None:
    faults = Faults()
    rig = make_rig(client=MemoryReplicaClient(faults=faults))
    app = open_app(rig.db, start_app)
    fill(app, 10)
    rig.ship()
    faults.steps = {step}
    for _ in range(3):
        fill(app, 1)
        assert rig.stage()
        with pytest.raises(ReplicaTemporaryError):
            rig.upload()
        lost = 0 if step == "write" else rig.durable - 1  # only its answer was: found on the retry
        assert rig.durable == 1 + lost < rig.tenant.status().local_txid
    assert rig.tenant.status().local_txid == 4
    faults.steps = set()
    if end != "goes-on":
        rig.restart(clean=end == "clean-stop")
    fill(app, 1)
    rig.ship()
    assert rig.durable == 5
    assert [info.max_txid for info in rig.client.list_ltx(0)] == [1, 2, 3, 4, 5]
    rig.expect_equal()


@pytest.mark.parametrize("end", ["goes-on", "clean-stop", "killed"])
def test_a_put_of_a_killed_run_that_arrives_late_is_that_txid(rig, app, end) -> None:
    """Its staged file is lost and another content was staged under its number."""
    fill(app, 10)
    rig.ship()
    app.execute("update t set a = randomblob(2000) where id = 3")
    rig.stage()
    name = "0000000000000002-0000000000000002.ltx"
    sent = (rig.spec().state_path / name).read_bytes()
    truth = rig.truth()
    rig.crash()
    (rig.spec().state_path / name).unlink()
    rig.restart(clean=False)
    app.execute("update t set a = randomblob(2000) where id = 7")
    rig.stage()
    assert (rig.spec().state_path / name).read_bytes() != sent
    rig.client.write_ltx(0, TXID(2), TXID(2), io.BytesIO(sent))
    rig.upload()
    if end != "goes-on":
        rig.restart(clean=end == "clean-stop")
    rig.ship()
    assert rig.durable == 3
    rig.expect_equal(2, source=truth)
    rig.expect_equal()


def test_the_only_copy_is_kept_until_the_replica_has_it(make_rig, start_app) -> None:
    """Also rows 22 and 30: what is durable makes room, and nothing else does."""
    faults, limit = Faults(), 40_000
    rig = make_rig(client=MemoryReplicaClient(faults=faults), spool_limit=limit)
    app = open_app(rig.db, start_app)
    folder = rig.spec().state_path

    def staged() -> list[int]:
        return sorted(int(path.name[:16], 16) for path in folder.glob("*.ltx"))

    fill(app, 5)
    rig.ship()
    faults.steps = {"write"}
    for _ in range(4):
        fill(app, 1)
        rig.stage()
    assert staged()[-4:] == [2, 3, 4, 5]
    faults.steps = set()
    for _ in range(30):
        rig.ship()
        assert staged()[-1] == rig.durable  # it proves the position at the next start
        assert sum(path.stat().st_size for path in folder.glob("*.ltx")) <= limit
        fill(app, 1)
    assert sum(info.size for info in rig.acknowledged) > 2 * limit


# --- row 30: what a review of another replicator found ---


def test_a_target_that_the_replica_does_not_reach_is_an_error(rig, app) -> None:
    for _ in range(3):
        fill(app, 1)
        rig.ship()
    with pytest.raises(TXNotAvailableError):
        rig.restored(4)
    (rig.replica / "ltx" / "0" / "0000000000000002-0000000000000002.ltx").unlink()
    with pytest.raises(LTXGapError):
        rig.restored(3)


def test_vacuum_that_shrinks_is_shipped_whole(rig, app) -> None:
    fill(app, 200)
    rig.ship()
    app.execute("delete from t where id > 20")
    app.execute("vacuum")
    rig.ship()
    output = rig.restored()
    assert output.stat().st_size == app.execute("pragma page_count")[0][0] * 4096
    rig.expect_equal()


def test_a_rolled_back_transaction_leaves_no_trace(rig, app) -> None:
    """With a cache of one page its frames are in the WAL before it is rolled back."""
    fill(app, 20)
    rig.ship()
    app.execute("pragma cache_size = 1")
    app.execute("begin")
    fill(app, 50)
    spilled = Path(f"{rig.db}-wal").stat().st_size
    assert not rig.ship()
    app.execute("rollback")
    assert Path(f"{rig.db}-wal").stat().st_size == spilled
    assert not rig.ship()
    fill(app, 1)
    rig.ship()
    rig.expect_equal()


def test_a_writer_killed_in_the_middle_of_a_transaction(rig, app, start_app) -> None:
    fill(app, 20)
    rig.ship()
    doomed = start_app(rig.db)
    doomed.execute("pragma cache_size = 1")
    doomed.execute("begin")
    doomed.execute("update t set a = randomblob(2000)")
    rig.ship()
    doomed.kill()
    fill(app, 1)
    rig.ship()
    rig.expect_equal()


@pytest.mark.parametrize("page_size", [512, 65536])
def test_both_ends_of_the_page_sizes(make_rig, start_app, page_size) -> None:
    rig = make_rig(idle_timeout=timedelta(seconds=60))
    app = start_app(rig.db, page_size=page_size, busy_timeout_ms=100, autocheckpoint=0)
    app.execute("create table t (id integer primary key, a)")
    for _ in range(3):
        fill(app, 20)
        rig.ship()
        app.execute("delete from t where id % 3 = 0")
        app.checkpoint("restart")
        rig.ship()
        rig.expect_equal()


# --- row 24: a restore does not grow with the database ---

_PEAK = """
import resource, sys
from pathlib import Path
from pyrep.restore.execute import RestoreOptions, restore
from pyrep.storage.file import FileReplicaClient
restore(FileReplicaClient(Path(sys.argv[1])), Path(sys.argv[2]), RestoreOptions())
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_a_restore_needs_no_memory_for_each_page(tmp_path, make_rig, start_app) -> None:
    peaks = []
    for number, rows in enumerate((1, 10)):
        rig = make_rig(tmp_path / str(number))
        app = open_app(rig.db, start_app)
        for _ in range(rows):
            app.execute("insert into t (a) values (zeroblob(12000000))")
        rig.ship()
        output = tmp_path / f"out-{number}.db"
        done = subprocess.run(
            [sys.executable, "-c", _PEAK, str(rig.replica), str(output)],
            capture_output=True,
            text=True,
            check=True,
        )
        peaks.append(int(done.stdout) * 1024)
        assert differing_pages(rig.truth(), output) == []
        app.exit()
    assert peaks[1] - peaks[0] < 40_000_000  # the second database is 108 MB larger
