"""GCS, Azure and OSS on servers: large files, broken connections, lost servers, wrong keys."""

from __future__ import annotations

import io
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from fixtures.azurite import ABSServer, azurite
from fixtures.clients import Calling, expect_little_memory
from fixtures.fault_proxy import Fault, TCPProxy, seeded
from fixtures.gcs import fake_gcs
from fixtures.ltxbytes import build_ltx
from fixtures.oss import oss_shim
from fixtures.servers import free_port
from pyrep.clock import SystemClock
from pyrep.doctor import examine, scratch_spec
from pyrep.errors import (
    ReplicaError,
    ReplicaExistsError,
    ReplicaPermanentError,
    ReplicaTemporaryError,
)
from pyrep.ids import TXID
from pyrep.ltxfile import FileInfo
from pyrep.storage.base import ReplicaClient
from pyrep.storage.registry import ReplicaSpec, connect
from pyrep.storage.retry import RetryPolicy

KINDS = [pytest.param(kind, marks=getattr(pytest.mark, mark)) for kind, mark in
         (("gs", "gcs"), ("abs", "abs"), ("oss", "oss"))]  # fmt: skip
HEAD = build_ltx(1, 3, timestamp_ms=1_700_000_000_123)
LARGE = HEAD + random.Random(8).randbytes((20 << 20) - len(HEAD))
PATIENT = RetryPolicy(attempts=8, base=0.01, cap=0.05)
TIME = "2023-11-14T22:13:20.123Z"


@dataclass
class Store:
    """Hold a server, a bucket of its own on it, and who looks at it."""

    kind: str
    server: Any
    bucket: str

    def spec(self, path: str = "t/db", *, port: int | None = None) -> ReplicaSpec:
        """Return a replica, behind a proxy if ``port`` is given."""
        server = self.server if port is None else replace(self.server, port=port)
        spec = server.spec(self.bucket, path)
        if self.kind != "gs" or port is None:
            return spec
        return replace(spec, options={**spec.options, "endpoint": f"http://{server.host}"})


@pytest.fixture(scope="session", params=KINDS)
def running(request: pytest.FixtureRequest) -> tuple[str, Any]:
    kind = request.param
    return kind, request.getfixturevalue({"gs": "gcs"}.get(kind, kind) + "_server")


