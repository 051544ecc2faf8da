"""Verification: whole replicas pass, each kind of damage is found, a live replica never alarms."""

from __future__ import annotations

import contextlib
import itertools
import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fixtures.app import App, Writer
from fixtures.cli import pyrep
from fixtures.damage import damage
from fixtures.fakeclock import FakeClock
from fixtures.golden import CASES, case, golden_root
from fixtures.host import Host
from fixtures.ltxbytes import build_ltx
from fixtures.rig import Rig
from pyrep import ltxio, osfs
from pyrep.errors import DatabaseBusyError, LTXNotFoundError, PyrepError
from pyrep.ids import SNAPSHOT_LEVEL, TXID
from pyrep.ltxfile import FileInfo
from pyrep.storage.file import FileReplicaClient
from pyrep.verify import Known, Verification, VerifyOptions, verify_replica

__all__ = ["golden_root"]

StartApp = Callable[..., App]


def verified(replica: Path, known: Known | None = None, **options: object) -> Verification:
    """Verify a file replica without waiting between two looks."""
    client = FileReplicaClient(replica)
    given = known or Known()
    return verify_replica(
        client,
        VerifyOptions(clock=FakeClock(), known=lambda: given, **options),  # type: ignore[arg-type]
    )


def kinds(found: Verification) -> set[str]:
    return {finding.kind for finding in found.findings}


def expect_whole(found: Verification, newest: int) -> None:
    assert found.findings == ()
    assert found.ok
    assert found.txid == newest


