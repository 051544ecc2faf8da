"""Every storage against the one contract."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pyrep.ltxfile import FileInfo
from pyrep.storage.base import ReplicaClient
from pyrep.storage.file import FileReplicaClient
from pyrep.storage.layout import ltx_path
from pyrep.storage.memory import MemoryReplicaClient, MemoryStorage
from pyrep.storage.retry import RetryingClient

pytest.register_assert_rewrite("conformance.suite")
from conformance import suite  # noqa: E402  (after the registration)


def _ltx_name(path: str, info: FileInfo) -> str:
    name = ltx_path(info.level, info.min_txid, info.max_txid)
    return f"{path}/{name}" if path else name


@dataclass
class MemoryBackend:
    storage: MemoryStorage = field(default_factory=MemoryStorage)

    def client(self, path: str = "tenant") -> ReplicaClient:
        return MemoryReplicaClient(self.storage, path)

    def objects(self) -> dict[str, bytes]:
        with self.storage.lock:
            return {name: data for name, (data, _) in self.storage.objects.items()}

    def plant(self, path: str, name: str, data: bytes) -> None:
        with self.storage.lock:
            self.storage.objects[f"{path}/{name}"] = (data, 0)

    def name(self, path: str, info: FileInfo) -> str:
        return _ltx_name(path, info)


@dataclass
class FileBackend:
    root: Path

    def client(self, path: str = "tenant") -> ReplicaClient:
        return FileReplicaClient(self.root / path)

    def objects(self) -> dict[str, bytes]:
        found = {}
        for folder, _, names in os.walk(self.root):
            for name in names:
                path = Path(folder, name)
                found[path.relative_to(self.root).as_posix()] = path.read_bytes()
        return found

    def plant(self, path: str, name: str, data: bytes) -> None:
        target = self.root / path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)

    def name(self, path: str, info: FileInfo) -> str:
        return _ltx_name(path, info)


class RetryBackend(MemoryBackend):
    def client(self, path: str = "tenant") -> ReplicaClient:
        return RetryingClient(super().client(path))


BACKENDS: dict[str, Callable[[Path], suite.Backend]] = {
    "memory": lambda root: MemoryBackend(),
    "file": FileBackend,
    "retry": lambda root: RetryBackend(),
}


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> suite.Backend:
    return BACKENDS[request.param](tmp_path / "replica")


@pytest.mark.parametrize("check", suite.CHECKS, ids=lambda check: check.__name__)
def test_contract(backend: suite.Backend, check: Callable[[suite.Backend], None]) -> None:
    check(backend)


def test_every_check_is_listed() -> None:
    source = Path(suite.__file__).read_text()
    assert len(suite.CHECKS) == source.count("\ndef check_") > 30
