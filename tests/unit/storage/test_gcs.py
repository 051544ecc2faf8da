"""What the client of Google Cloud Storage asks, and what it makes of rare answers."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from fixtures.fakeclock import FakeClock
from fixtures.ltxbytes import build_ltx
from fixtures.scripted import Asked, Reply, ScriptedServer, scripted_server
from pyrep.errors import (
    ConfigError,
    LTXNotFoundError,
    ReplicaError,
    ReplicaExistsError,
    ReplicaPermanentError,
    ReplicaTemporaryError,
    ReplicaThrottledError,
)
from pyrep.ids import TXID
from pyrep.ltxfile import FileInfo
from pyrep.storage.budget import Budget
from pyrep.storage.gcs import GCSBucket
from pyrep.storage.gcs_config import gcs_settings
from pyrep.storage.gcs_session import GCSSession
from pyrep.storage.gcs_upload import PART_SIZE
from pyrep.storage.objects import ObjectReplicaClient
from pyrep.storage.registry import ReplicaSpec, connect, parse_url

INFO = FileInfo(0, TXID(1), TXID(1))
DATA = build_ltx(1, 1, timestamp_ms=1_700_000_000_120)
KEY = "db/ltx/0/0000000000000001-0000000000000001.ltx"
LARGE = DATA + random.Random(3).randbytes(2 * PART_SIZE + 1000)
OK = Reply(200, body=b"{}")

Make = Callable[..., ObjectReplicaClient]


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with scripted_server() as script:
        yield script


@pytest.fixture
def make(server: ScriptedServer) -> Iterator[Make]:
    """Return a function that makes a client of the server, without credentials."""
    with ExitStack() as stack:

        def build(
            path: str = "db", *, environ: dict[str, str] | None = None
        ) -> ObjectReplicaClient:
            found = {"STORAGE_EMULATOR_HOST": server.endpoint} if environ is None else environ
            options = {"bucket": "bucket", "endpoint": server.endpoint}
            settings = gcs_settings(url=None, path=path, options=options, environ=found)
            session = GCSSession(settings.account, Budget(clock=FakeClock()))
            stack.callback(session.close)
            return ObjectReplicaClient(
                GCSBucket(settings.bucket, session), settings.path, release=session.close
            )

        yield build


def put(client: ObjectReplicaClient, data: bytes = DATA, *, create_only: bool = False) -> FileInfo:
    return client.write_ltx(0, TXID(1), TXID(1), io.BytesIO(data), create_only=create_only)


def failure(status: int, reason: str = "", message: str = "said") -> Reply:
    errors = [{"reason": reason}] if reason else []
    document = {"error": {"code": status, "message": message, "errors": errors}}
    return Reply(status, body=json.dumps(document).encode())


def query(asked: Asked) -> dict[str, str]:
    return {key: value[0] for key, value in parse_qs(urlsplit(asked.target).query).items()}


# --- settings -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "bucket", "path"),
    [
        ("gs://bucket", "bucket", ""),
        ("gs://bucket/", "bucket", ""),
        ("gs://bucket/a//b/../c/", "bucket", "a/c"),
        ("gs://bucket/a%20b/%23%3F%25+", "bucket", "a b/#?%+"),
        ("gs://my.domain.bucket/p?endpoint=http://127.0.0.1:1", "my.domain.bucket", "p"),
    ],
)
def test_urls_name_bucket_and_path(url: str, bucket: str, path: str) -> None:
    found = gcs_settings(url=url, path="", options={}, environ={})
    assert (found.bucket, found.path) == (bucket, path)
    assert parse_url(url).path == path


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("gs://", "bucket required for gs replica"),
        ("gs:///path", "bucket required for gs replica"),
        ("gs://key@bucket/p", "gs replica url holds a user name or secret"),
        ("gs://bucket/p#x", "gs replica url has a fragment"),
        ("gs://bucket/%FF", "a path that is not UTF-8"),
        ("gs://bucket/p?endpiont=x", 'unknown parameter in gs replica url: "endpiont"'),
    ],
)
def test_bad_urls_are_errors(url: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        connect(ReplicaSpec(url=url))
    assert caught.value.hint
    assert "key@" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "environ", "endpoint", "anonymous"),
    [
        ({}, {}, "", False),
        ({}, {"STORAGE_EMULATOR_HOST": "127.0.0.1:9"}, "http://127.0.0.1:9", True),
        ({}, {"STORAGE_EMULATOR_HOST": "https://gcs.lan/"}, "https://gcs.lan", True),
        ({"endpoint": "gcs.lan"}, {}, "https://gcs.lan", False),
        ({"endpoint": "http://x:1"}, {"STORAGE_EMULATOR_HOST": "y:2"}, "http://x:1", True),
    ],
)
def test_where_requests_go(
    options: dict[str, object], environ: dict[str, str], endpoint: str, anonymous: bool
) -> None:
    found = gcs_settings(url=None, path="", options={"bucket": "b", **options}, environ=environ)
    assert (found.account.endpoint, found.account.anonymous) == (endpoint, anonymous)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "bucket required for gs replica"),
        ({"bucket": "b", "endpoint": "ftp://x"}, "endpoint: not an http"),
        ({"bucket": "b", "endpoint": "http://u:secret@x"}, "endpoint: not an http"),
        ({"bucket": "b", "root-cas": ("/nowhere.pem",)}, "root-cas: cannot be used: No such file"),
        ({"bucket": "b", "client-key": "/k"}, "client-key: needs client-cert"),
        ({"bucket": "b", "client-cert": "/c"}, "client-cert: cannot be used: No such file"),
    ],
)
def test_bad_keys_are_errors(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        connect(ReplicaSpec("gs", "p", options=options))
    assert "secret" not in str(caught.value)


def test_tenants_share_a_session() -> None:
    clients = [connect(ReplicaSpec("gs", path, options={"bucket": "b"})) for path in "ab"]
    from pyrep.storage import registry

    assert len(registry._sessions) == 1
    for client in clients:
        client.close()
    assert len(registry._sessions) == 0


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.delitem(sys.modules, "pyrep.storage.gcs_session")
    monkeypatch.delitem(sys.modules, "pyrep.storage.gcs")
    monkeypatch.setitem(sys.modules, "google.auth", None)
    with pytest.raises(ConfigError, match=r"type gs needs .*google.auth") as caught:
        connect(ReplicaSpec("gs", "p", options={"bucket": "b"}))
    assert "pip install 'pyrep[gcs]'" in caught.value.hint


# --- requests -------------------------------------------------------------------------------------


def test_a_small_file_is_one_request(server: ScriptedServer, make: Make) -> None:
    server.script(OK)
    put(make("team a/db"), create_only=True)
    (asked,) = server.asked
    assert asked.method == "POST"
    assert asked.target.startswith("/upload/storage/v1/b/bucket/o?")
    assert query(asked) == {"uploadType": "multipart", "ifGenerationMatch": "0"}
    boundary = asked.headers["content-type"].partition("boundary=")[2].encode()
    _, head, body, end = asked.body.split(b"--" + boundary)
    assert end == b"--\r\n"
    assert body.partition(b"\r\n\r\n")[2] == DATA + b"\r\n"
    assert json.loads(head.partition(b"\r\n\r\n")[2]) == {
        "name": f"team a/{KEY}",
        "contentType": "application/octet-stream",
        "metadata": {"litestream-timestamp": "2023-11-14T22:13:20.12Z"},
        "md5Hash": base64.b64encode(hashlib.md5(DATA).digest()).decode(),
    }


def test_a_write_that_may_replace_has_no_condition(server: ScriptedServer, make: Make) -> None:
    server.script(OK)
    put(make())
    assert query(server.asked[0]) == {"uploadType": "multipart"}


def test_a_listing_starts_at_the_transaction(server: ScriptedServer, make: Make) -> None:
    times = {16: "2023-11-14T22:13:20Z", 17: "2023-11-14T22:13:20.5Z", 255: "x"}

    def page(*txids: int, token: str = "") -> Reply:
        items = [
            {"name": f"db/ltx/0/{n:016x}-{n:016x}.ltx", "size": "7", "timeCreated": times[n]}
            for n in txids
        ]
        return Reply(200, body=json.dumps({"items": items, "nextPageToken": token}).encode())

    server.script(page(16, 17, token="next"), page(255))
    found = list(make().list_ltx(0, TXID(16)))
    assert [(int(info.min_txid), info.timestamp_ms) for info in found] == [
        (16, 1_700_000_000_000),
        (17, 1_700_000_000_500),
        (255, 0),
    ]
    first, second = map(query, server.asked)
    assert first["prefix"] == "db/ltx/0/"  # never with the TXID: that would hide the later ones
    assert first["startOffset"] == f"db/ltx/0/{16:016x}"
    assert second == {**first, "pageToken": "next"}


def test_a_listing_out_of_order_is_an_error(server: ScriptedServer, make: Make) -> None:
    items = [{"name": f"db/ltx/0/{n:016x}-{n:016x}.ltx", "size": "7"} for n in (2, 1)]
    server.script(Reply(200, body=json.dumps({"items": items}).encode()))
    with pytest.raises(ReplicaPermanentError, match=r"lists 0000000000000001.* after 0000"):
        list(make().list_ltx(0))


@pytest.mark.parametrize(
    "body", [b"[" * 100_000, b"", b"<html>", b"[]", b'{"items": [{"name": "x"}]}', b'{"items": 5}']
)
def test_a_listing_that_makes_no_sense(server: ScriptedServer, make: Make, body: bytes) -> None:
    server.script(Reply(200, body=body))
    with pytest.raises(ReplicaTemporaryError, match="gs://bucket/db/ltx/0/: cannot list"):
        list(make().list_ltx(0))


def test_a_listing_that_goes_in_circles_ends(server: ScriptedServer, make: Make) -> None:
    reply = Reply(200, body=b'{"nextPageToken": "same"}')
    server.script(reply, reply, reply)
    with pytest.raises(ReplicaTemporaryError, match="does not go on"):
        list(make().list_ltx(0))


def test_a_range_is_asked_for(server: ScriptedServer, make: Make) -> None:
    server.script(Reply(206, {"Content-Range": "bytes 5-9/100"}, b"12345"))
    with make().open_ltx(INFO, 5, 5) as stream:
        assert stream.read() == b"12345"
    assert server.asked[0].headers["range"] == "bytes=5-9"
    assert server.asked[0].headers["accept-encoding"] == "identity"


def test_an_answer_that_ends_early_is_temporary(server: ScriptedServer, make: Make) -> None:
    server.script(Reply(200, body=b"12345", length=10))
    with make().open_ltx(INFO) as stream, pytest.raises(ReplicaTemporaryError, match="read"):
        stream.read()


def test_a_missing_object_and_a_missing_bucket(server: ScriptedServer, make: Make) -> None:
    server.script(Reply(404, body=b"No such object: bucket/x"))
    with pytest.raises(LTXNotFoundError):
        make().open_ltx(INFO)
    server.script(failure(404, "notFound", "The specified bucket does not exist."))
    with pytest.raises(ReplicaPermanentError, match="bucket does not exist") as caught:
        make().open_ltx(INFO)
    assert caught.value.hint.startswith("Create the bucket")
    server.script(failure(404, "notFound", "The specified bucket does not exist."))
    with pytest.raises(ReplicaPermanentError, match="404") as caught:
        list(make().list_ltx(0))
    assert caught.value.hint.startswith("Create the bucket")


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (failure(500), ReplicaTemporaryError),
        (failure(503, "backendError"), ReplicaThrottledError),
        (failure(429, "rateLimitExceeded"), ReplicaThrottledError),
        (failure(403, "userRateLimitExceeded"), ReplicaTemporaryError),
        (failure(408), ReplicaTemporaryError),
        (Reply(drop=True), ReplicaTemporaryError),
        (failure(412, "conditionNotMet"), ReplicaExistsError),
        (failure(403, "forbidden"), ReplicaPermanentError),
        (failure(401, "authError"), ReplicaPermanentError),
        (failure(400, "invalid"), ReplicaPermanentError),
        (Reply(400, body=b"\xff\xfe"), ReplicaPermanentError),
        (Reply(400, body=b'{"error": "invalid_grant"}'), ReplicaPermanentError),
    ],
)
def test_errors_are_temporary_or_permanent(
    server: ScriptedServer, make: Make, reply: Reply, kind: type[ReplicaError]
) -> None:
    server.script(reply)
    with pytest.raises(kind) as caught:
        put(make(), create_only=True)
    assert type(caught.value) is kind
    assert f"gs://bucket/{KEY}" in str(caught.value)
    if reply.status in (401, 403) and kind is ReplicaPermanentError:
        assert "may do in the bucket" in caught.value.hint


def test_deleting_goes_on_after_an_error_and_tells_it(server: ScriptedServer, make: Make) -> None:
    server.script(Reply(204), failure(403), Reply(404), Reply(204))
    infos = [FileInfo(0, TXID(n), TXID(n)) for n in range(1, 5)]
    with pytest.raises(ReplicaPermanentError, match="cannot delete"):
        make().delete_ltx(infos)
    assert len(server.asked) == 4


# --- resumable uploads ----------------------------------------------------------------------------


def place(server: ScriptedServer) -> Reply:
    return Reply(200, {"Location": f"{server.endpoint}/upload/session?upload_id=1"})


def kept(count: int) -> Reply:
    return Reply(308, {"Range": f"bytes=0-{count - 1}"} if count else {})


def ranges(server: ScriptedServer) -> list[str]:
    return [asked.headers.get("content-range", asked.method) for asked in server.asked[1:]]


def test_a_large_file_goes_up_in_pieces(server: ScriptedServer, make: Make) -> None:
    size = len(LARGE)
    server.script(Reply(404), place(server), kept(PART_SIZE), kept(2 * PART_SIZE), Reply(404), OK)
    assert put(make(), LARGE, create_only=True).size == size
    looks = [asked for asked in server.asked if asked.method == "GET"]
    assert len(looks) == 2  # before the work, and before the end
    server.asked = [asked for asked in server.asked if asked not in looks]
    begin, *pieces = server.asked
    assert query(begin) == {"uploadType": "resumable", "ifGenerationMatch": "0"}
    assert json.loads(begin.body)["name"] == KEY
    assert ranges(server) == [
        f"bytes 0-{PART_SIZE - 1}/*",
        f"bytes {PART_SIZE}-{2 * PART_SIZE - 1}/*",
        f"bytes {2 * PART_SIZE}-{size - 1}/{size}",
    ]
    assert b"".join(asked.body for asked in pieces) == LARGE
    digest = base64.b64encode(hashlib.md5(LARGE).digest()).decode()
    assert [asked.headers.get("x-goog-hash") for asked in pieces] == [None, None, f"md5={digest}"]


def test_a_piece_that_was_lost_half_way_is_gone_on_with(server: ScriptedServer, make: Make) -> None:
    size = len(LARGE)
    server.script(
        place(server),
        kept(PART_SIZE),
        Reply(drop=True),
        kept(PART_SIZE + 1000),
        kept(2 * PART_SIZE),
        failure(503),
        failure(503),
        kept(2 * PART_SIZE),
        OK,
    )
    put(make(), LARGE)
    assert ranges(server)[2:] == [
        "bytes */*",
        f"bytes {PART_SIZE + 1000}-{2 * PART_SIZE - 1}/*",
        *(f"bytes {2 * PART_SIZE}-{size - 1}/{size}", "bytes */*", "bytes */*"),
        f"bytes {2 * PART_SIZE}-{size - 1}/{size}",
    ]


def test_the_answer_to_the_last_piece_may_be_lost(server: ScriptedServer, make: Make) -> None:
    server.script(
        place(server),
        kept(PART_SIZE),
        kept(2 * PART_SIZE),
        Reply(drop=True),
        Reply(201, body=b"{}"),
    )
    put(make(), LARGE)
    assert ranges(server)[-1] == "bytes */*"


@pytest.mark.parametrize(
    "replies",
    [
        [Reply(410)] * 4,
        [failure(500)] * 4,
        [OK] * 4,  # it says that all is there in the middle
        [kept(PART_SIZE + 1)] * 4,
    ],
)
def test_an_upload_that_does_not_go_on_is_given_up(
    server: ScriptedServer, make: Make, replies: list[Reply]
) -> None:
    server.script(place(server), *replies, Reply(499))
    with pytest.raises(ReplicaTemporaryError, match=KEY):
        put(make(), LARGE)
    assert server.asked[-1].method == "DELETE"


def test_another_writer_may_win_at_the_end(server: ScriptedServer, make: Make) -> None:
    pieces = [Reply(404), place(server), kept(PART_SIZE), kept(2 * PART_SIZE)]
    for end in ([Reply(404), failure(412)], [Reply(200)]):
        server.script(*pieces, *end, Reply(499))
        with pytest.raises(ReplicaExistsError):
            put(make(), LARGE, create_only=True)
        assert server.asked[-1].method == "DELETE"
    server.script(Reply(200))
    with pytest.raises(ReplicaExistsError):
        put(make(), LARGE, create_only=True)
    assert server.asked[-1].method == "GET"


def test_an_upload_needs_a_place(server: ScriptedServer, make: Make) -> None:
    server.script(Reply(200))
    with pytest.raises(ReplicaTemporaryError, match="names no place"):
        put(make(), LARGE)


def test_a_failed_abort_is_no_other_error(server: ScriptedServer, make: Make) -> None:
    server.script(place(server), failure(403), failure(403))
    with pytest.raises(ReplicaPermanentError, match="cannot write"):
        put(make(), LARGE)


# --- credentials ----------------------------------------------------------------------------------


@pytest.fixture
def key_file(server: ScriptedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write a service account whose tokens come from the scripted server."""
    key = rsa.generate_private_key(65537, 2048).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    path = tmp_path / "key.json"
    account = {
        "type": "service_account",
        "private_key": key.decode(),
        "client_email": "me@example.com",
        "token_uri": f"{server.endpoint}/token",
    }
    path.write_text(json.dumps(account))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(path))
    return path


