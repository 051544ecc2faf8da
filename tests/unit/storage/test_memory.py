"""Failures on demand of the in-memory replica."""

from __future__ import annotations

import io

import pytest

from fixtures.ltxbytes import build_ltx
from pyrep.errors import ReplicaExistsError, ReplicaTemporaryError
from pyrep.ids import TXID
from pyrep.ltxfile import FileInfo
from pyrep.storage.memory import MemoryReplicaClient, MemoryStorage


def write(client: MemoryReplicaClient, txid: int = 1) -> FileInfo:
    data = io.BytesIO(build_ltx(txid, txid))
    return client.write_ltx(0, TXID(txid), TXID(txid), data, create_only=True)


def fail_at(step: str) -> MemoryReplicaClient:
    def faults(op: str, info: FileInfo | None) -> None:
        if op == step:
            raise ReplicaTemporaryError(f"injected at {op}")

    return MemoryReplicaClient(faults=faults)


def test_each_step_is_announced_with_its_file() -> None:
    seen: list[tuple[str, FileInfo | None]] = []
    client = MemoryReplicaClient(faults=lambda op, info: seen.append((op, info)))
    info = write(client)
    place = FileInfo(0, TXID(1), TXID(1))
    list(client.list_ltx(0))
    client.open_ltx(info).close()
    client.delete_ltx([info])
    client.delete_all()
    assert seen == [
        ("write", place),
        ("write-answer", info),
        ("list", None),
        ("open", info),
        ("delete", info),
        ("delete_all", None),
    ]


def test_a_failed_write_stores_nothing() -> None:
    client = fail_at("write")
    with pytest.raises(ReplicaTemporaryError, match="injected at write"):
        write(client)
    assert client.storage.objects == {}


def test_a_lost_answer_stores_the_file() -> None:
    client = fail_at("write-answer")
    with pytest.raises(ReplicaTemporaryError, match="injected at write-answer"):
        write(client)
    assert [info.min_txid for info in client.list_ltx(0)] == [1]
    with pytest.raises(ReplicaExistsError):
        write(client)


@pytest.mark.parametrize("step", ["list", "open", "delete", "delete_all"])
def test_other_calls_fail_before_they_do_anything(step: str) -> None:
    client = fail_at(step)
    info = write(client)
    before = dict(client.storage.objects)
    calls = {
        "list": lambda: client.list_ltx(0),
        "open": lambda: client.open_ltx(info),
        "delete": lambda: client.delete_ltx([info]),
        "delete_all": client.delete_all,
    }
    with pytest.raises(ReplicaTemporaryError, match=f"injected at {step}"):
        calls[step]()
    assert client.storage.objects == before


def test_clients_of_one_storage_share_it() -> None:
    storage = MemoryStorage()
    write(MemoryReplicaClient(storage, "a"), 1)
    write(MemoryReplicaClient(storage, "b"), 2)
    assert [info.min_txid for info in MemoryReplicaClient(storage, "b").list_ltx(0)] == [2]
    assert MemoryReplicaClient(storage, "b").url == "memory://b"
