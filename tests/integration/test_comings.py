"""What databases that come and go leave behind, and what changed while the daemon was down."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from fixtures.app import App
from fixtures.host import Host
from pyrep.catalog import Access, Catalog

_SLOW = "10m"
_AT_ONCE = 50
_ROUNDS = 40
_LONG_ROUNDS = 2000
_WARM_ROUNDS = 4
_THREADS = 20
# What one connection's cache of the catalog and glibc's arenas take until they are full.
_SLACK_BYTES = {_ROUNDS: 4 << 20, _LONG_ROUNDS: 16 << 20}


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    """Give a host whose daemon looks at nothing by itself."""
    with Host(
        tmp_path,
        entry={"monitor_interval": _SLOW},
        replica={"sync_interval": "100ms"},
        reconcile_interval=_SLOW,
        levels=[],
    ) as made:
        yield made


def _statuses(host: Host) -> dict[str, str]:
    (path,) = (host.folder / "state").rglob("catalog.db")
    with closing(Catalog(path, access=Access.READ)) as catalog:
        return {row.path.removeprefix(f"{host.data}/"): row.status for row in catalog.tenants()}


def _make(path: Path, rows: int) -> None:
    """Make a database elsewhere and move it in: so it is whole when it is seen."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    with closing(sqlite3.connect(new)) as db, db:
        db.execute("pragma journal_mode=wal")
        db.execute("pragma synchronous=off")
        db.execute("create table t (id integer primary key, a)")
        db.executemany("insert into t (a) values (?)", [(f"{path.name} {n}",) for n in range(rows)])
    os.utime(new, (0, 0))  # it was not written a moment ago
    new.rename(path)


def _usage(host: Host) -> tuple[int, int, int]:
    """Return descriptors, threads and resident bytes of the daemon once it has come to rest."""
    proc = Path(f"/proc/{host.pid}")

    def status() -> dict[str, str]:
        lines = (proc / "status").read_text().splitlines()
        return dict(line.split(":", 1) for line in lines)

    host.wait_for(lambda: int(status()["Threads"]) <= _THREADS, "spare threads ended")
    descriptors = len(list((proc / "fd").iterdir()))
    return descriptors, int(status()["Threads"]), int(status()["VmRSS"].split()[0]) * 1024


def _shipped(host: Host, name: str, files: int = 1) -> bool:
    return len(list((host.replica / name).rglob("*.ltx"))) >= files


def _present(host: Host) -> int:
    """Return how many tenants the catalog has that did not go."""
    (path,) = (host.folder / "state").rglob("catalog.db")
    with closing(sqlite3.connect(path)) as db:
        return int(
            db.execute("select count(*) from tenants where status != 'absent'").fetchone()[0]
        )


@pytest.mark.parametrize(
    "rounds", [_ROUNDS, pytest.param(_LONG_ROUNDS, marks=pytest.mark.soak)], ids=str
)
def test_databases_that_came_and_went_leave_nothing_in_the_daemon(host: Host, rounds: int) -> None:
    """The long form has a new name for each, as if 100,000 tenants came and went."""
    host.start()
    base = (0, 0, 0)
    long = rounds == _LONG_ROUNDS
    for number in range(rounds):
        tag = f"{number}-" if long else ""
        names = [f"{tag}{n % 5}/{n}.db" for n in range(_AT_ONCE)]
        for name in names:
            _make(host.data / name, 5)
        host.wait_for(
            lambda names=names, files=1 if long else number + 1: all(
                _shipped(host, n, files) for n in names
            ),
            "all are stored",
        )
        while folders := list(host.data.iterdir()):  # state may be written there at the moment
            for folder in folders:
                shutil.rmtree(folder, ignore_errors=True)
        host.wait_for(lambda: _present(host) == 0, "all are gone")
        for name in names if long else ():  # or the disk would run out of inodes
            shutil.rmtree(host.replica / name)
        if number == _WARM_ROUNDS:
            base = _usage(host)
    descriptors, threads, memory = _usage(host)
    assert (descriptors, threads) == base[:2]
    assert memory <= base[2] + _SLACK_BYTES[rounds]
    assert host.stop() == 0