@pytest.fixture
def store(running: tuple[str, Any], monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    kind, server = running
    for name, value in server.environ.items():
        monkeypatch.setenv(name, value)
    try:
        yield Store(kind, server, server.make_bucket())
    finally:
        server.close()


def put(
    client: ReplicaClient, source: io.BytesIO | None = None, *, create_only: bool = False
) -> FileInfo:
    source = source if source is not None else io.BytesIO(LARGE)
    return client.write_ltx(9, TXID(1), TXID(3), source, create_only=create_only)


def test_large_files_go_up_in_parts(store: Store) -> None:
    with closing(connect(store.spec())) as client:
        info = put(client, create_only=True)
        assert info == FileInfo(9, TXID(1), TXID(3), len(LARGE), 1_700_000_000_123)
        assert list(client.list_ltx(9, exact_times=True)) == [info]
        with client.open_ltx(info) as stream:
            assert stream.read() == LARGE
        for seam in (6 << 20, 8 << 20):
            with client.open_ltx(info, seam - 3, 7) as stream:
                assert stream.read() == LARGE[seam - 3 : seam + 4]
        with pytest.raises(ReplicaExistsError):
            put(client, create_only=True)
        assert put(client) == info


# The other servers, fake-gcs-server and moto, do not mind the condition at an upload's end.
@pytest.mark.parametrize("running", KINDS[1:2], indirect=True)
def test_writers_of_large_files_race(store: Store) -> None:
    """Let several writers finish the same large file: one wins, and the file is its own."""
    start, won = threading.Barrier(4), []

    def write(number: int) -> None:
        data = LARGE[: (9 << 20) + number]
        with closing(connect(store.spec())) as client:
            start.wait()
            try:
                put(client, io.BytesIO(data), create_only=True)
            except ReplicaExistsError:
                return
            won.append(data)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert list(store.server.objects(store.bucket).values()) == won


def test_a_failing_source_leaves_nothing(store: Store) -> None:
    def fail() -> None:
        raise OSError("the source's disk")

    with closing(connect(store.spec())) as client:
        with pytest.raises(OSError, match="the source's disk"):
            put(client, Calling(LARGE, 12 << 20, fail))
        assert store.server.objects(store.bucket) == {}
        assert put(client, create_only=True).size == len(LARGE)


def test_memory_does_not_grow_with_the_file(store: Store) -> None:
    with closing(connect(store.spec())) as client:
        expect_little_memory(client, file=96 << 20, peak=64 << 20)


def test_slow_and_cut_connections(store: Store) -> None:
    data = [build_ltx(n, n) + random.Random(n).randbytes(40_000) for n in range(1, 13)]
    with ExitStack() as stack:
        plan = seeded(5, cuts=0.3, slow=0.1, most=60_000)
        proxy = stack.enter_context(TCPProxy(store.server.port, plan))
        spec = store.spec(port=proxy.port)
        with closing(connect(spec, policy=PATIENT)) as client:
            for txid, one in enumerate(data, 1):
                client.write_ltx(0, TXID(txid), TXID(txid), io.BytesIO(one))
                proxy.cut()
            infos = list(client.list_ltx(0))
            assert [int(info.min_txid) for info in infos] == list(range(1, 13))
            for info, one in zip(infos, data, strict=True):
                with client.open_ltx(info) as stream:
                    assert stream.read() == one
    whole = store.server.objects(store.bucket)
    assert sorted(whole.values()) == sorted(data)


@pytest.mark.parametrize("way", ["cut_up", "cut_down"])
def test_every_cut_of_a_write_leaves_all_or_nothing(store: Store, way: str) -> None:
    data = build_ltx(1, 1) + random.Random(1).randbytes(3_000)
    for after in (0, 1, 100, 700, 2_000, 3_500):
        fault = Fault(**{way: after})
        with TCPProxy(store.server.port, lambda number, fault=fault: fault) as proxy:
            spec = store.spec(f"cut/{after}", port=proxy.port)
            client = connect(spec, policy=RetryPolicy(attempts=1))
            with closing(client), suppress(ReplicaTemporaryError):
                client.write_ltx(0, TXID(1), TXID(1), io.BytesIO(data))
    assert set(store.server.objects(store.bucket).values()) <= {data}


def test_an_upload_of_parts_survives_cuts(store: Store) -> None:
    plan = {2: Fault(cut_up=3 << 20), 4: Fault(cut_down=10)}
    plan[5] = Fault(cut_up=1 << 20, reset=False)
    with ExitStack() as stack:
        proxy = stack.enter_context(TCPProxy(store.server.port, plan.get))
        client = connect(store.spec(port=proxy.port), policy=PATIENT)
        stack.enter_context(closing(client))
        info = put(client)
        with client.open_ltx(info) as stream:
            assert stream.read() == LARGE


def test_a_server_that_is_down_is_a_temporary_error(store: Store) -> None:
    with TCPProxy(store.server.port) as proxy:
        proxy.accepting = False
        spec = store.spec(port=proxy.port)
        with closing(connect(spec, policy=RetryPolicy(attempts=1))) as client:
            calls: list[Callable[[], object]] = [
                lambda: list(client.list_ltx(0)),
                lambda: client.open_ltx(FileInfo(9, TXID(1), TXID(3))),
                lambda: put(client, io.BytesIO(HEAD)),
                lambda: client.delete_ltx([FileInfo(9, TXID(1), TXID(3))]),
            ]
            for call in calls:
                with pytest.raises(ReplicaTemporaryError, match="t/db"):
                    call()
            proxy.accepting = True
            assert put(client, io.BytesIO(HEAD)).size == len(HEAD)


STARTERS: dict[str, Callable[[Path, int], AbstractContextManager[Any]]] = {
    "gs": lambda folder, port: fake_gcs(folder, port=port, keep=True),
    "abs": lambda folder, port: azurite(folder, port=port, keep=True),
    "oss": lambda folder, port: oss_shim(folder, port=port),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_server_is_stopped_and_started_while_an_upload_is_in_flight(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    with ExitStack() as running:
        server = running.enter_context(STARTERS[kind](tmp_path, port))
        for name, value in server.environ.items():
            monkeypatch.setenv(name, value)
        bucket = server.make_bucket()
        down = threading.Event()

        def stop() -> None:
            running.close()
            down.set()

        class Restarting(SystemClock):
            """Start the server again when somebody waits to try again."""

            def wait(self, event: threading.Event, timeout: float | None) -> bool:
                if down.is_set() and failures.append(1) is None and len(failures) == 6:
                    down.clear()
                    again = running.enter_context(STARTERS[kind](tmp_path, port))
                    if kind == "oss":  # it keeps all in memory, the bucket too
                        monkeypatch.setattr("secrets.token_hex", lambda n: bucket[6:])
                        again.make_bucket()
                        again.close()
                return event.wait(0)

        failures: list[int] = []
        policy = RetryPolicy(attempts=12, base=0.0)
        with closing(
            connect(server.spec(bucket, "t"), clock=Restarting(), policy=policy)
        ) as client:
            info = put(client, Calling(LARGE, 12 << 20, stop), create_only=True)
            assert len(failures) >= 6
            with client.open_ltx(info) as stream:
                assert stream.read() == LARGE


@pytest.mark.parametrize(
    ("running", "wrong"),
    [
        pytest.param("abs", {"account-key": "d3JvbmctYW5kLXNlY3JldA=="}, marks=pytest.mark.abs),
        pytest.param("abs", {"sas-token": "sv=2021-12-02&sig=hush"}, marks=pytest.mark.abs),
        pytest.param("oss", {"access-key-id": "hush"}, marks=pytest.mark.oss),
        pytest.param("oss", {"secret-access-key": "hush"}, marks=pytest.mark.oss),
    ],
    indirect=["running"],
)
def test_wrong_credentials_are_permanent_errors(store: Store, wrong: dict[str, str]) -> None:
    spec = store.spec("team a/db")
    spec = replace(spec, options={**spec.options, **wrong})
    with closing(connect(spec)) as client:
        for call in (lambda: list(client.list_ltx(0)), lambda: put(client, io.BytesIO(HEAD))):
            with pytest.raises(ReplicaPermanentError, match="403") as caught:
                call()
            assert "team a/db" in str(caught.value)
            assert caught.value.hint
            assert "hush" not in str(caught.value)


@pytest.mark.abs
def test_a_sas_token_lets_in(abs_server: ABSServer) -> None:
    from datetime import UTC, datetime, timedelta

    from azure.storage.blob import ContainerSasPermissions, generate_container_sas

    server = abs_server
    bucket = server.make_bucket()
    token = generate_container_sas(
        server.account,
        bucket,
        account_key=server.key,
        permission=ContainerSasPermissions(True, True, True, True),
        expiry=datetime.now(UTC) + timedelta(hours=1),
    )
    spec = server.spec(bucket, "t/db")
    options = {key: value for key, value in spec.options.items() if key != "account-key"}
    with closing(connect(replace(spec, options={**options, "sas-token": token}))) as client:
        info = put(client, create_only=True)
        assert list(client.list_ltx(9)) == [info]
        client.delete_all()
    server.close()


def test_a_missing_bucket_is_a_permanent_error(store: Store) -> None:
    spec = replace(store, bucket="pyrep-there-is-none").spec()
    with closing(connect(spec)) as client:
        for call in (lambda: list(client.list_ltx(0)), lambda: put(client, io.BytesIO(HEAD))):
            with pytest.raises(ReplicaError, match="404") as caught:
                call()
            assert isinstance(caught.value, ReplicaPermanentError)
            assert caught.value.hint.startswith("Create the")


def test_times_are_kept_as_litestream_keeps_them(store: Store) -> None:
    with closing(connect(store.spec())) as client:
        put(client, io.BytesIO(HEAD))
    (key,) = store.server.objects(store.bucket)
    (found,) = store.server.metadata(store.bucket, key).items()
    name = "litestreamtimestamp" if store.kind == "abs" else "litestream-timestamp"
    assert (found[0].lower(), found[1]) == (name, TIME)


def test_the_doctor_finds_nothing_wrong(store: Store) -> None:
    with closing(connect(store.spec("other"))) as client:
        kept = put(client, io.BytesIO(HEAD))
        spec, name = scratch_spec(store.spec(""))
        with closing(connect(spec)) as scratch:
            findings = list(examine(scratch, name))
        assert {f.check: f.detail for f in findings if f.result != "ok"} == {}
        assert list(client.list_ltx(9, exact_times=True)) == [kept]
    assert len(store.server.objects(store.bucket)) == 1
