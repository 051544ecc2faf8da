"""A client within limits: every call is a request, every byte counts, nothing else changes."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable

import pytest

from fixtures.fakeclock import FakeClock
from fixtures.ltxbytes import build_ltx
from pyrep.errors import LTXNotFoundError, ReplicaTemporaryError, ReplicaThrottledError
from pyrep.ids import TXID
from pyrep.ltxfile import FileInfo
from pyrep.storage.budget import Budget, Limits
from pyrep.storage.limit import LimitedClient
from pyrep.storage.memory import MemoryReplicaClient
from pyrep.storage.registry import ReplicaSpec, connect

LARGE = build_ltx(1, 1) + bytes(1 << 20)
INFO = FileInfo(0, TXID(1), TXID(1))


def limited(
    faults: Callable[[str, FileInfo | None], None] | None = None, **limits: float
) -> tuple[LimitedClient, Budget, FakeClock]:
    clock = FakeClock()
    budget = Budget(clock=clock)
    budget.tighten(Limits(**limits))
    client = MemoryReplicaClient(faults=faults) if faults else MemoryReplicaClient()
    return LimitedClient(client, budget), budget, clock


def put(client: LimitedClient, txid: int = 1, data: bytes | None = None) -> FileInfo:
    source = io.BytesIO(data or build_ltx(txid, txid))
    info = client.write_ltx(0, TXID(txid), TXID(txid), source)
    assert not source.closed  # it is the caller's, who may try again
    return info


def test_every_call_is_a_request() -> None:
    client, budget, clock = limited(requests=1)
    infos = [put(client, txid) for txid in (1, 2, 3)]
    assert list(client.list_ltx(0)) == infos
    with client.open_ltx(infos[0]) as stream:
        stream.read()
    assert client.look_below().replicas == ("",)
    client.delete_ltx(infos)
    client.delete_all()
    assert list(client.list_ltx(0)) == []
    assert budget.counts.requests == 11
    assert clock.monotonic() == pytest.approx(1010, abs=0.2)


def test_bytes_are_paced_both_ways() -> None:
    client, _, clock = limited(bytes=1 << 20)
    put(client, data=LARGE)
    assert clock.monotonic() == pytest.approx(1001, abs=0.2)
    with client.open_ltx(INFO) as stream:
        assert stream.read(len(LARGE)) == LARGE
    assert clock.monotonic() == pytest.approx(1002, abs=0.2)


def test_a_storage_that_complains_is_given_a_pause() -> None:
    def faults(op: str, info: FileInfo | None) -> None:
        if not budget.counts.throttled:
            raise ReplicaThrottledError("too many")

    client, budget, clock = limited(faults)
    with pytest.raises(ReplicaThrottledError):
        put(client)
    before = clock.monotonic()
    put(client)
    assert clock.monotonic() > before


def test_other_errors_pass_through() -> None:
    client, budget, _ = limited()
    with pytest.raises(LTXNotFoundError):
        client.open_ltx(INFO)
    assert budget.counts.throttled == 0


def test_file_replicas_of_a_process_share_their_limits(tmp_path: object) -> None:
    stop = threading.Event()
    spec = [
        ReplicaSpec("file", f"{tmp_path}/{name}", limits=Limits(requests=0.001)) for name in "ab"
    ]
    one, other, free = (
        connect(spec[0], stop=stop),
        connect(spec[1], stop=stop),
        connect(ReplicaSpec("file", f"{tmp_path}/c"), stop=stop),
    )
    assert list(one.list_ltx(0)) == []
    assert list(free.list_ltx(0)) == []
    stop.set()
    with pytest.raises(ReplicaTemporaryError, match="stopped while it waited for its turn"):
        other.list_ltx(0)
    for client in (one, other, free):
        client.close()
    assert list(connect(spec[0], stop=stop).list_ltx(0)) == []  # a new budget