def test_after_a_pause_only_what_differs_is_shipped(host: Host) -> None:
    names = [f"{n}.db" for n in range(6)]
    for name in names:
        _make(host.data / name, 3000)
    host.start()
    host.wait_for(lambda: all(_shipped(host, name) for name in names), "all are stored")
    host.wait_shipped(*names)
    assert host.stop() == 0
    before = {name: _sizes(host, name) for name in names}
    pages = {name: (host.data / name).read_bytes() for name in names}
    _change(host.data / names[0], "insert into t (a) values ('written')")
    _change(host.data / names[1], "update t set a = 'x' where id = 17", "truncate")
    shutil.copyfile(host.data / names[2], host.folder / "copy")
    _change(host.folder / "copy", "update t set a = 'y' where id in (1, 2000)", "truncate")
    (host.folder / "copy").rename(host.data / names[2])
    (host.data / names[3]).unlink()
    os.utime(host.data / names[4])
    host.start()
    kept = [name for name in names if name != names[3]]
    host.wait_shipped(*kept)
    assert host.stop() == 0
    host.expect_equal(kept)
    for name in kept:
        changed = _changed_pages(pages[name], (host.data / name).read_bytes())
        new = sum(size for path, size in _sizes(host, name).items() if path not in before[name])
        assert new <= 1.2 * changed * 4096 + (200 if changed else 0), name
    assert _statuses(host)[names[3]] == "absent"
    assert _sizes(host, names[3]) == before[names[3]]


def _sizes(host: Host, name: str) -> dict[str, int]:
    files = (host.replica / name / "ltx/0").iterdir()
    return {path.name: path.stat().st_size for path in files}


def _change(path: Path, sql: str, checkpoint: str = "passive") -> None:
    with App(path) as app:
        app.execute(sql)
        app.checkpoint(checkpoint)


def _changed_pages(old: bytes, new: bytes) -> int:
    count = max(len(old), len(new)) // 4096
    return sum(
        old[n * 4096 : (n + 1) * 4096] != new[n * 4096 : (n + 1) * 4096] for n in range(count)
    )


def test_each_acknowledged_state_of_applications_of_all_kinds_is_restorable(host: Host) -> None:
    for name in ("request.db", "vacuum.db", "large.db", "copied.db"):
        _make(host.data / name, 500)
    _make(host.folder / "source", 900)
    host.start()
    for turn in range(4):
        for n in range(5):  # opened, written and closed for each request: the -wal goes each time
            _change(host.data / "request.db", f"insert into t (a) values ('request {turn} {n}')")
        with App(host.data / "vacuum.db") as app:
            app.execute("delete from t where id % 3 = 0")
            app.execute("vacuum")
        with App(host.data / "large.db") as app:
            app.script(
                "begin; with recursive c(n) as (select 1 union all select n + 1 from c where"
                " n < 4000) insert into t (a) select hex(randomblob(500)) || n from c; commit"
            )
        _change(host.folder / "source", f"insert into t (a) values ('copy {turn}')")
        _backup(host.folder / "source", host.data / "copied.db")
        host.wait_shipped("request.db", "vacuum.db", "large.db", "copied.db")
    assert host.stop() == 0
    assert host.problems() == []
    host.expect_equal(["request.db", "vacuum.db", "large.db", "copied.db"])


def _backup(source: Path, target: Path) -> None:
    """Copy a database over a live one by SQLite's backup interface, in a process of its own."""
    code = (
        "import sqlite3, sys; source, target = map(sqlite3.connect, sys.argv[1:]); "
        "source.backup(target); source.close(); target.close()"
    )
    subprocess.run([sys.executable, "-c", code, str(source), str(target)], check=True)
