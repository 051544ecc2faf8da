"""Writers on one file system share what makes their files durable; alone each syncs its own."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from fixtures.effort import wait_until
from pyrep import osfs
from pyrep.storage import file_sync
from pyrep.storage.file_sync import SharedSync, shared_sync


@dataclass
class Device:
    """Count what is synced, and hold the first sync until ``go``."""

    shared: SharedSync
    fd: int
    alone: list[int] = field(default_factory=list)
    together: int = 0
    failed: list[int] = field(default_factory=list)
    go: threading.Event = field(default_factory=threading.Event)
    seconds: float = 0.0  # that syncing all together takes
    now: float = 100.0

    def own(self, number: int) -> None:
        if not number:
            assert self.go.wait(30.0)
        self.alone.append(number)

    def sync_file_system(self, op: str, fd: int) -> None:
        assert (op, fd) == ("file.syncfs", self.fd)
        self.together += 1
        self.now += self.seconds

    def write(self, number: int) -> None:
        try:
            self.shared.sync(self.fd, lambda: self.own(number))
        except OSError:
            self.failed.append(number)

    def run(self, writers: int) -> None:
        """Let so many come while the first one syncs; return when all are done."""
        threads = [threading.Thread(target=self.write, args=(n,)) for n in range(writers)]
        self.go.clear()
        threads[0].start()
        wait_until(lambda: self.shared._running == 1, "the first one syncs")
        for thread in threads[1:]:
            thread.start()
        wait_until(lambda: self.shared._next.members == writers - 1, "the others wait")
        assert not self.alone
        self.go.set()
        for thread in threads:
            thread.join(30.0)
            assert not thread.is_alive()


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    with (tmp_path / "file").open("wb") as file:
        shared = SharedSync(str(tmp_path), monotonic=lambda: device.now)
        device = Device(shared, file.fileno())
        monkeypatch.setattr(osfs, "sync_file_system", device.sync_file_system)
        yield device
    osfs.disarm()


def test_who_comes_alone_syncs_its_own_at_once(device: Device) -> None:
    for number in (1, 2, 3):
        device.write(number)
    assert device.alone == [1, 2, 3]
    assert not device.together


def test_those_who_wait_are_synced_by_one_call(device: Device) -> None:
    device.run(9)
    assert device.alone == [0]
    assert device.together == 1
    device.write(10)  # nobody is there any more
    assert device.alone == [0, 10]


def test_a_few_sync_their_own_side_by_side(device: Device) -> None:
    device.run(4)
    assert sorted(device.alone) == [0, 1, 2, 3]
    assert not device.together


def test_each_one_syncs_its_own_where_it_cannot_be_trusted(device: Device) -> None:
    device.shared._usable = False
    device.run(9)
    assert sorted(device.alone) == list(range(9))
    assert not device.together


def test_after_a_failure_each_one_syncs_its_own_for_good(
    device: Device, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(op: str, fd: int) -> None:
        raise OSError(errno.EIO, "of some other file")

    monkeypatch.setattr(osfs, "sync_file_system", fail)
    device.run(9)
    assert sorted(device.alone) == list(range(9))
    device.alone.clear()
    monkeypatch.setattr(osfs, "sync_file_system", device.sync_file_system)
    device.run(9)
    assert sorted(device.alone) == list(range(9))
    assert not device.together
    assert caplog.text.count("files are synced one by one now") == 1


def test_a_file_system_that_became_read_only_synced_nothing(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.fstatvfs(device.fd)

    class ReadOnly:
        f_flag = real.f_flag | os.ST_RDONLY

    monkeypatch.setattr(os, "fstatvfs", lambda fd: ReadOnly)
    device.run(9)
    assert sorted(device.alone) == list(range(9))


def test_a_files_own_error_counts_though_all_were_synced(device: Device) -> None:
    osfs.arm(osfs.parse_failpoints("file.check:3:eio"))
    device.run(9)
    assert device.together == 1
    assert len(device.failed) == 1


def test_an_error_of_ones_own_sync_is_ones_own(device: Device) -> None:
    with pytest.raises(OSError, match="mine"):
        device.shared.sync(device.fd, _fail)
    device.run(9)
    assert device.together == 1


def _fail() -> None:
    raise OSError(errno.EIO, "mine")


def test_it_rests_where_others_write_so_much_that_it_takes_long(device: Device) -> None:
    device.seconds = 3.0
    device.run(9)
    assert device.together == 1  # that may have been what had gathered before
    device.alone.clear()
    device.run(9)
    assert device.together == 2
    device.alone.clear()
    device.run(9)
    assert sorted(device.alone) == list(range(9))
    device.now += 40.0
    device.alone.clear()
    device.run(9)
    assert device.together == 3
    device.now += 40.0  # the second rest is longer
    device.alone.clear()
    device.run(9)
    assert device.together == 3
    device.now += 4000.0
    device.seconds = 0.01
    for _ in range(2):
        device.alone.clear()
        device.run(9)
    assert device.together == 5


def test_one_file_system_is_shared_by_all_of_its_files(tmp_path: Path) -> None:
    with (tmp_path / "a").open("wb") as a, (tmp_path / "b").open("wb") as b:
        assert shared_sync(a.fileno()) is shared_sync(b.fileno())


@pytest.mark.parametrize(
    ("kind", "release", "usable"),
    [
        ("ext4", "6.1.0-amd64", True),
        ("xfs", "5.17.3", True),
        ("ext4", "5.15.0-100-generic", False),
        ("ext4", "6.x", False),
        ("nfs4", "6.1.0", False),
        ("overlay", "6.1.0", False),
    ],
)
def test_where_it_means_as_much_as_fsync(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, release: str, usable: bool
) -> None:
    class Name:
        pass

    monkeypatch.setattr(Name, "release", release, raising=False)
    monkeypatch.setattr(os, "uname", lambda: Name)
    monkeypatch.setattr(file_sync, "file_system_type", lambda path: kind)
    monkeypatch.setattr(file_sync, "_shared", {})
    with (tmp_path / "file").open("wb") as file:
        assert shared_sync(file.fileno())._usable is usable


def test_the_calls_of_the_kernel(tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as file:
        osfs.sync_file_system("test", file.fileno())
        osfs.check_written("test", file.fileno())
        fd = os.dup(file.fileno())
    os.close(fd)
    calls: tuple[Callable[[str, int], None], ...] = (osfs.sync_file_system, osfs.check_written)
    for call in calls:
        with pytest.raises(OSError, match="Bad file descriptor"):
            call("test", fd)
