"""What only the file replica does: order of syncs, modes, left-overs, odd file systems."""

from __future__ import annotations

import errno
import fcntl
import io
import logging
import os
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fixtures.ltxbytes import build_ltx
from pyrep import osfs
from pyrep.errors import (
    LTXCorruptError,
    LTXNotFoundError,
    ReplicaError,
    ReplicaExistsError,
    ReplicaPermanentError,
    ReplicaTemporaryError,
)
from pyrep.ids import TXID
from pyrep.ltxfile import FileInfo
from pyrep.storage.file import FileReplicaClient

INFO = FileInfo(0, TXID(1), TXID(1))
DATA = build_ltx(1, 1) + bytes(1_500_000)
CHUNKS = 2
CREATE_OPS = ["mkdir", "open", "write", "utime", "fsync", "link", "unlink", "fsync_dir"]
REPLACE_OPS = ["mkdir", "open", "write", "utime", "fsync", "replace", "fsync_dir"]


@pytest.fixture(autouse=True)
def _disarm() -> Iterator[None]:
    yield
    osfs.disarm()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "made" / "replica"


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Note each mutating call: its step, and the path if it has one."""
    seen: list[tuple[str, str]] = []

    def noting(call: Callable[..., Any]) -> Callable[..., Any]:
        def noted(op: str, where: Any, *args: Any, **kwargs: Any) -> Any:
            seen.append((op, "" if isinstance(where, int) else os.fspath(where)))
            return call(op, where, *args, **kwargs)

        return noted

    for name in osfs.__all__:
        if name.islower() and name not in ("arm", "disarm", "parse_failpoints"):
            monkeypatch.setattr(osfs, name, noting(getattr(osfs, name)))
    return seen


def put(client: FileReplicaClient, *, create_only: bool = True, data: bytes = DATA) -> FileInfo:
    return client.write_ltx(0, TXID(1), TXID(1), io.BytesIO(data), create_only=create_only)


def files(root: Path) -> list[str]:
    return sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if not p.is_dir())


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def steps(calls: list[tuple[str, str]]) -> list[str]:
    return [op.removeprefix("file.") for op, _ in calls]


def test_a_created_file_is_durable_before_it_is_named(
    root: Path, calls: list[tuple[str, str]]
) -> None:
    put(FileReplicaClient(root))
    head = ["mkdir", "open", *["write"] * CHUNKS, "utime", "fsync", "link", "unlink"]
    assert steps(calls)[: len(head)] == head
    assert {op for op, _ in calls[len(head) :]} == {"file.fsync_dir"}
    synced = [path for _, path in calls[len(head) :]]
    made = [root.parent.parent, root.parent, root, root / "ltx"]
    assert synced == [str(root / "ltx/0"), *map(str, made)]


def test_a_later_file_syncs_its_directory_only(root: Path, calls: list[tuple[str, str]]) -> None:
    client = FileReplicaClient(root)
    put(client)
    calls.clear()
    put(client, create_only=False)
    wanted = ["open", *["write"] * CHUNKS, "utime", "fsync", "replace", "fsync_dir"]
    assert steps(calls) == wanted
    assert calls[-1][1] == str(root / "ltx/0")


def test_a_refused_file_leaves_a_durable_name(root: Path, calls: list[tuple[str, str]]) -> None:
    put(FileReplicaClient(root))
    calls.clear()
    with pytest.raises(ReplicaExistsError):
        put(FileReplicaClient(root))
    wanted = ["link", "fsync_dir", "fsync_dir", "fsync_dir", "unlink"]
    assert steps(calls)[-5:] == wanted


def test_names_stay_to_be_synced_until_it_worked(root: Path, calls: list[tuple[str, str]]) -> None:
    client = FileReplicaClient(root)
    osfs.arm(osfs.parse_failpoints("file.fsync_dir:2:eio"))
    with pytest.raises(ReplicaTemporaryError, match="injected input/output error"):
        put(client)
    calls.clear()
    with pytest.raises(ReplicaExistsError):
        put(client)
    synced = [path for op, path in calls if op == "file.fsync_dir"]
    assert str(root.parent.parent) in synced
    assert str(root / "ltx/0") in synced


def test_a_directory_above_need_not_be_readable(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = osfs.fsync_dir

    def refuse_above(op: str, path: str) -> None:
        if path == str(root.parent.parent):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        real(op, path)

    monkeypatch.setattr(osfs, "fsync_dir", refuse_above)
    assert put(FileReplicaClient(root)).size == len(DATA)


def test_missing_rights_are_permanent(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(op: str, path: str, *args: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", path)

    monkeypatch.setattr(osfs, "make_dirs", refuse)
    with pytest.raises(ReplicaPermanentError, match="create failed: permission denied") as caught:
        put(FileReplicaClient(root))
    assert str(root / "ltx/0") in str(caught.value)
    assert "Let the user that runs pyrep" in caught.value.hint


def test_deletes_are_durable(root: Path, calls: list[tuple[str, str]]) -> None:
    client = FileReplicaClient(root)
    client.delete_ltx([put(client)])
    assert steps(calls)[-2:] == ["delete", "fsync_dir"]
    calls.clear()
    client.delete_ltx([INFO])
    assert steps(calls) == ["delete"]


def test_new_files_and_directories_are_private(root: Path) -> None:
    put(FileReplicaClient(root))
    assert mode(root / "ltx/0" / INFO.name) == 0o600
    for folder in (root.parent, root, root / "ltx", root / "ltx/0"):
        assert mode(folder) == 0o700


def test_existing_directories_keep_their_mode(root: Path) -> None:
    root.mkdir(parents=True)
    root.chmod(0o775)
    put(FileReplicaClient(root))
    assert mode(root) == 0o775
    assert mode(root / "ltx") == 0o700


def test_modes_and_owner_can_be_given(root: Path, calls: list[tuple[str, str]]) -> None:
    before = os.umask(0o077)
    try:
        owner = (os.getuid(), os.getgid())
        put(FileReplicaClient(root, mode=0o664, dir_mode=0o700, owner=owner))
    finally:
        os.umask(before)
    assert mode(root / "ltx/0" / INFO.name) == 0o664
    assert steps(calls).count("chown") == 5
    assert steps(calls).index("chmod") < steps(calls).index("fsync")


@pytest.mark.parametrize("action", ["enospc", "eio"])
@pytest.mark.parametrize("op", CREATE_OPS)
def test_a_failed_create_can_be_repeated(root: Path, op: str, action: str) -> None:
    client = FileReplicaClient(root)
    osfs.arm(osfs.parse_failpoints(f"file.{op}:1:{action}"))
    with pytest.raises(ReplicaTemporaryError, match="injected") as caught:
        put(client)
    assert str(root) in str(caught.value)
    assert caught.value.hint
    published = op in ("unlink", "fsync_dir")
    assert files(root.parent) == ([f"replica/ltx/0/{INFO.name}"] if published else [])
    try:
        put(client)
    except ReplicaExistsError:
        assert published
    assert files(root) == [f"ltx/0/{INFO.name}"]
    assert client.open_ltx(INFO).read() == DATA


@pytest.mark.parametrize("action", ["enospc", "eio"])
@pytest.mark.parametrize("op", REPLACE_OPS)
def test_a_failed_replacement_can_be_repeated(root: Path, op: str, action: str) -> None:
    old = build_ltx(1, 1, timestamp_ms=5)
    put(FileReplicaClient(root), data=old)
    client = FileReplicaClient(root)
    osfs.arm(osfs.parse_failpoints(f"file.{op}:1:{action}"))
    if op == "mkdir":  # nothing to make, so nothing to fail
        put(client, create_only=False)
    else:
        with pytest.raises(ReplicaTemporaryError, match="injected"):
            put(client, create_only=False)
        assert client.open_ltx(INFO).read() in ([DATA] if op == "fsync_dir" else [old])
    assert files(root) == [f"ltx/0/{INFO.name}"]
    put(client, create_only=False)
    assert files(root) == [f"ltx/0/{INFO.name}"]
    assert client.open_ltx(INFO).read() == DATA


def test_a_disk_that_stays_full_leaves_nothing(root: Path) -> None:
    client = FileReplicaClient(root)
    osfs.arm(osfs.parse_failpoints("file.write:2:enospc+"))
    for _ in range(3):
        with pytest.raises(ReplicaTemporaryError, match="no space left on device") as caught:
            put(client)
        assert "Free space" in caught.value.hint
    assert files(root) == []


@pytest.mark.parametrize("op", ["delete", "fsync_dir"])
def test_a_failed_delete_can_be_repeated(root: Path, op: str) -> None:
    client = FileReplicaClient(root)
    put(client)
    osfs.arm(osfs.parse_failpoints(f"file.{op}:1:eio"))
    with pytest.raises(ReplicaTemporaryError, match="injected"):
        client.delete_ltx([INFO])
    client.delete_ltx([INFO])
    assert files(root) == []


def test_left_overs_of_the_dead_are_removed(root: Path) -> None:
    put(FileReplicaClient(root))
    dead = root / "ltx/0/.pyrep-0123456789abcdef.tmp"
    foreign = [".pyrep-0123.tmp", ".pyrep-0123456789abcdef.tmp.old", f"{INFO.name}.tmp"]
    for name in [dead.name, *foreign]:
        (root / "ltx/0" / name).write_bytes(b"half")
    put(FileReplicaClient(root), create_only=False)
    assert files(root) == sorted(f"ltx/0/{name}" for name in [INFO.name, *foreign])


def test_temporary_files_of_the_living_stay(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    put(FileReplicaClient(root))
    living = root / "ltx/0/.pyrep-0123456789abcdef.tmp"
    with living.open("wb") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        put(FileReplicaClient(root), create_only=False)
        FileReplicaClient(root).delete_all()
        assert files(root) == [f"ltx/0/{living.name}"]
    FileReplicaClient(root).delete_all()
    assert not (root / "ltx").exists()
    assert not [record for record in caplog.records if record.levelno > logging.DEBUG]


def test_a_left_over_that_resists_stops_nothing(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put(FileReplicaClient(root))
    left = root / "ltx/0/.pyrep-0123456789abcdef.tmp"
    left.write_bytes(b"half")
    osfs.arm(osfs.parse_failpoints("file.unlink:1:eio"))
    with caplog.at_level(logging.INFO):
        put(FileReplicaClient(root), create_only=False)
    assert left.exists()
    assert [record.getMessage() for record in caplog.records] == [
        f"left a temporary file of a dead process: path={left} "
        "error=[Errno 5] injected input/output error: 'file.unlink'"
    ]


def test_a_file_that_a_cleaner_took_is_made_again(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = osfs.open_file
    taken: list[str] = []

    def open_and_lose(op: str, path: str, *args: Any) -> int:
        fd = real(op, path, *args)
        if not taken:
            taken.append(path)
            os.unlink(path)
        return fd

    monkeypatch.setattr(osfs, "open_file", open_and_lose)
    assert put(FileReplicaClient(root)).size == len(DATA)
    assert len(taken) == 1
    assert files(root) == [f"ltx/0/{INFO.name}"]


def test_a_file_that_a_cleaner_holds_is_made_again(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = osfs.open_file
    held: list[int] = []

    def open_and_hold(op: str, path: str, *args: Any) -> int:
        fd = real(op, path, *args)
        if not held:
            held.append(os.open(path, os.O_RDWR))
            fcntl.flock(held[0], fcntl.LOCK_EX)
        return fd

    monkeypatch.setattr(osfs, "open_file", open_and_hold)
    try:
        assert put(FileReplicaClient(root)).size == len(DATA)
    finally:
        os.close(held[0])
    assert f"ltx/0/{INFO.name}" in files(root)


def test_a_directory_that_is_always_removed_is_an_error(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(op: str, path: str, *args: Any) -> int:
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", path)

    monkeypatch.setattr(osfs, "open_file", refuse)
    with pytest.raises(ReplicaTemporaryError, match="removed as fast as they are made"):
        put(FileReplicaClient(root))


def test_a_directory_that_disappeared_is_made_again(root: Path) -> None:
    client = FileReplicaClient(root)
    info = put(client)
    FileReplicaClient(root).delete_all()
    assert not root.exists()
    assert put(client) == info
    assert files(root) == [f"ltx/0/{INFO.name}"]


@pytest.fixture
def no_links(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(op: str, src: str, dst: str) -> None:
        raise OSError(errno.EPERM, "Operation not permitted", src)

    monkeypatch.setattr(osfs, "link", refuse)


def test_without_hard_links_names_are_claimed_under_a_lock(
    root: Path, no_links: None, caplog: pytest.LogCaptureFixture
) -> None:
    client = FileReplicaClient(root)
    assert client.capabilities.conditional_put
    info = put(client)
    assert not client.capabilities.conditional_put
    with pytest.raises(ReplicaExistsError):
        put(client, data=build_ltx(1, 1))
    assert files(root) == [f"ltx/0/{INFO.name}"]
    assert client.open_ltx(info).read() == DATA
    messages = [record.getMessage() for record in caplog.records]
    assert messages == [
        "file system has no hard links: create-only writes are atomic only between processes of "
        f"this machine: replica={root}"
    ]


def test_without_hard_links_the_claim_is_locked(
    root: Path, no_links: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, refused = osfs.replace, []

    def look_at_the_lock(op: str, src: str, dst: str) -> None:
        fd = os.open(os.path.dirname(dst), os.O_RDONLY)
        try:
            with pytest.raises(BlockingIOError) as caught:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            refused.append(caught.value)
        finally:
            os.close(fd)
        real(op, src, dst)

    monkeypatch.setattr(osfs, "replace", look_at_the_lock)
    put(FileReplicaClient(root))
    assert len(refused) == 1


def test_without_hard_links_one_creator_wins(root: Path, no_links: None) -> None:
    barrier = threading.Barrier(8)
    won: list[int] = []

    def create(time: int) -> None:
        client = FileReplicaClient(root)
        data = build_ltx(1, 1, timestamp_ms=time)
        barrier.wait()
        try:
            put(client, data=data)
        except ReplicaExistsError:
            return
        won.append(time)

    threads = [threading.Thread(target=create, args=(time,)) for time in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    (info,) = FileReplicaClient(root).list_ltx(0)
    assert info.timestamp_ms == won[0]
    assert files(root) == [f"ltx/0/{INFO.name}"]


def test_a_file_system_without_locks_will_do(
    root: Path, no_links: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(FileReplicaClient(root))
    left = root / "ltx/0/.pyrep-0123456789abcdef.tmp"
    left.write_bytes(b"half")

    def refuse(fd: int, flags: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    client = FileReplicaClient(root)
    client.write_ltx(0, TXID(2), TXID(2), io.BytesIO(build_ltx(2, 2)), create_only=True)
    with pytest.raises(ReplicaExistsError):
        put(client)
    assert left.exists()
    assert [info.min_txid for info in client.list_ltx(0)] == [1, 2]


@pytest.mark.parametrize("kind", ["symlink", "pipe", "directory"])
def test_only_regular_files_are_ltx_files(root: Path, tmp_path: Path, kind: str) -> None:
    client = FileReplicaClient(root)
    other = client.write_ltx(0, TXID(2), TXID(2), io.BytesIO(build_ltx(2, 2)))
    path = root / "ltx/0" / INFO.name
    if kind == "symlink":
        (tmp_path / "target").write_bytes(DATA)
        path.symlink_to(tmp_path / "target")
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()
    assert list(client.list_ltx(0)) == [other]
    with pytest.raises(LTXNotFoundError):
        client.open_ltx(INFO)
    with pytest.raises(ReplicaExistsError):
        put(client)
    client.delete_all()
    assert os.path.lexists(path)


def test_the_replica_path_may_be_a_link(root: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    root.parent.mkdir()
    root.symlink_to(tmp_path / "elsewhere")
    client = FileReplicaClient(root)
    info = put(client)
    assert files(tmp_path / "elsewhere") == [f"ltx/0/{INFO.name}"]
    assert list(client.list_ltx(0)) == [info]


def test_a_file_where_a_directory_is_needed(root: Path) -> None:
    root.parent.mkdir()
    root.write_bytes(b"")
    client = FileReplicaClient(root)
    calls: list[Callable[[], object]] = [
        lambda: put(client),
        lambda: client.list_ltx(0),
        lambda: client.open_ltx(INFO),
        lambda: client.delete_ltx([INFO]),
    ]
    for call in calls:
        with pytest.raises(ReplicaPermanentError) as caught:
            call()
        assert str(root) in str(caught.value)
        assert "Move the file away" in caught.value.hint


def test_a_path_that_is_too_long_names_the_limit(tmp_path: Path) -> None:
    for path in (tmp_path / ("x" * 256), tmp_path.joinpath(*["y" * 200] * 21)):
        client = FileReplicaClient(path)
        with pytest.raises(ReplicaPermanentError, match="name too long") as caught:
            put(client)
        assert "255 bytes" in caught.value.hint
        assert "4095" in caught.value.hint


def test_a_file_deleted_during_a_listing_is_left_out(root: Path) -> None:
    client = FileReplicaClient(root)
    for txid in (1, 2, 3):
        data = io.BytesIO(build_ltx(txid, txid))
        client.write_ltx(0, TXID(txid), TXID(txid), data)
    listing = client.list_ltx(0)
    assert next(listing).min_txid == 1
    client.delete_ltx([FileInfo(0, TXID(2), TXID(2))])
    assert [info.min_txid for info in listing] == [3]


def test_a_file_cut_short_while_it_is_read_is_corrupt(root: Path) -> None:
    client = FileReplicaClient(root)
    with client.open_ltx(put(client)) as stream:
        assert len(stream.read(10)) == 10
        os.truncate(root / "ltx/0" / INFO.name, 500_000)
        with pytest.raises(LTXCorruptError, match="bytes early"):
            stream.read()


def test_a_disk_error_while_reading_is_temporary(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(fd: int, buffers: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    client = FileReplicaClient(root)
    with client.open_ltx(put(client)) as stream:
        monkeypatch.setattr(os, "readv", fail)
        with pytest.raises(ReplicaTemporaryError, match="read failed: input/output error"):
            stream.read()


def test_an_open_stream_survives_delete_and_close(root: Path) -> None:
    client = FileReplicaClient(root)
    with client.open_ltx(put(client)) as stream:
        client.delete_all()
        client.close()
        assert stream.read() == DATA


def test_delete_all_tells_what_it_cannot_delete(root: Path) -> None:
    client = FileReplicaClient(root)
    put(client)
    osfs.arm(osfs.parse_failpoints("file.rmdir:1:eio"))
    with pytest.raises(ReplicaError, match="delete failed"):
        client.delete_all()
    client.delete_all()
    assert not root.exists()
