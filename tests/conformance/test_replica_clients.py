"""Every storage against the one contract."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import pytest

from fixtures.apache import WebDAVServer
from fixtures.azurite import ABSServer
from fixtures.effort import wait_until
from fixtures.gcs import GCSServer
from fixtures.nats_server import NATSServer, place_of
from fixtures.oss import OSSServer
from fixtures.servers import S3Server
from fixtures.sshd import SFTPServer
from pyrep.ltxfile import FileInfo
from pyrep.storage.base import ReplicaClient
from pyrep.storage.file import FileReplicaClient
from pyrep.storage.layout import hex_ltx_path, ltx_path, parse_ltx_path
from pyrep.storage.memory import MemoryReplicaClient, MemoryStorage
from pyrep.storage.registry import ReplicaSpec, connect
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


@dataclass
class SFTPBackend(FileBackend):
    """Use a folder of its own on a server that runs for the whole session."""

    server: SFTPServer
    clients: ExitStack

    def client(self, path: str = "tenant") -> ReplicaClient:
        client = connect(self.server.spec(f"{self.root}/{path}"))
        self.clients.callback(client.close)
        return client


@dataclass
class WebDAVBackend:
    """Use a folder of its own on a server that runs for the whole session."""

    server: WebDAVServer
    clients: ExitStack

    def __post_init__(self) -> None:
        self.top = secrets.token_hex(8)
        self.root = self.server.data / self.top
        self.root.mkdir()
        self.server.give(self.root)

    def client(self, path: str = "tenant") -> ReplicaClient:
        client = connect(self.server.spec(f"{self.top}/{path}"))
        self.clients.callback(client.close)
        return client

    def objects(self) -> dict[str, bytes]:
        # what Apache has of a body that broke off is its own, and goes when it has noticed
        wait_until(lambda: not any(self.root.rglob(".davfs.tmp*")), "no body is half there")
        return FileBackend(self.root).objects()

    def plant(self, path: str, name: str, data: bytes) -> None:
        self.server.write(f"{self.top}/{path}/{name}", data)

    def plant_many(self, path: str, files: dict[str, bytes]) -> None:
        for name, data in files.items():
            self.plant(path, name, data)

    def name(self, path: str, info: FileInfo) -> str:
        return _ltx_name(path, info)


@dataclass
class NATSBackend:
    """Use a bucket of its own on a server that runs for the whole session."""

    server: NATSServer
    clients: ExitStack

    def __post_init__(self) -> None:
        self.bucket = self.server.make_bucket()
        self.clients.callback(self.server.remove_bucket, self.bucket)

    def client(self, path: str = "tenant") -> ReplicaClient:
        client = connect(self.server.spec(self.bucket, path))
        self.clients.callback(client.close)
        return client

    def objects(self) -> dict[str, bytes]:
        return self.server.objects(self.bucket)

    def plant(self, path: str, name: str, data: bytes) -> None:
        info = parse_ltx_path(name)
        whole = f"{path}/{name}"
        if info is None:
            self.server.put(self.bucket, {whole: data})
        else:
            place = place_of(path, info.level, info.name)
            self.server.put_raw(self.bucket, {place: (whole, data)})

    def plant_many(self, path: str, files: dict[str, bytes]) -> None:
        infos = {name: parse_ltx_path(name) for name in files}
        objects = {
            place_of(path, info.level, info.name): (f"{path}/{name}", files[name])
            for name, info in infos.items()
            if info is not None
        }
        self.server.put_raw(self.bucket, objects)

    def name(self, path: str, info: FileInfo) -> str:
        return _ltx_name(path, info)


class RetryBackend(MemoryBackend):
    def client(self, path: str = "tenant") -> ReplicaClient:
        return RetryingClient(super().client(path))


@dataclass
class S3Backend:
    """Use a bucket of its own on a server that runs for the whole session."""

    server: S3Server
    clients: ExitStack

    def __post_init__(self) -> None:
        self.bucket = self.server.make_bucket()

    def client(self, path: str = "tenant") -> ReplicaClient:
        client = connect(self.server.spec(self.bucket, path))
        self.clients.callback(client.close)
        return client

    def objects(self) -> dict[str, bytes]:
        return self.server.objects(self.bucket)

    def plant(self, path: str, name: str, data: bytes) -> None:
        self.server.boto.put_object(Bucket=self.bucket, Key=f"{path}/{name}", Body=data)

    def name(self, path: str, info: FileInfo) -> str:
        name = hex_ltx_path(info.level, info.min_txid, info.max_txid)
        return f"{path}/{name}" if path else name


class ObjectServer(Protocol):
    """Run buckets whose replicas have the plain layout."""

    def make_bucket(self) -> str: ...
    def spec(self, bucket: str, path: str) -> ReplicaSpec: ...
    def objects(self, bucket: str) -> dict[str, bytes]: ...
    def plant(self, bucket: str, key: str, data: bytes) -> None: ...
    def close(self) -> None: ...


@dataclass
class ObjectBackend:
    """Use a bucket of its own on a server that runs for the whole session."""

    server: ObjectServer
    clients: ExitStack

    def __post_init__(self) -> None:
        self.clients.callback(self.server.close)
        self.bucket = self.server.make_bucket()

    def client(self, path: str = "tenant") -> ReplicaClient:
        client = connect(self.server.spec(self.bucket, path))
        self.clients.callback(client.close)
        return client

    def objects(self) -> dict[str, bytes]:
        return self.server.objects(self.bucket)

    def plant(self, path: str, name: str, data: bytes) -> None:
        self.server.plant(self.bucket, f"{path}/{name}", data)

    def name(self, path: str, info: FileInfo) -> str:
        return _ltx_name(path, info)


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


@contextmanager
def _on_server(server: S3Server) -> Iterator[suite.Backend]:
    with ExitStack() as stack:
        stack.callback(server.close)
        yield S3Backend(server, stack)


@pytest.mark.s3
@pytest.mark.parametrize("check", suite.CHECKS, ids=lambda check: check.__name__)
def test_contract_on_moto(moto_server: S3Server, check: Callable[[suite.Backend], None]) -> None:
    with _on_server(moto_server) as backend:
        check(backend)


@pytest.mark.s3
@pytest.mark.parametrize("check", suite.CHECKS, ids=lambda check: check.__name__)
def test_contract_on_radosgw(
    radosgw_server: S3Server, check: Callable[[suite.Backend], None]
) -> None:
    with _on_server(radosgw_server) as backend:
        check(backend)


# Swift lets several writers of the same moment succeed (docs/storage.md says so), and takes minutes
# for thousands of files.
NOT_ON_SWIFT = {
    suite.check_one_of_many_creators_wins,
    suite.check_many_files_are_listed_in_order,
    suite.check_many_files_are_deleted,
}
SWIFT_CHECKS = [check for check in suite.CHECKS if check not in NOT_ON_SWIFT]


@pytest.mark.s3
@pytest.mark.parametrize("check", SWIFT_CHECKS, ids=lambda check: check.__name__)
def test_contract_on_swift(swift_server: S3Server, check: Callable[[suite.Backend], None]) -> None:
    with _on_server(swift_server) as backend:
        check(backend)


@pytest.mark.sftp
@pytest.mark.parametrize("check", suite.CHECKS, ids=lambda check: check.__name__)
def test_contract_on_openssh(
    sftp_server: SFTPServer, tmp_path: Path, check: Callable[[suite.Backend], None]
) -> None:
    with ExitStack() as stack:
        check(SFTPBackend(tmp_path / "replica", sftp_server, stack))


@pytest.mark.gcs
@pytest.mark.parametrize("check", suite.CHECKS, ids=lambda check: check.__name__)
def test_contract_on_fake_gcs(
    gcs_server: GCSServer,
    check: Callable[[suite.Backend], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", gcs_server.host)
    with ExitStack() as stack:
        check(ObjectBackend(gcs_server, stack))


# Apache looks before it moves, so several writers of the same moment may succeed; and it sends as
# many bytes of a file that has just been replaced as the old one had (docs/storage.md says both).
NOT_ON_APACHE = {suite.check_one_of_many_creators_wins, suite.check_readers_never_see_a_part}
APACHE_CHECKS = [check for check in suite.CHECKS if check not in NOT_ON_APACHE]


@pytest.mark.webdav
@pytest.mark.parametrize("check", APACHE_CHECKS, ids=lambda check: check.__name__)
def test_contract_on_apache(
    webdav_server: WebDAVServer, check: Callable[[suite.Backend], None]
) -> None:
    with ExitStack() as stack:
        check(WebDAVBackend(webdav_server, stack))


@pytest.mark.nats
@pytest.mark.parametrize("check", suite.CHECKS, ids=lambda check: check.__name__)
def test_contract_on_nats(nats: NATSServer, check: Callable[[suite.Backend], None]) -> None:
    with ExitStack() as stack:
        check(NATSBackend(nats, stack))


@pytest.mark.abs
@pytest.mark.parametrize("check", suite.CHECKS, ids=lambda check: check.__name__)
def test_contract_on_azurite(
    abs_server: ABSServer,
    check: Callable[[suite.Backend], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Azure takes a backslash for a slash, so such paths are refused.
    paths = [path for path in suite.ODD_PATHS if "\\" not in path]
    monkeypatch.setattr(suite, "ODD_PATHS", paths)
    with ExitStack() as stack:
        check(ObjectBackend(abs_server, stack))


class OSSBackend(ObjectBackend):
    def name(self, path: str, info: FileInfo) -> str:
        name = hex_ltx_path(info.level, info.min_txid, info.max_txid)
        return f"{path}/{name}" if path else name


@pytest.mark.oss
@pytest.mark.parametrize("check", suite.CHECKS, ids=lambda check: check.__name__)
def test_contract_on_the_oss_shim(
    oss_server: OSSServer, check: Callable[[suite.Backend], None]
) -> None:
    with ExitStack() as stack:
        check(OSSBackend(oss_server, stack))


def test_every_check_is_listed() -> None:
    source = Path(suite.__file__).read_text()
    assert len(suite.CHECKS) == source.count("\ndef check_") > 30
