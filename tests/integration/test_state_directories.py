"""A state directory is removed, emptied or exchanged behind pyrep's back."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fixtures.app import App, differing_pages
from fixtures.rig import Rig
from pyrep.errors import DatabaseError
from pyrep.tenant.spool import Spool

StartApp = Callable[..., App]


@pytest.fixture
def rigs(tmp_path: Path) -> Iterator[tuple[Rig, Rig]]:
    """Give two tenants."""
    both = tuple(Rig(tmp_path / name, spool=Spool(1 << 30)) for name in ("ours", "other"))
    yield both[0], both[1]
    for rig in both:
        rig.close()


def _fill(rig: Rig, start_app: StartApp, text: str) -> App:
    """Store a database whose pages are as large as any other's, and other ones."""
    app = start_app(rig.db)
    app.execute("create table t (id integer primary key, a)")
    app.execute_many("insert into t (a) values (?)", [(text * 50,)] * 200)
    rig.ship()
    return app


def _remove(folder: Path, rig: Rig) -> None:
    """Remove the directory; a merge at that moment makes it anew."""
    shutil.rmtree(folder)
    rig.tenant.compact(1, rig.acknowledged[:])


def _empty(folder: Path, rig: Rig) -> None:
    for path in folder.iterdir():
        path.unlink()


def _remove_table(folder: Path, rig: Rig) -> None:
    (folder / "pages").unlink()


@pytest.mark.parametrize("damage", [_remove, _empty, _remove_table])
def test_no_checksum_is_reckoned_from_a_table_that_is_gone(
    rigs: tuple[Rig, Rig], start_app: StartApp, damage: Callable[[Path, Rig], None]
) -> None:
    rig, _ = rigs
    app = _fill(rig, start_app, "x")
    rig.park()
    damage(rig.spec().state_path, rig)
    app.execute("update t set a = 'changed' where id in (3, 150)")
    with pytest.raises(DatabaseError, match="the page checksums were removed"):
        rig.ship()
    rig.ship()
    rig.expect_equal()
    app.execute("update t set a = 'again' where id in (3, 150)")
    rig.ship()
    rig.expect_equal()


@pytest.mark.parametrize("exchanged", [False, True], ids=["removed", "exchanged"])
def test_what_waited_in_a_directory_that_is_gone_is_staged_anew(
    rigs: tuple[Rig, Rig], start_app: StartApp, tmp_path: Path, exchanged: bool
) -> None:
    """The database is quiet, so nothing but the upload can notice."""
    rig, other = rigs
    app = _fill(rig, start_app, "x")
    _fill(other, start_app, "y")
    other.close()
    app.execute("insert into t (a) values ('later')")
    rig.stage()
    rig.park()
    folder = rig.spec().state_path
    folder.rename(tmp_path / "away")
    if exchanged:
        other.spec().state_path.rename(folder)
    with pytest.raises(DatabaseError, match="was removed or replaced"):
        rig.upload()
    assert rig.tenant.needs_survey
    rig.ship()
    rig.expect_equal()


def test_staged_files_of_another_database_are_merged_into_nothing(
    rigs: tuple[Rig, Rig], start_app: StartApp, tmp_path: Path
) -> None:
    """They have the names and the sizes of ours: only the position tells whose they are."""
    rig, other = rigs
    apps = [_fill(rig, start_app, "x"), _fill(other, start_app, "y")]
    assert [info.size for info in rig.acknowledged] == [info.size for info in other.acknowledged]
    truth = rig.truth()
    for each, app in zip(rigs, apps, strict=True):
        app.close()
        each.close()
    shutil.rmtree(rig.db.parent)
    other.db.parent.rename(rig.db.parent)
    rig.restart()
    rig.tenant.compact(1, rig.acknowledged[:])
    shutil.rmtree(rig.replica / "ltx/0")
    assert differing_pages(truth, rig.restored()) == []


def test_a_tenant_that_went_takes_no_room_of_the_common_spool(
    rigs: tuple[Rig, Rig], start_app: StartApp
) -> None:
    rig, _ = rigs
    spool = rig.spool
    assert spool is not None
    app = _fill(rig, start_app, "x")
    app.execute("insert into t (a) values ('later')")
    rig.stage()
    rig.tenant.close(going=True)
    assert spool.left < spool.limit
    rig.tenant.close()
    assert spool.left == spool.limit
    assert spool.claim(rig.tenant.name, spool.limit)
    assert not spool.crowded  # what was kept for a merge does not count either