def token(text: str) -> Reply:
    body = json.dumps({"access_token": text, "expires_in": 3600, "token_type": "Bearer"})
    return Reply(200, {"Content-Type": "application/json"}, body.encode())


@pytest.mark.usefixtures("key_file")
def test_a_key_file_gives_tokens(server: ScriptedServer, make: Make) -> None:
    server.script(token("T1"), OK, OK)
    client = make(environ={})
    put(client)
    put(client)
    first, *others = server.asked
    assert first.target == "/token"
    assert [asked.headers["authorization"] for asked in others] == ["Bearer T1"] * 2


@pytest.mark.usefixtures("key_file")
def test_a_token_that_was_withdrawn_is_renewed_once(server: ScriptedServer, make: Make) -> None:
    server.script(token("T1"), failure(401), token("T2"), OK)
    client = make(environ={})
    put(client)
    assert server.asked[-1].headers["authorization"] == "Bearer T2"
    server.script(failure(401), token("T3"), failure(401))
    with pytest.raises(ReplicaPermanentError, match="401") as caught:
        put(client)
    assert "T3" not in str(caught.value)


@pytest.mark.usefixtures("key_file")
def test_the_place_of_an_upload_elsewhere_gets_no_token(server: ScriptedServer, make: Make) -> None:
    with scripted_server() as other, closing(make(environ={})) as client:
        elsewhere = Reply(200, {"Location": f"{other.endpoint}/upload"})
        server.script(token("T1"), elsewhere)
        other.script(kept(PART_SIZE), kept(2 * PART_SIZE), OK)
        put(client, LARGE)
        assert all("authorization" not in asked.headers for asked in other.asked)


