"""SFTP, WebDAV and NATS: connections that are shared, slow or cut, and a server that goes."""

from __future__ import annotations

import secrets
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fixtures.apache import apache
from fixtures.clients import (
    HEAD,
    PATIENT,
    Calling,
    client_of,
    everybody_works,
    expect_little_memory,
    put,
)
from fixtures.fault_proxy import Fault, TCPProxy, seeded
from fixtures.nats_server import NATSServer, nats_server
from fixtures.sshd import sshd
from pyrep.storage import registry
from pyrep.storage.registry import ReplicaSpec, connect


def cut_first(count: int, step: int) -> Callable[[int], Fault | None]:
    """Return a plan that cuts the first connections after ever more bytes, and slows the next."""

    def plan(number: int) -> Fault | None:
        if number >= count:
            return Fault(pace=5e6) if number == count else None
        after = step * number
        return Fault(cut_up=after) if number % 2 else Fault(cut_down=after, reset=False)

    return plan


@dataclass(frozen=True)
class Kind:
    """Say what differs between the storages."""

    fixture: str
    start: Callable[[Path], AbstractContextManager[Any]]
    large: int  # bytes of a file that memory must not grow with
    memory: int
    plan: Callable[[int], Fault | None]
    cuts: int  # connections that the plan takes at least
    size: int  # bytes of a file for the plan
    shared: int  # connections of all tenants together


KINDS = {
    "sftp": Kind(
        fixture="sftp_server",
        start=sshd,
        large=24 << 20,
        memory=8 << 20,
        plan=seeded(11, cuts=0.6, slow=0.2, most=400_000),
        cuts=4,
        size=150_000,
        shared=1,
    ),
    "webdav": Kind(
        fixture="webdav_server",
        start=lambda folder: apache(),
        large=48 << 20,
        memory=8 << 20,
        plan=cut_first(10, 40_000),
        cuts=6,
        size=300_000,
        shared=4,
    ),
    "nats": Kind(
        fixture="nats",
        start=nats_server,
        large=32 << 20,
        memory=16 << 20,
        plan=cut_first(6, 100_000),
        cuts=4,
        size=300_000,
        shared=1,
    ),
}


@pytest.fixture(
    scope="session",
    params=[pytest.param(name, marks=getattr(pytest.mark, name)) for name in KINDS],
)
def kind(request: pytest.FixtureRequest) -> Kind:
    return KINDS[request.param]


@pytest.fixture(scope="session")
def server(kind: Kind, request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(kind.fixture)


@dataclass(frozen=True)
class Place:
    """Hold a server, and a folder or a bucket on it that nobody else has."""

    server: Any
    top: str

    def spec(self, path: str = "t", *, port: int = 0) -> ReplicaSpec:
        if isinstance(self.server, NATSServer):
            return self.server.spec(self.top, path, port=port, reconnect_wait=0)
        return self.server.spec(f"{self.top}/{path}", port=port)


def place_on(server: Any) -> Place:
    is_nats = isinstance(server, NATSServer)
    return Place(server, server.make_bucket() if is_nats else secrets.token_hex(8))


@pytest.fixture
def place(server: Any) -> Iterator[Place]:
    place = place_on(server)
    yield place
    if isinstance(server, NATSServer):
        server.remove_bucket(place.top)
    else:
        shutil.rmtree(server.data / place.top)


def test_memory_does_not_grow_with_the_file(kind: Kind, place: Place) -> None:
    with client_of(place.spec()) as client:
        expect_little_memory(client, file=kind.large, peak=kind.memory)


def test_slow_and_cut_connections(kind: Kind, place: Place) -> None:
    with TCPProxy(place.server.port, kind.plan) as proxy:
        with client_of(place.spec(port=proxy.port), PATIENT) as client:
            everybody_works(client, size=kind.size)
        assert proxy.accepted >= kind.cuts


def test_a_server_that_is_away_while_an_upload_is_in_flight(kind: Kind, tmp_path: Path) -> None:
    with kind.start(tmp_path) as server:

        def leave() -> None:
            server.stop()
            back.start()

        back = threading.Timer(0.5, server.start)
        with client_of(place_on(server).spec(), PATIENT) as client:
            source = Calling(HEAD + bytes(6 << 20), 2 << 20, leave)
            info = put(client, data=source, create_only=True)
            back.join()
            assert source.called
            assert client.open_ltx(info).read() == source.getvalue()
            with client.open_ltx(info) as stream:
                start = stream.read(1000)
                server.stop()
                server.start()
                assert start + stream.read() == source.getvalue()


def test_tenants_share_connections(kind: Kind, place: Place) -> None:
    with TCPProxy(place.server.port) as proxy:
        clients = [connect(place.spec(f"t{n}", port=proxy.port)) for n in range(20)]
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(put, clients))
        assert 1 <= proxy.accepted <= kind.shared
        for client in clients:
            client.close()
    assert len(registry._sessions) == 0
