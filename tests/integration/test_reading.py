"""Databases that have to be read from end to end share a budget; the others are not starved."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from fixtures.app import App
from fixtures.host import Host
from fixtures.rig import Rig
from pyrep import osfs
from pyrep.errors import DatabaseError
from pyrep.schedule.budget import ReadBudget

StartApp = Callable[..., App]


@pytest.fixture
def reads() -> ReadBudget:
    return ReadBudget(1)


@pytest.fixture
def rigs(tmp_path: Path, start_app: StartApp, reads: ReadBudget) -> Iterator[list[Rig]]:
    with ExitStack() as stack:
        made = []
        for name in ("one", "two"):
            rig = stack.enter_context(closing(Rig(tmp_path / name, reads=reads)))
            app = start_app(rig.db, busy_timeout_ms=200)
            app.execute("create table t (id integer primary key, a)")
            made.append(rig)
        yield made
        osfs.disarm()


def test_who_waits_holds_nothing_and_is_read_when_it_may(
    rigs: list[Rig], reads: ReadBudget
) -> None:
    one, two = rigs
    reads.enter("another")
    assert not one.stage()
    assert not two.stage()
    assert one.tenant.waits_to_read
    assert not one.tenant.attached  # R holds nothing up
    assert reads.following() == []
    reads.leave("another")
    assert reads.following() == [one.tenant.name]
    assert not two.stage()
    assert one.stage()
    assert not one.tenant.waits_to_read
    assert two.stage()
    for rig in rigs:
        rig.upload()
        rig.expect_equal()


def test_a_range_of_the_wal_waits_for_nobody(
    rigs: list[Rig], reads: ReadBudget, start_app: StartApp
) -> None:
    one, _ = rigs
    one.ship()
    reads.enter("another")
    start_app(one.db, busy_timeout_ms=200).execute("insert into t (a) values (1)")
    assert one.ship()
    one.expect_equal()


def test_a_difference_that_shows_when_attached_lets_go(
    rigs: list[Rig], reads: ReadBudget, start_app: StartApp
) -> None:
    one, _ = rigs
    one.ship()
    one.restart(clean=False)
    app = start_app(one.db, busy_timeout_ms=200)
    for number in range(2):
        app.execute("insert into t (a) values (?)", (number,))
        app.checkpoint("truncate")
    reads.enter("another")
    assert not one.stage()
    assert not one.tenant.attached
    assert not one.tenant.caught_up
    reads.leave("another")
    assert one.ship()
    one.expect_equal()


def test_who_fails_or_goes_gives_its_place_back(rigs: list[Rig], reads: ReadBudget) -> None:
    one, two = rigs
    osfs.arm(osfs.parse_failpoints("stage.open:1:eio"))
    with pytest.raises(DatabaseError):
        one.stage()
    assert reads.enter("another")
    assert not two.stage()
    two.tenant.close()
    reads.leave("another")
    assert reads.following() == []
    assert one.ship()


def test_many_after_a_reboot_are_all_compared(tmp_path: Path) -> None:
    """The boot that no clean stop preceded is played by the state files."""
    names = [f"{number}.db" for number in range(30)]
    with Host(tmp_path) as host:
        for name in names:
            with App(host.data / name) as app:
                app.execute("create table t (id integer primary key, a)")
        host.start()
        host.wait_shipped(*names)
        host.kill()
        for name in names:
            saved = host.data / f".{name}-pyrep" / "state.json"
            text = saved.read_text()
            boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
            assert boot in text
            saved.write_text(text.replace(boot, "another-boot"))
            with App(host.data / name) as app:
                app.execute("insert into t (a) values (1)")
        host.start()
        host.wait_shipped(*names)
        told = {line["db"] for line in host.lines("comparing every page with the replica")}
        assert told == {str(host.data / name) for name in names}
        assert host.stop() == 0, host.text()
        assert host.problems() == []
        host.expect_equal(names, others=False)