@pytest.mark.usefixtures("key_file")
def test_a_refused_key_is_permanent(server: ScriptedServer, make: Make) -> None:
    refusal = {"error": "invalid_grant", "error_description": "Invalid JWT Signature."}
    server.script(Reply(400, body=json.dumps(refusal).encode()))
    with pytest.raises(ReplicaPermanentError, match=r"no access token: invalid_grant") as caught:
        put(make(environ={}))
    assert "Check the credentials" in caught.value.hint


def test_a_broken_key_file_is_permanent(
    make: Make, key_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key_file.write_text('{"type": "service_account", "private_key": "very-secret"}')
    with pytest.raises(ReplicaPermanentError, match="no ") as caught:
        put(make(environ={}))
    assert "very-secret" not in str(caught.value)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/nowhere.json")
    with pytest.raises(ReplicaPermanentError, match="no usable credentials") as caught:
        put(make(environ={}))
    assert "GOOGLE_APPLICATION_CREDENTIALS" in caught.value.hint


def test_a_token_server_that_is_down_is_temporary(make: Make, key_file: Path) -> None:
    account = json.loads(key_file.read_text())
    key_file.write_text(json.dumps({**account, "token_uri": "http://127.0.0.1:1/token"}))
    with pytest.raises(ReplicaTemporaryError, match="no access token"):
        put(make(environ={}))
