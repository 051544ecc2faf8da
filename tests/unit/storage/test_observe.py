"""Every call to a storage is told: what it was, how much, how long, how it ended."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from fixtures.app import App
from fixtures.daemon import pyrep, write_config
from fixtures.fakeclock import FakeClock
from fixtures.ltxbytes import build_ltx
from pyrep.errors import LTXNotFoundError, ReplicaTemporaryError
from pyrep.ids import TXID
from pyrep.ltxfile import FileInfo
from pyrep.storage.memory import MemoryReplicaClient
from pyrep.storage.observe import OK, ObservedClient, Operation, Total, Usage
from pyrep.storage.registry import ReplicaSpec, connect, registered
from pyrep.storage.retry import RetryPolicy

DATA = build_ltx(1, 1)
INFO = FileInfo(0, TXID(1), TXID(1))

Faults = Callable[[str, FileInfo | None], None]


def observed(faults: Faults | None = None) -> tuple[ObservedClient, list[Operation], FakeClock]:
    """Return a client whose every call takes two seconds, and what it tells."""
    clock, told = FakeClock(), list[Operation]()

    def slow(op: str, info: FileInfo | None) -> None:
        clock.advance(2.0)
        if faults is not None:
            faults(op, info)

    return ObservedClient(MemoryReplicaClient(faults=slow), clock, told.append), told, clock


def write(client: ObservedClient) -> FileInfo:
    return client.write_ltx(0, TXID(1), TXID(1), io.BytesIO(DATA))


def test_each_operation_is_told_when_it_has_ended() -> None:
    client, told, _ = observed()
    info = write(client)
    assert list(client.list_ltx(0)) == [info]
    with client.open_ltx(info) as stream:
        assert stream.read() == DATA
        assert [operation.op for operation in told] == ["write", "list"]
    client.look_below()
    client.delete_ltx([info])
    client.delete_all()
    size = len(DATA)
    assert told[:3] == [
        Operation("write", 0, size, 4.0),  # two steps
        Operation("list", 0, 0, 2.0),
        Operation("read", 0, size, 2.0),
    ]
    assert [(o.op, o.level, o.outcome) for o in told[3:]] == [
        ("look", -1, OK),
        ("delete", 0, OK),
        ("delete", -1, OK),
    ]


def test_failures_are_told_by_their_class() -> None:
    def fail(op: str, info: FileInfo | None) -> None:
        raise ReplicaTemporaryError(op)

    client, told, _ = observed(fail)
    for call in (lambda: write(client), lambda: list(client.list_ltx(3))):
        with pytest.raises(ReplicaTemporaryError):
            call()
    assert [(o.op, o.level, o.bytes, o.outcome) for o in told] == [
        ("write", 0, 0, "ReplicaTemporaryError"),
        ("list", 3, 0, "ReplicaTemporaryError"),
    ]
    client, told, _ = observed()
    with pytest.raises(LTXNotFoundError):
        client.open_ltx(INFO)
    assert [o.outcome for o in told] == ["LTXNotFoundError"]


def test_a_listing_that_is_not_gone_through_is_no_failure() -> None:
    client, told, _ = observed()
    write(client)
    listing = client.list_ltx(0)
    next(listing)
    listing.close()  # type: ignore[attr-defined]
    assert (told[-1].op, told[-1].outcome) == ("list", OK)


def test_every_attempt_is_told() -> None:
    attempts: list[str] = []

    def faults(op: str, info: FileInfo | None) -> None:
        attempts.append(op)
        if len(attempts) < 3:
            raise ReplicaTemporaryError("not yet")

    told: list[Operation] = []
    policy = RetryPolicy(base=0.0)
    with (
        registered("memory", lambda spec, _: MemoryReplicaClient(faults=faults)),
        closing(connect(ReplicaSpec("memory", "a"), policy=policy, observe=told.append)) as client,
    ):
        client.write_ltx(0, TXID(1), TXID(1), io.BytesIO(DATA))
    assert [o.outcome for o in told] == ["ReplicaTemporaryError"] * 2 + [OK]


def test_sums_are_kept_and_logged_by_kind_and_level(caplog: pytest.LogCaptureFixture) -> None:
    usage = Usage()
    usage.add(Operation("write", 1, 100, 0.5))
    usage.add(Operation("write", 1, 0, 0.25, "ReplicaTemporaryError"))
    usage.add(Operation("look"))
    assert usage.totals() == [("look", -1, Total(1)), ("write", 1, Total(2, 1, 100, 0.75))]
    with caplog.at_level(logging.DEBUG):
        usage.log()
    lines = [record.__dict__ for record in caplog.records]
    assert [line["op"] for line in lines] == ["look", "write"]
    assert (lines[1]["ltx-level"], lines[1]["failures"], lines[1]["seconds"]) == (1, 1, 0.75)


def test_the_daemon_says_at_its_end_what_it_asked(tmp_path: Path) -> None:
    with App(tmp_path / "a.db") as app:
        app.execute("create table t (v)")
    dbs = f"  - path: {tmp_path}/a.db\n    replica: {{path: {tmp_path}/replica}}"
    config = write_config(tmp_path, dbs, level="debug")
    done = pyrep("replicate", "-config", config, "-once")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    (line,) = [x for x in lines if x["msg"] == "storage operations" and x["op"] == "write"]
    assert (line["count"], line["ltx-level"]) == (1, 0)
    assert line["bytes"] > 0
