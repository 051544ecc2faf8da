"""Staged files get a second name on a file replica, where that is safe; else a copy."""

from __future__ import annotations

import errno
import io
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fixtures.ltxbytes import build_ltx
from pyrep import osfs
from pyrep.errors import ReplicaExistsError
from pyrep.ids import TXID
from pyrep.ltxfile import FileInfo
from pyrep.storage import file_link
from pyrep.storage.file import FileReplicaClient
from pyrep.storage.file_link import StableFile

STAGED = build_ltx(1, 1, timestamp_ms=1_700_000_000_123) + bytes(9000)


@pytest.fixture(autouse=True)
def _disarm() -> Iterator[None]:
    yield
    osfs.disarm()


@pytest.fixture
def staged(tmp_path: Path) -> Path:
    path = tmp_path / "staged.ltx"
    path.write_bytes(STAGED)
    path.chmod(0o644)
    return path


def _put(client: FileReplicaClient, path: Path, **options: bool) -> FileInfo:
    with StableFile(path) as source:
        return client.write_ltx(0, TXID(1), TXID(1), source, **{"create_only": True, **options})


def _stored(tmp_path: Path) -> Path:
    return tmp_path / "replica" / "ltx" / "0" / FileInfo(0, TXID(1), TXID(1)).name


def _client(tmp_path: Path, **options: Any) -> FileReplicaClient:
    return FileReplicaClient(tmp_path / "replica", **options)


def test_one_file_with_two_names(tmp_path: Path, staged: Path) -> None:
    info = _put(_client(tmp_path), staged)
    stored = _stored(tmp_path)
    assert stored.samefile(staged)
    assert stored.stat().st_mode & 0o777 == 0o600
    assert (info.size, info.timestamp_ms) == (len(STAGED), 1_700_000_000_123)
    assert list(_client(tmp_path).list_ltx(0)) == [info]
    assert [path.name for path in stored.parent.iterdir()] == [stored.name]
    staged.unlink()
    assert stored.read_bytes() == STAGED


def test_the_content_is_durable_before_its_name(
    tmp_path: Path, staged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    real = osfs._call

    def noting(op: str, call: Callable[[], object]) -> None:
        steps.append(op)
        real(op, call)

    monkeypatch.setattr(osfs, "_call", noting)
    client = _client(tmp_path)
    _put(client, staged)
    assert steps[:5] == ["file.mkdir", "file.chmod", "file.utime", "file.fsync", "file.link"]
    assert set(steps[5:]) == {"file.fsync_dir"}


def test_a_taken_name_is_refused_and_made_durable(
    tmp_path: Path, staged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = _client(tmp_path)
    _put(client, staged)
    synced: list[str] = []
    monkeypatch.setattr(osfs, "fsync_dir", lambda op, path: synced.append(os.fspath(path)))
    with pytest.raises(ReplicaExistsError):
        _put(client, staged)
    assert synced == [str(_stored(tmp_path).parent)]
    assert _stored(tmp_path).read_bytes() == STAGED


def _writable_by_others(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.chmod(0o664)


def _of_somebody_else(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: path.stat().st_uid + 1)


def _without_name(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = file_link.seal

    def seal(*args: Any) -> bool:
        path.unlink()
        return real(*args)

    monkeypatch.setattr("pyrep.storage.file.seal", seal)


def _on_another_file_system(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(op: str, fd: int, target: str) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), target)

    monkeypatch.setattr(osfs, "link_fd", refuse)


@pytest.mark.parametrize(
    "doubt",
    [_writable_by_others, _of_somebody_else, _without_name, _on_another_file_system],
)
def test_in_doubt_it_is_copied(
    tmp_path: Path, staged: Path, monkeypatch: pytest.MonkeyPatch, doubt: Callable[..., None]
) -> None:
    inode = staged.stat().st_ino
    doubt(staged, monkeypatch)
    _put(_client(tmp_path), staged)
    assert _stored(tmp_path).read_bytes() == STAGED
    assert _stored(tmp_path).stat().st_ino != inode


def test_other_sources_and_owners_and_replacements_are_copied(tmp_path: Path, staged: Path) -> None:
    target = _stored(tmp_path)
    owner = (os.geteuid(), os.getegid())
    _put(_client(tmp_path, owner=owner), staged)
    assert not target.samefile(staged)
    _put(_client(tmp_path), staged, create_only=False)
    assert not target.samefile(staged)
    target.unlink()
    with open(staged, "rb") as source:
        _client(tmp_path).write_ltx(0, TXID(1), TXID(1), source, create_only=True)
    assert not target.samefile(staged)


def test_a_file_that_is_read_from_its_middle_is_copied(tmp_path: Path, staged: Path) -> None:
    staged.write_bytes(bytes(10_000) + STAGED)
    with StableFile(staged) as source:
        source.seek(10_000)
        _client(tmp_path).write_ltx(0, TXID(1), TXID(1), source, create_only=True)
    assert _stored(tmp_path).read_bytes() == STAGED


def test_after_a_failed_sync_files_are_copied(tmp_path: Path, staged: Path) -> None:
    client = _client(tmp_path)
    osfs.arm([osfs.Failpoint("file.fsync", 1, "eio")])
    _put(client, staged)
    assert not _stored(tmp_path).samefile(staged)
    assert _stored(tmp_path).read_bytes() == STAGED
    _stored(tmp_path).unlink()
    _put(client, staged)
    assert not _stored(tmp_path).samefile(staged)


def test_a_source_in_memory_is_copied(tmp_path: Path) -> None:
    client = _client(tmp_path)
    client.write_ltx(0, TXID(1), TXID(1), io.BytesIO(STAGED), create_only=True)
    assert _stored(tmp_path).read_bytes() == STAGED


def test_a_folder_that_was_removed_is_made_again(tmp_path: Path, staged: Path) -> None:
    client = _client(tmp_path)
    _put(client, staged)
    shutil.rmtree(tmp_path / "replica")
    _put(client, staged)
    assert _stored(tmp_path).read_bytes() == STAGED
