"""WebDAV replicas on a server that answers as it is told."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest

from fixtures.ltxbytes import build_ltx
from fixtures.scripted import Reply, ScriptedServer, scripted_server
from pyrep.errors import ReplicaError, ReplicaPermanentError, ReplicaTemporaryError
from pyrep.ids import TXID
from pyrep.ltxfile import FileInfo
from pyrep.storage.base import ReplicaClient
from pyrep.storage.registry import ReplicaSpec, connect
from pyrep.storage.retry import RetryPolicy

DATA = build_ltx(1, 1, timestamp_ms=1_700_000_000_123)
INFO = FileInfo(0, TXID(1), TXID(1))
MADE = [Reply(201)] * 2  # a folder, a file


@contextmanager
def client_of(server: ScriptedServer, **keys: object) -> Iterator[ReplicaClient]:
    options = {"webdav-url": server.endpoint, **keys}
    spec = ReplicaSpec("webdav", "t", options=options)
    with closing(connect(spec, policy=RetryPolicy(attempts=1))) as client:
        yield client


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with scripted_server() as running:
        yield running


def put(client: ReplicaClient) -> FileInfo:
    return client.write_ltx(0, TXID(1), TXID(1), io.BytesIO(DATA))


def listing(*elements: str) -> Reply:
    body = f'<multistatus xmlns="DAV:">{"".join(elements)}</multistatus>'
    return Reply(207, {"content-type": "application/xml"}, body.encode())


def element(txid: int, what: str = "") -> str:
    name = f"/t/ltx/0/{txid:016x}-{txid:016x}.ltx"
    what = (
        what
        or f"<propstat><prop><getcontentlength>{len(DATA)}</getcontentlength></prop></propstat>"
    )
    return f"<response><href>{name}</href>{what}</response>"


@pytest.mark.parametrize("status", [202, 203, 206, 207])
def test_only_what_is_done_counts_as_stored(server: ScriptedServer, status: int) -> None:
    """Take neither an upload that waits somewhere nor a move of which parts failed for a yes."""
    for replies in ([Reply(201), Reply(status)], [*MADE, Reply(status)]):
        with client_of(server) as client:
            server.script(*replies, Reply(204))
            with pytest.raises(ReplicaTemporaryError, match=f"answered {status}"):
                put(client)
            server.replies.clear()
    with client_of(server) as client:
        server.script(Reply(status))
        with pytest.raises(ReplicaTemporaryError, match=f"cannot delete: .* {status}"):
            client.delete_ltx([INFO])
        server.script(*MADE, Reply(201))
        assert put(client).size == len(DATA)


def test_a_file_that_the_server_cannot_describe_is_not_left_out(server: ScriptedServer) -> None:
    with client_of(server) as client:
        for status in (403, 500, 507):
            refusal = f"<status>HTTP/1.1 {status} No</status>"
            server.script(listing(element(1), element(2, refusal)))
            with pytest.raises(ReplicaTemporaryError, match=f"status {status}"):
                list(client.list_ltx(0))
        server.script(listing(element(1), element(2)))
        assert [info.min_txid for info in client.list_ltx(0)] == [1, 2]


def test_a_header_that_did_not_arrive_gives_no_other_time(server: ScriptedServer) -> None:
    """Fail a listing with exact times, so that it is tried again, instead of guessing one."""
    head = {"content-range": f"bytes 0-99/{len(DATA)}"}
    with client_of(server) as client:
        for reply in (Reply(206, head, DATA[:50], length=100), Reply(206, {}, DATA[:50])):
            server.script(listing(element(1)), reply)
            with pytest.raises(ReplicaTemporaryError):
                list(client.list_ltx(0, exact_times=True))
        server.script(listing(element(1)), Reply(206, head, DATA[:100]))
        (info,) = client.list_ltx(0, exact_times=True)
        assert info.timestamp_ms == 1_700_000_000_123


def test_an_address_whose_folder_is_missing_is_a_permanent_error(server: ScriptedServer) -> None:
    with client_of(server) as client:
        server.script(*[Reply(409)] * 9)
        with pytest.raises(ReplicaPermanentError, match="folder above it is not there") as caught:
            put(client)
        assert "webdav-url" in caught.value.hint


def test_a_credential_with_a_line_break_is_not_printed(server: ScriptedServer) -> None:
    options = {"endpoint": server.endpoint, "bucket": "b", "access-key-id": "SECRET\n"}
    spec = ReplicaSpec("oss", "t", options={**options, "secret-access-key": "SECRET"})
    client = connect(spec, policy=RetryPolicy(attempts=1))
    with closing(client), pytest.raises(ReplicaError, match="no request can carry") as caught:
        list(client.list_ltx(0))
    assert isinstance(caught.value, ReplicaPermanentError)
    assert "line break" in caught.value.hint
    assert "SECRET" not in str(caught.value)
