"""The daemon when its catalog is lost or spoilt: it goes on, and nothing of a tenant is lost."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from fixtures.app import App
from fixtures.host import Host
from pyrep.catalog import Access, Catalog

_NAMES = ["a.db", "b.db", "deep/c.db"]
_MOVED = "catalog moved aside, beginning a new one"


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    entry = {"monitor_interval": "10m", "idle_timeout": "1s"}
    with Host(tmp_path, entry=entry, replica={"sync_interval": "100ms"}) as made:
        (made.data / "deep").mkdir()
        yield made


def _catalog(host: Host) -> Path:
    (path,) = (host.folder / "state").rglob("catalog.db")
    return path


def _write(host: Host, number: int) -> None:
    for name in _NAMES:
        with App(host.data / name) as app:
            app.execute("create table if not exists t (n)")
            app.execute(f"insert into t values ({number})")


def _statuses(host: Host) -> list[str]:
    with closing(Catalog(_catalog(host), access=Access.READ)) as catalog:
        return [row.status for row in catalog.tenants()]


def _wait_parked(host: Host) -> None:
    host.wait_for(lambda: _statuses(host) == ["parked"] * 3, "the catalog knows all as parked")


def _remove(path: Path) -> None:
    path.unlink()


def _cut(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2 + 77])


def _flip(path: Path) -> None:
    dice, data = random.Random(4), bytearray(path.read_bytes())
    for _ in range(200):
        data[dice.randrange(100, len(data))] ^= dice.randrange(1, 256)
    path.write_bytes(data)


def _fill(path: Path) -> None:
    path.write_bytes(random.Random(4).randbytes(50_000))


def test_a_catalog_that_was_lost_or_spoilt_costs_no_change(host: Host) -> None:
    spoils: list[Callable[[Path], None] | None] = [None, _remove, _cut, _flip, _fill]
    for number, spoil in enumerate(spoils):
        if spoil is not None:
            spoil(_catalog(host))
        _write(host, number)
        host.start()
        host.wait_shipped(*_NAMES)
        assert host.stop() == 0
        expected = [] if spoil in (None, _remove) else [_MOVED]
        assert [line["msg"] for line in host.problems()] == expected, spoil
        assert len(host.lines("shipping every page")) == (0 if number else 3)
    host.expect_equal(_NAMES, others=False)


_SPOIL = """
import sqlite3, sys
path = sys.argv[1]
db = sqlite3.connect(path)
db.execute("insert into requests (verb, argument, created_ms, ok) values ('x', x'00', 0, 1)")
db.commit()
db.execute("pragma wal_checkpoint(truncate)").fetchall()
pages = db.execute("pragma page_count").fetchone()[0]
with open(path, "r+b", buffering=0) as file:
    file.seek(4096)
    file.write(b"\\xff" * 4096 * (pages - 1))
db.close()
"""


def test_a_catalog_that_is_spoilt_under_the_daemon_is_begun_anew(host: Host) -> None:
    _write(host, 1)
    host.start()
    host.wait_shipped(*_NAMES)
    _wait_parked(host)
    subprocess.run([sys.executable, "-c", _SPOIL, str(_catalog(host))], check=True)
    _write(host, 2)
    host.wait_for(lambda: bool(host.lines(_MOVED)), "the damage is noticed")
    host.wait_shipped(*_NAMES)
    _wait_parked(host)
    assert [line["msg"] for line in host.problems()] == [_MOVED]
    assert host.stop() == 0
    host.start()
    _write(host, 3)
    host.wait_shipped(*_NAMES)
    assert host.problems() == []
    assert host.stop() == 0
    host.expect_equal(_NAMES, others=False)