# --- whole replicas ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_a_replica_of_litestream_passes(golden_root: Path, tmp_path: Path, name: str) -> None:
    golden = case(golden_root, name)
    found = verified(golden.replica, integrity_check="full", scratch=tmp_path)
    expect_whole(found, golden.max_txid)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def own_replica(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a replica of ours with two snapshots and levels 1 and 2 over twelve transactions."""
    rig = Rig(tmp_path_factory.mktemp("own"))
    with App(rig.db) as app:
        app.script("create table t (a, b); create table few (a); insert into few values (0)")
        for number in range(11):
            if number == 7:
                app.execute("update few set a = 1")
            else:
                app.execute("insert into t values (?, randomblob(3000))", [number])
            if number == 5:
                app.execute("delete from t where a < 3")
            rig.ship()
            if number in (4, 9):
                assert rig.tenant.snapshot()
                rig.upload()
        for low, high in ((1, 4), (5, 8)):
            _merge(rig, 0, 1, low, high)
        _merge(rig, 1, 2, 1, 8)
        rig.tenant.close()
    return rig.replica


def _merge(rig: Rig, source: int, level: int, low: int, high: int) -> None:
    """Store one file of a level, made of those of another."""
    folder = rig.replica / "ltx"
    inputs = [
        folder / str(source) / info.name
        for info in rig.client.list_ltx(source)
        if low <= info.min_txid and info.max_txid <= high
    ]
    target = folder / str(level) / f"{low:016x}-{high:016x}.ltx"
    target.parent.mkdir(exist_ok=True)
    sources = [path.open("rb") for path in inputs]
    with target.open("w+b") as out:
        ltxio.merge([file.fileno() for file in sources], out.fileno())
    for file in sources:
        file.close()


def test_a_replica_of_ours_passes_and_is_proven(own_replica: Path, tmp_path: Path) -> None:
    found = verified(own_replica, integrity_check="full", scratch=tmp_path)
    expect_whole(found, 11)
    assert found.proven
    assert found.files == 11 + 2 + 1 + 2


# --- damage -----------------------------------------------------------------------------------


class Patient:
    """Hold a copy of a replica that may be damaged again and again."""

    def __init__(self, replica: Path, folder: Path) -> None:
        self.whole, self.path = replica, folder / "patient"
        self.files = sorted(
            path.relative_to(replica) for path in replica.glob("ltx/*/*.ltx") if path.stat().st_size
        )
        client = FileReplicaClient(replica)
        self.listing = [info for level in range(10) for info in client.list_ltx(level)]
        self.newest = TXID(max(info.max_txid for info in self.listing))

    def damaged(self, kind: str, file: Path, argument: object = "", **options: object) -> set[str]:
        """Damage a fresh copy; return the kinds of what a verification finds."""
        shutil.rmtree(self.path, ignore_errors=True)
        shutil.copytree(self.whole, self.path)
        damage(kind, self.path / file, argument)
        return kinds(verified(self.path, **options))  # type: ignore[arg-type]

    def of_level(self, level: int) -> list[Path]:
        return [path for path in self.files if path.parts[1] == str(level)]


@pytest.fixture(params=["ours", "litestream"])
def patient(request: pytest.FixtureRequest, tmp_path: Path) -> Patient:
    if request.param == "ours":
        return Patient(request.getfixturevalue("own_replica"), tmp_path)
    root = request.getfixturevalue("golden_root")
    return Patient(case(root, "incremental").replica, tmp_path)


def test_every_missing_file_is_found(patient: Patient) -> None:
    """With what the storage once confirmed; without it, a hole between others of its level."""
    known = Known(patient.newest, patient.listing)
    for file in patient.files:
        assert "lost" in patient.damaged("missing", file, known=known), file
    for level in range(9):
        for file in patient.of_level(level)[1:-1]:
            assert patient.damaged("missing", file) & {"hole", "gap"}, file


def test_a_missing_end_is_found_from_the_durable_txid(patient: Patient) -> None:
    last = patient.of_level(0)[-1]
    found = patient.damaged("gap", last, known=Known(patient.newest))
    assert found & {"behind", "gap", "empty"}


def test_a_gap_is_found(patient: Patient) -> None:
    middle = patient.of_level(0)[len(patient.of_level(0)) // 2]
    assert "gap" in patient.damaged("gap", middle)


@pytest.mark.parametrize("kind", ["truncated", "emptied", "longer"])
def test_a_file_of_another_size_is_found(patient: Patient, kind: str) -> None:
    for file in patient.files:
        assert "damaged" in patient.damaged(kind, file), file


def test_swapped_files_are_found(patient: Patient) -> None:
    for level in range(10):
        files = patient.of_level(level)
        for one, other in itertools.pairwise(files):
            shutil.rmtree(patient.path, ignore_errors=True)
            found = patient.damaged("swapped", one, patient.path / other)
            assert "misnamed" in found, (one, other)


def test_a_flipped_bit_in_every_byte_of_a_small_file_is_found(patient: Patient) -> None:
    """What is not found decodes to the same header and pages: nothing was damaged."""
    file = min(patient.of_level(0), key=lambda path: (patient.whole / path).stat().st_size)
    whole = (patient.whole / file).read_bytes()
    shutil.copytree(patient.whole, patient.path)
    harmless = 0
    for at in range(len(whole)):
        damage("flipped", patient.path / file, at)
        if not kinds(verified(patient.path)):
            harmless += 1
            assert _content(patient.path / file) == _content(patient.whole / file), at
        damage("flipped", patient.path / file, at)
    assert harmless <= len(whole) // 50


def _content(path: Path) -> tuple[bytes, list[tuple[int, bytes]]]:
    with path.open("rb") as file:
        header = ltxio.read_header(file).pack()
    with path.open("rb") as file:
        return header, list(ltxio.pages(file))


def test_an_overlap_with_other_content_is_found(patient: Patient, tmp_path: Path) -> None:
    """A level-1 file of the right name, valid by itself, with another page."""
    victim = next(path for path in patient.of_level(1) if _pages(patient.whole / path) > 1)
    forged = tmp_path / "forged.ltx"
    forged.write_bytes(_with_another_page(patient.whole / victim))
    assert "overlap" in patient.damaged("replaced", victim, forged)


def _pages(path: Path) -> int:
    with path.open("rb") as file:
        return len(ltxio.page_crcs(file)[1])


def _with_another_page(path: Path) -> bytes:
    """Return a valid file that differs from another in the last byte of its last page."""
    with path.open("rb") as file:
        header = ltxio.read_header(file)
    with path.open("rb") as file:
        pages = dict(ltxio.pages(file))
    last = max(pages)
    pages[last] = pages[last][:-1] + bytes([pages[last][-1] ^ 1])
    return build_ltx(
        header.min_txid,
        header.max_txid,
        pages=pages,
        page_size=header.page_size,
        commit=header.commit,
        timestamp_ms=header.timestamp_ms,
    )


def test_a_file_of_another_tenant_is_found(own_replica: Path, tmp_path: Path) -> None:
    """Same name, same page size, its own database: by the checksums that travel with ours."""
    rig = Rig(tmp_path / "other")
    with App(rig.db) as app:
        app.execute("create table t (a, b)")
        for number in range(6):
            app.execute("insert into t values (?, randomblob(2000))", [number])
            rig.ship()
    rig.tenant.close()
    patient = Patient(own_replica, tmp_path)
    for file in patient.of_level(0)[1:6]:
        found = patient.damaged("replaced", file, rig.replica / file)
        assert found & {"foreign", "overlap"}, file


def test_a_file_of_another_tenant_of_litestream_is_found(golden_root: Path, tmp_path: Path) -> None:
    """No checksum travels with them: by the files of other levels, or by the place in the WAL."""
    patient = Patient(case(golden_root, "page4096").replica, tmp_path)
    stranger = case(golden_root, "autovacuum").replica
    tried = 0
    for file in patient.files:
        if (stranger / file).exists():
            found = patient.damaged("replaced", file, stranger / file)
            assert found & {"foreign", "overlap"}, file
            tried += 1
    assert tried > 10


# --- beside a daemon --------------------------------------------------------------------------


def test_a_file_that_goes_between_listing_and_reading_is_no_finding(own_replica: Path) -> None:
    """Retention deletes level-0 files that level 1 holds while they are being verified."""

    class Shrinking(FileReplicaClient):
        def open_ltx(self, info: FileInfo, offset: int = 0, size: int | None = None) -> object:  # type: ignore[override]
            if info.level == 0 and info.max_txid <= 8:
                self.delete_ltx([info])
            return super().open_ltx(info, offset, size)

    copy = own_replica.with_name("shrinking")
    shutil.copytree(own_replica, copy)
    found = verify_replica(Shrinking(copy), VerifyOptions(clock=FakeClock()))
    expect_whole(found, 11)
    assert found.files == 3 + 2 + 1 + 2


def test_what_is_stored_after_each_listing_is_not_lost(own_replica: Path) -> None:
    """A daemon stores a file while the levels are being listed, at every look another one."""
    stored = itertools.count(12)

    def known() -> Known:
        new = TXID(next(stored))
        return Known(TXID(11), [FileInfo(0, new, new, size=200)])

    client = FileReplicaClient(own_replica)
    expect_whole(verify_replica(client, VerifyOptions(clock=FakeClock(), known=known)), 11)


def test_what_no_two_looks_saw_is_a_warning(own_replica: Path) -> None:
    """At every look another newest file is listed, and merged away before it is read."""
    newest = itertools.count(12)

    class Merging(FileReplicaClient):
        def list_ltx(self, level: int, **options: object) -> Iterator[FileInfo]:  # type: ignore[override]
            yield from super().list_ltx(level)
            if level == 0:
                yield FileInfo(0, TXID(12), TXID(next(newest)), size=200)

    found = verify_replica(Merging(own_replica), VerifyOptions(clock=FakeClock()))
    assert kinds(found) == {"unreadable"}
    assert found.ok
    assert found.txid == 11


def test_a_file_that_goes_and_is_not_needed_costs_a_listing(own_replica: Path) -> None:
    """Not another reading of the whole replica, which may be large."""
    copy = own_replica.with_name("once")
    shutil.copytree(own_replica, copy)
    lists = []

    class Shrinking(FileReplicaClient):
        def list_ltx(self, level: int, **options: object) -> Iterator[FileInfo]:  # type: ignore[override]
            lists.append(level)
            return super().list_ltx(level)

        def open_ltx(self, info: FileInfo, offset: int = 0, size: int | None = None) -> object:  # type: ignore[override]
            if info.level == 0 and info.max_txid == 3:
                self.delete_ltx([info])
            return super().open_ltx(info, offset, size)

    found = verify_replica(Shrinking(copy), VerifyOptions(clock=FakeClock()))
    assert found.findings == ()
    assert lists.count(0) == 2


def test_a_file_that_stays_listed_and_is_not_there_is_found(own_replica: Path) -> None:
    class Hollow(FileReplicaClient):
        def open_ltx(self, info: FileInfo, offset: int = 0, size: int | None = None) -> object:  # type: ignore[override]
            if info.level == 0 and info.max_txid == 3:
                raise LTXNotFoundError("it is not there")
            return super().open_ltx(info, offset, size)

    found = verify_replica(Hollow(own_replica), VerifyOptions(clock=FakeClock()))
    assert kinds(found) == {"unreadable"}
    assert not found.ok


def test_a_warning_does_not_hide_that_the_end_is_missing(own_replica: Path) -> None:
    """A hole in level 0 is a warning; that nothing leads to what was stored is an error."""
    copy = own_replica.with_name("behind")
    shutil.copytree(own_replica, copy)
    for txid in (3, 11):
        (copy / "ltx" / "0" / f"{txid:016x}-{txid:016x}.ltx").unlink()
    found = verified(copy, Known(TXID(11)))
    assert kinds(found) == {"hole", "behind"}
    assert not found.ok


def test_a_state_that_is_merged_away_before_it_is_restored_is_no_finding(
    own_replica: Path, tmp_path: Path
) -> None:
    """The newest state may be amid a merged file by then: what is the newest then is restored."""
    lists = itertools.count()
    merged = FileInfo(1, TXID(10), TXID(11))

    class Going(FileReplicaClient):
        gone: frozenset[int] = frozenset({11})

        def list_ltx(self, level: int, **options: object) -> Iterator[FileInfo]:  # type: ignore[override]
            if level == 0:
                self.gone = frozenset({11}) if next(lists) == 0 else frozenset({10, 11})
            for each in super().list_ltx(level):
                in_view = level == 0 or (each.level, each.name) != (merged.level, merged.name)
                hidden = level == 0 and each.max_txid in self.gone
                snapshot = level == SNAPSHOT_LEVEL and each.max_txid == 10
                if (in_view or 10 in self.gone) and not hidden and not snapshot:
                    yield each

    copy = own_replica.with_name("going")
    shutil.copytree(own_replica, copy)
    inputs = [copy / "ltx" / "0" / f"{n:016x}-{n:016x}.ltx" for n in (10, 11)]
    with contextlib.ExitStack() as stack:
        out = stack.enter_context((copy / "ltx" / "1" / merged.name).open("w+b"))
        sources = [stack.enter_context(path.open("rb")) for path in inputs]
        ltxio.merge([source.fileno() for source in sources], out.fileno())
    options = VerifyOptions(clock=FakeClock(), integrity_check="full", scratch=tmp_path)
    found = verify_replica(Going(copy), options)
    assert found.findings == ()
    assert found.txid == 10
    assert list(tmp_path.iterdir()) == []


def test_a_scratch_directory_without_room_is_no_damage(own_replica: Path, tmp_path: Path) -> None:
    osfs.arm([osfs.Failpoint("restore.write", 1, "enospc")])
    try:
        with pytest.raises(PyrepError, match="no space"):
            verified(own_replica, integrity_check="quick", scratch=tmp_path)
    finally:
        osfs.disarm()
    assert list(tmp_path.iterdir()) == []


def test_no_false_alarm_beside_a_daemon_that_writes_merges_and_deletes(tmp_path: Path) -> None:
    levels = [{"interval": "300ms"}, {"interval": "1s"}]
    retention = {"l0-retention": "500ms", "l0-retention-check-interval": "200ms"}
    with Host(
        tmp_path,
        replica={"sync-interval": "50ms"},
        levels=levels,
        snapshot={"interval": "1s", "retention": "3s"},
        **retention,
    ) as host:
        database = host.data / "a.db"
        with App(database) as app:
            app.execute("create table t (a)")
        host.start()
        with Writer(database, rate=60):
            seen: set[int] = set()
            deadline = time.monotonic() + 12
            while time.monotonic() < deadline:
                done = host.pyrep("verify", "-config", str(host.config), "-json")
                document = json.loads(done.stdout)
                assert done.returncode == 0, done.stdout
                (row,) = document["databases"]
                assert row["status"] == ("ok" if row["files"] else "warning"), row
                seen.add(int(row["txid"], 16))
            assert len(seen) > 3
        assert host.stop() == 0


# --- the command ------------------------------------------------------------------------------


@pytest.fixture
def stopped_host(tmp_path: Path) -> Iterator[Host]:
    """Return a host whose daemon replicated three databases and was stopped."""
    with Host(tmp_path) as host:
        for name in ("a.db", "b.db", "sub/c.db"):
            (host.data / name).parent.mkdir(exist_ok=True)
            with App(host.data / name) as app:
                app.script("create table t (a); insert into t values (randomblob(5000))")
        host.start()
        host.wait_shipped("a.db", "b.db", "sub/c.db")
        assert host.stop() == 0
        yield host


def rows(host: Host, *words: str, code: int = 0) -> dict[str, dict[str, object]]:
    done = host.pyrep("verify", "-config", str(host.config), "-json", *words)
    assert done.returncode == code, done.stdout + done.stderr
    return {Path(row["database"]).name: row for row in json.loads(done.stdout)["databases"]}


def test_the_command_names_the_damaged_tenant_and_goes_on(stopped_host: Host) -> None:
    host = stopped_host
    assert {row["status"] for row in rows(host, "-integrity-check", "full").values()} == {"ok"}
    file = next((host.replica / "b.db").glob("ltx/0/*.ltx"))
    damage("truncated", file)
    found = rows(host, code=4)
    assert {name: row["status"] for name, row in found.items()} == {
        "a.db": "ok",
        "b.db": "damaged",
        "c.db": "ok",
    }
    assert all(row["proven_before"] for row in found.values())
    plain = host.pyrep("verify", "-config", str(host.config), str(host.data / "b.db"))
    assert plain.returncode == 4
    assert f"Error: {host.data}/b.db: level 0 {file.name}" in plain.stdout


def test_a_glob_and_a_url_choose(stopped_host: Host) -> None:
    host = stopped_host
    assert set(rows(host, f"{host.data}/[ab].db")) == {"a.db", "b.db"}
    done = pyrep("verify", f"file://{host.replica}/a.db")
    assert done.code == 0, done.err
    done = pyrep("verify", "-all", f"file://{host.replica}")
    assert done.code == 0, done.err
    assert "3 ok" in done.out


def test_lost_directories_are_no_obstacle(stopped_host: Host) -> None:
    """The replicas tell which databases there were."""
    shutil.rmtree(stopped_host.data)
    stopped_host.data.mkdir()
    assert {row["status"] for row in rows(stopped_host).values()} == {"ok"}
    assert len(rows(stopped_host)) == 3


def test_a_budget_takes_those_unproven_the_longest_first(stopped_host: Host) -> None:
    host = stopped_host
    seen: list[str] = []
    for _ in range(3):
        found = rows(host, "-bytes", "1B", "-parallelism", "1")
        seen += [name for name, row in found.items() if row["status"] == "ok"]
        assert [row["status"] for row in found.values()].count("not begun") == 2
    assert sorted(seen) == ["a.db", "b.db", "c.db"]


def test_a_damaged_replica_does_not_use_up_every_budget(stopped_host: Host) -> None:
    """It has no proof, and is not read again before the others were."""
    host = stopped_host
    damage("truncated", next((host.replica / "b.db").glob("ltx/0/*.ltx")))
    seen: list[str] = []
    for turn in range(4):
        code = 4 if turn == 1 else 0
        found = rows(host, "-bytes", "1B", "-parallelism", "1", code=code)
        seen += [name for name, row in found.items() if row["status"] != "not begun"]
    assert seen == ["a.db", "b.db", "c.db", "a.db"]


def test_the_catalog_is_made_true(stopped_host: Host) -> None:
    """A file that is gone is a finding until the catalog is told; then it is the storage's word."""
    host = stopped_host
    folder = host.replica / "a.db" / "ltx" / "0"
    extra = FileInfo(1, TXID(1), TXID(1))
    (folder.parent / "1").mkdir()
    shutil.copy(next(folder.iterdir()), folder.parent / "1" / extra.name)
    assert rows(host, "-fix-catalog")["a.db"]["status"] == "ok"
    (folder.parent / "1" / extra.name).unlink()
    found = rows(host, "-fix-catalog", code=4)["a.db"]
    assert [f["kind"] for f in found["findings"]] == ["lost"]  # type: ignore[index,attr-defined]
    assert rows(host)["a.db"]["status"] == "ok"


def test_a_running_daemon_mends_its_catalog_itself(stopped_host: Host) -> None:
    host = stopped_host
    host.start()
    done = host.pyrep("verify", "-config", str(host.config), "-fix-catalog")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr.count("its replica was listed") == 3
    assert host.stop() == 0


def test_what_is_found_damaged_is_healed_by_the_running_daemon(stopped_host: Host) -> None:
    """As docs/operations.md says: move the file away, let the daemon look."""
    host = stopped_host
    with App(host.data / "a.db") as app:
        for number in range(4):
            app.execute("insert into t values (?)", [number])
            host.start()
            host.wait_shipped("a.db")
            if number < 3:
                assert host.stop() == 0
        file = sorted((host.replica / "a.db").glob("ltx/0/*.ltx"))[2]
        damage("truncated", file)
        assert rows(host, str(host.data / "a.db"), code=4)["a.db"]["status"] == "damaged"
        file.unlink()
        host.pyrep("verify", "-config", str(host.config), "-fix-catalog", str(host.data / "a.db"))

        def healed() -> bool:
            done = host.pyrep("verify", "-config", str(host.config), str(host.data / "a.db"))
            return done.returncode == 0

        host.wait_for(healed, "the replica is whole again")
        assert host.stop() == 0


def test_a_catalog_that_cannot_be_mended_is_a_failure(stopped_host: Host) -> None:
    """A running daemon does not have the database that is gone: exit 0 would say it was done."""
    host = stopped_host
    (host.data / "a.db").unlink()
    host.start()
    host.wait_shipped("b.db", "sub/c.db")
    done = host.pyrep("verify", "-config", str(host.config), "-fix-catalog")
    assert "a.db: the catalog is as before: no such database" in done.stderr
    assert done.stderr.count("its replica was listed") == 2
    assert done.returncode == 1
    assert host.stop() == 0


def test_a_catalog_that_cannot_be_written_ends_no_verification(
    stopped_host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = stopped_host

    def full(*_: object) -> None:
        raise DatabaseBusyError("the disk is full")

    monkeypatch.setattr("pyrep.cli.running.save_proof", full)
    done = pyrep("verify", "-config", str(host.config), "-json")
    assert [row["status"] for row in done.json["databases"]] == ["ok"] * 3
    assert done.err.count("this verification is not remembered: the disk is full") == 3
    assert done.code == DatabaseBusyError.exit_code


def test_an_unreachable_storage_is_no_damage(stopped_host: Host) -> None:
    host = stopped_host
    folder = host.replica / "a.db" / "ltx" / "0"
    shutil.rmtree(folder)
    folder.write_text("not a directory")
    found = rows(host, code=5)
    assert found["a.db"]["status"] == "failed"
    assert found["b.db"]["status"] == "ok"


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["-all"], "-all belongs to a replica URL"),
        (["-for", "0s"], "-for must be greater than 0"),
        (["-bytes", "much"], "invalid size format"),
        (["-integrity-check", "some"], "invalid -integrity-check value"),
        (["-fix-catalog", "file:///tmp/x"], "-fix-catalog needs a configuration"),
        (["a", "b"], "too many arguments"),
    ],
)
def test_wrong_words_are_one_line(words: list[str], text: str) -> None:
    done = pyrep("verify", *words)
    assert done.code == 2
    assert text in done.err
