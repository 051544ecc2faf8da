"""Many databases come and go at once, and the daemon may miss what the kernel said of it."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from fixtures import storm_process
from fixtures.effort import SOAK, times
from fixtures.host import Host
from pyrep.catalog import Access, Catalog

_SLOW = "10m"
_MAKERS = 8
_EACH = 250 if SOAK else 50
_OVERFLOW = 9000  # names that come and go: more events than a queue of 16,384 holds


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    """Give a host whose daemon looks at nothing by itself."""
    with Host(
        tmp_path,
        entry={"monitor_interval": _SLOW, "idle_timeout": "1s"},
        replica={"sync_interval": "200ms"},
        reconcile_interval=_SLOW,
        levels=[],
    ) as made:
        yield made


def _run(verb: str, *words: object) -> subprocess.Popen[bytes]:
    script = storm_process.__file__
    return subprocess.Popen([sys.executable, str(script), verb, *map(str, words)])


def _managed(host: Host) -> set[str]:
    """Return what the daemon replicates, by its catalog: cheaper than a command."""
    (path,) = (host.folder / "state").rglob("catalog.db")
    catalog = Catalog(path, access=Access.READ)
    try:
        rows = catalog.tenants()
    finally:
        catalog.close()
    prefix = f"{host.data}/"
    gone = ("absent", "waiting")
    return {row.path.removeprefix(prefix) for row in rows if row.status not in gone}


def _on_disk(host: Host) -> set[str]:
    return {str(path.relative_to(host.data)) for path in host.data.rglob("*.db")}


def _expect_all_restored(host: Host, names: set[str]) -> None:
    """Require that ``restore -all`` brings back the rows of each database, and no other one."""
    output = host.folder / "restored"
    done = host.pyrep("restore", "-config", str(host.config), "-all", "-o", str(output))
    said = done.stdout + done.stderr
    assert done.returncode in (0, 6), said
    missing = [name for name in sorted(names) if not (output / name).exists()]
    assert missing == [], f"{said}\n{host.log.read_text()[-20_000:]}"
    for name in sorted(names):
        assert _rows(output / name) == _rows(host.data / name), name


def _rows(path: Path) -> list[str]:
    # one that is missing must not be made by looking
    with closing(sqlite3.connect(f"{path.as_uri()}?mode=rw", uri=True)) as db:
        assert db.execute("pragma integrity_check").fetchall() == [("ok",)]
        return sorted(a for (a,) in db.execute("select a from t"))


def test_none_of_many_databases_that_are_made_at_once_is_missed(host: Host) -> None:
    host.start()
    makers = [_run("make", host.data, n * _EACH, _EACH) for n in range(_MAKERS)]
    assert [maker.wait() for maker in makers] == [0] * _MAKERS
    names = _on_disk(host)
    assert len(names) == _MAKERS * _EACH
    host.wait_for(lambda: _managed(host) == names, "all are taken in", timeout=180)
    assert len(host.lines("replicating to")) == len(names)
    assert host.stop() == 0
    assert host.problems() == []
    _expect_all_restored(host, names)


@pytest.mark.parametrize("turn", range(times(2)))
def test_what_is_managed_equals_the_disk_after_a_storm(host: Host, turn: int) -> None:
    host.start()
    for number in range(4):
        deaf = number % 2 == 1
        if deaf:
            os.kill(host.pid, signal.SIGSTOP)
        storm = _run("storm", host.data, 100 * turn + number, 120, _OVERFLOW if deaf else 0)
        assert storm.wait() == 0
        if deaf:
            os.kill(host.pid, signal.SIGCONT)
        names = _on_disk(host)
        host.wait_for(lambda names=names: _managed(host) == names, f"{sorted(names)}", timeout=120)
    assert host.stop() == 0
    _expect_all_restored(host, names)
