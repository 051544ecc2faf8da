"""Scenarios of a full spool and a full disk: R is let go, and nothing is lost."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from fixtures.app import App
from fixtures.rig import Rig
from pyrep import osfs
from pyrep.errors import DatabaseError, ReplicaError
from pyrep.osfs import Failpoint
from pyrep.tenant.capture import SpoolFullError

_INSERT = "insert into t (a) values (randomblob(2000))"
_STEPS = ["stage.open", "stage.write", "stage.rename"]


@pytest.fixture
def make(tmp_path: Path, start_app: Callable[..., App]) -> Iterator[Callable[..., tuple[Rig, App]]]:
    """Return a function that makes a rig with these settings, and its application."""
    with ExitStack() as stack:

        def build(**settings: Any) -> tuple[Rig, App]:
            rig = Rig(tmp_path, **settings)
            stack.callback(rig.close)
            stack.callback(osfs.disarm)
            app = start_app(rig.db, busy_timeout_ms=100, autocheckpoint=0)
            app.execute("create table t (id integer primary key, a)")
            return rig, app

        yield build


def fill(app: App, rows: int) -> None:
    for _ in range(rows):
        app.execute(_INSERT)


def expect_let_go(rig: Rig, app: App) -> None:
    """Require that the application can cut its WAL to nothing: no R of ours holds it."""
    assert not rig.tenant.attached
    assert rig.tenant.status().state == "degraded"
    busy, _, _ = app.checkpoint("truncate")
    assert not busy
    assert Path(f"{rig.db}-wal").stat().st_size == 0


def stage_only(rig: Rig, app: App) -> None:
    """Stage and stage, as if the replica were away."""
    for _ in range(100):
        fill(app, 5)
        rig.stage()


def causes(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.cause for record in caplog.records if hasattr(record, "cause")]


def test_a_full_spool_lets_r_go_and_ends_with_a_diff(make, caplog) -> None:
    caplog.set_level(logging.INFO)
    rig, app = make(spool_limit=60_000)
    fill(app, 5)
    rig.ship()
    with pytest.raises(SpoolFullError, match="spool-limit"):
        stage_only(rig, app)
    expect_let_go(rig, app)
    staged = rig.tenant.status()
    assert 0 < staged.pending_bytes <= 60_000
    for _ in range(3):
        fill(app, 3)
        with pytest.raises(SpoolFullError):
            rig.stage()
        expect_let_go(rig, app)
    rig.upload()
    assert rig.ship()
    assert rig.tenant.status().state == "attached"
    rig.expect_equal()
    assert causes(caplog) == [
        "this is the first backup",
        "staging had stopped, there was no space",
    ]
    fill(app, 1)
    rig.ship()
    rig.expect_equal()


@pytest.mark.parametrize("step", _STEPS)
def test_a_full_disk_lets_r_go_and_ends_with_a_diff(make, caplog, step) -> None:
    caplog.set_level(logging.INFO)
    rig, app = make()
    fill(app, 30)
    rig.ship()
    full = rig.acknowledged[0].size
    rig.tenant.park(force=True)
    fill(app, 3)
    osfs.arm([Failpoint(step, 1, "enospc+")])
    for _ in range(3):
        fill(app, 2)
        with pytest.raises(SpoolFullError, match="no space left to stage"):
            rig.stage()
        expect_let_go(rig, app)
    osfs.disarm()
    assert rig.ship()
    assert rig.tenant.status().state == "attached"
    assert rig.tenant.status().error == ""
    assert rig.acknowledged[-1].size < full / 2
    rig.expect_equal()
    assert causes(caplog)[1:] == ["staging had stopped, there was no space"]


def test_a_seal_counts_until_its_end_is_on_the_disk(make) -> None:
    """The fingerprint on the disk must not outlive the first commit that R sees."""
    rig, app = make()
    fill(app, 10)
    rig.ship()
    app.checkpoint("passive")
    rig.ship()
    rig.park()
    osfs.arm([Failpoint("state.write", 1, "enospc+")])
    for _ in range(2):
        fill(app, 1)
        with pytest.raises(SpoolFullError, match="no space left to stage"):
            rig.stage()
        expect_let_go(rig, app)
    osfs.disarm()
    assert rig.ship()
    rig.expect_equal()


@pytest.mark.parametrize("step", ["stage.write", "stage.rename"])
def test_a_failed_write_is_an_error_and_nothing_is_lost(make, step) -> None:
    rig, app = make()
    fill(app, 20)
    rig.ship()
    osfs.arm([Failpoint(step, 1, "eio")])
    fill(app, 2)
    with pytest.raises(DatabaseError) as caught:
        rig.stage()
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.EIO
    assert rig.tenant.status().state == "error"
    app.checkpoint("truncate")
    fill(app, 2)
    assert rig.ship()
    rig.expect_equal()


def test_a_full_disk_at_the_acknowledgement_costs_the_table_only(make) -> None:
    rig, app = make()
    fill(app, 10)
    rig.ship()
    osfs.arm([Failpoint("table.write", 1, "enospc")])
    fill(app, 2)
    rig.ship()
    assert rig.durable == 2
    rig.tenant.park(force=True)
    app.checkpoint("truncate")
    fill(app, 1)
    app.checkpoint("truncate")
    fill(app, 1)
    rig.ship()
    assert rig.durable == 3
    rig.expect_equal()


def test_a_refused_upload_keeps_the_staged_file_and_its_number(make) -> None:
    rig, app = make()
    fill(app, 5)
    rig.ship()
    osfs.arm([Failpoint("file.link", 1, "enospc+")])
    for pending in (1, 2):
        fill(app, 1)
        assert rig.stage()
        with pytest.raises(ReplicaError):
            rig.upload()
        assert rig.tenant.status().pending_files == pending
    assert rig.durable == 1
    osfs.disarm()
    rig.upload()
    assert rig.durable == 3
    rig.expect_equal()
