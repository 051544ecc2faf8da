"""What the S3 client asks, and what it makes of answers that real servers rarely give."""

from __future__ import annotations

import base64
import hashlib
import io
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from urllib3 import HTTPResponse

from fixtures.fakeclock import FakeClock
from fixtures.ltxbytes import build_ltx
from fixtures.scripted import Reply, ScriptedServer, scripted_server
from pyrep.errors import (
    LTXCorruptError,
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
from pyrep.storage.parts import part_sizes
from pyrep.storage.registry import ReplicaSpec, connect
from pyrep.storage.s3 import S3ReplicaClient
from pyrep.storage.s3_calls import Call
from pyrep.storage.s3_config import s3_settings
from pyrep.storage.s3_session import S3Session

INFO = FileInfo(0, TXID(1), TXID(1))
DATA = build_ltx(1, 1, timestamp_ms=1_700_000_000_120)
ETAG = {"ETag": '"e"'}
PUT_OK = Reply(200, ETAG)
KEY = "/bucket/db/0000/0000000000000001-0000000000000001.ltx"

Make = Callable[..., S3ReplicaClient]


def error(status: int, code: str, message: str = "") -> Reply:
    text = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>"
    return Reply(status, body=text.encode())


def page(*keys: str, token: str = "", more: str = "false") -> Reply:
    """Return a page of a listing, each object of 7 bytes."""
    tail = "<Size>7</Size><LastModified>2023-11-14T22:13:20.000Z</LastModified>"
    items = "".join(f"<Contents><Key>{key}</Key>{tail}</Contents>" for key in keys)
    token = f"<NextContinuationToken>{token}</NextContinuationToken>" if token else ""
    body = f"<IsTruncated>{more}</IsTruncated>{token}<EncodingType>url</EncodingType>{items}"
    xmlns = 'xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'
    text = f"<ListBucketResult {xmlns}>{body}</ListBucketResult>"
    return Reply(200, body=text.encode())


def name(txid: int) -> str:
    return f"{txid:016x}-{txid:016x}.ltx"


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with scripted_server() as running:
        yield running


@pytest.fixture
def make(server: ScriptedServer) -> Iterator[Make]:
    with ExitStack() as stack:

        def build(**keys: Any) -> S3ReplicaClient:
            options = {"bucket": "bucket", "endpoint": server.endpoint}
            options |= {"access-key-id": "AKID", "secret-access-key": "geheim"}
            options |= {key.replace("_", "-"): value for key, value in keys.items()}
            settings = s3_settings(url=None, path="db", options=options, environ={})
            session = S3Session(settings.account, Budget(clock=FakeClock()))
            stack.callback(session.close)
            return S3ReplicaClient(settings, session, release=lambda: None)

        yield build


def write(client: S3ReplicaClient, *, create_only: bool = False, data: bytes = DATA) -> FileInfo:
    return client.write_ltx(0, TXID(1), TXID(1), io.BytesIO(data), create_only=create_only)


def read(client: S3ReplicaClient, offset: int = 0, size: int | None = None) -> bytes:
    with client.open_ltx(INFO, offset, size) as stream:
        return stream.read()


# --- what is asked ---


def test_a_put_is_signed_with_known_length_and_no_trailer(
    server: ScriptedServer, make: Make
) -> None:
    server.script(PUT_OK)
    write(make(storage_class="STANDARD_IA"))
    (asked,) = server.asked
    assert (asked.method, asked.target, asked.body) == ("PUT", KEY, DATA)
    headers = asked.headers
    assert headers["x-amz-meta-litestream-timestamp"] == "2023-11-14T22:13:20.12Z"
    assert headers["x-amz-content-sha256"] == hashlib.sha256(DATA).hexdigest()
    assert headers["content-length"] == str(len(DATA))
    assert headers["x-amz-storage-class"] == "STANDARD_IA"
    assert headers["user-agent"] == "pyrep"
    assert "Credential=AKID/" in headers["authorization"]
    assert "host;" in headers["authorization"]
    assert "accept-encoding" not in headers["authorization"]
    unwanted = {"transfer-encoding", "x-amz-trailer", "content-encoding", "expect"}
    assert not unwanted & headers.keys()


def test_an_unsigned_payload_is_said_to_be_one(server: ScriptedServer, make: Make) -> None:
    server.script(PUT_OK)
    write(make(sign_payload=False))
    assert server.asked[0].headers["x-amz-content-sha256"] == "UNSIGNED-PAYLOAD"


def test_the_customers_key_goes_with_every_request_for_bytes(
    server: ScriptedServer, make: Make
) -> None:
    secret = base64.b64encode(bytes(32)).decode()
    client = make(sse_customer_key=secret)
    server.script(PUT_OK, Reply(200, body=DATA), Reply(200, length=len(DATA)))
    write(client)
    read(client)
    list(client._with_times(iter([INFO])))
    header = "x-amz-server-side-encryption-customer-key"
    assert [asked.headers.get(header) for asked in server.asked] == [secret] * 3


def test_a_listing_starts_where_it_is_asked_to(server: ScriptedServer, make: Make) -> None:
    server.script(page(f"db/0002/{name(16)}"))
    (info,) = make().list_ltx(2, TXID(16))
    assert info == FileInfo(2, TXID(16), TXID(16), 7, 1_700_000_000_000)
    assert server.asked[0].target == (
        "/bucket?encoding-type=url&list-type=2&prefix=db%2F0002%2F"
        "&start-after=db%2F0002%2F0000000000000010"
    )


def test_a_listing_goes_through_all_pages(server: ScriptedServer, make: Make) -> None:
    server.script(
        page(f"db/0000/{name(1)}", f"db/0000/{name(2)}", token="a b", more="true"),
        page("db/0000/README", token="c", more="true"),
        page(f"db%2F0000%2F{name(3)}"),
    )
    assert [int(info.min_txid) for info in make().list_ltx(0)] == [1, 2, 3]
    assert "continuation-token=a%20b" in server.asked[1].target
    assert "continuation-token=c" in server.asked[2].target


@pytest.mark.parametrize("md5", [True, False])
def test_a_batch_delete_carries_a_checksum(server: ScriptedServer, make: Make, md5: bool) -> None:
    infos = [FileInfo(0, TXID(n), TXID(n)) for n in (1, 2)]
    deleted = "".join(f"<Deleted><Key>db/0000/{name(n)}</Key></Deleted>" for n in (1, 2))
    answer = Reply(200, body=f"<DeleteResult>{deleted}</DeleteResult>".encode())
    server.script(answer, Reply(404), answer)
    client = make(require_content_md5=md5)
    client.delete_ltx(infos)
    client.delete_ltx(infos)
    assert [asked.method for asked in server.asked] == ["POST", "HEAD", "POST"]  # proven once
    headers, body = server.asked[0].headers, server.asked[0].body
    digest = base64.b64encode(hashlib.md5(body).digest()).decode()
    crc = base64.b64encode(zlib.crc32(body).to_bytes(4, "big")).decode()
    assert headers.get("content-md5") == (digest if md5 else None)
    assert headers.get("x-amz-checksum-crc32") == (None if md5 else crc)


# --- answers that are wrong ---


@pytest.mark.parametrize(
    ("offset", "size", "reply"),
    [
        (0, None, Reply(200, body=DATA[:50], length=len(DATA))),
        (10, 20, Reply(200, body=DATA)),
        (10, 20, Reply(206, {"Content-Range": "bytes 11-30/660"}, DATA[11:31])),
        (10, 20, Reply(206, {"Content-Range": "bytes 10-28/660"}, DATA[10:29])),
        (10, 20, Reply(206, {}, DATA[10:30])),
        (10, 20, Reply(206, {"Content-Range": "bytes 10-29/660"}, DATA[10:25])),
        (10, 20, Reply(206, {"Content-Range": "bytes 10-29/660"}, DATA[10:25], 20)),
        (0, None, Reply(drop=True)),
    ],
)
def test_short_and_wrong_bodies_are_temporary(
    server: ScriptedServer, make: Make, offset: int, size: int | None, reply: Reply
) -> None:
    server.script(reply)
    with pytest.raises(ReplicaTemporaryError, match=name(1)):
        read(make(), offset, size)


def test_an_exact_range_is_asked_for_and_taken(server: ScriptedServer, make: Make) -> None:
    server.script(Reply(206, {"Content-Range": "bytes 10-29/660"}, DATA[10:30]))
    assert read(make(), 10, 20) == DATA[10:30]
    assert server.asked[0].headers["range"] == "bytes=10-29"


def test_a_good_range_that_is_refused_is_temporary(server: ScriptedServer, make: Make) -> None:
    server.script(Reply(416), Reply(200, length=660))
    with pytest.raises(ReplicaTemporaryError, match="refused a good range"):
        read(make(), 10, 20)


def test_a_range_past_the_end_is_cut_by_the_server_and_noticed(
    server: ScriptedServer, make: Make
) -> None:
    server.script(Reply(206, {"Content-Range": "bytes 650-659/660"}, DATA[650:660]))
    with pytest.raises(LTXCorruptError, match="past the end of 660 bytes"):
        read(make(), 650, 20)


ANSWERS = [
    (Reply(500), ReplicaTemporaryError, "the storage answered 500"),
    (error(503, "SlowDown", "less"), ReplicaThrottledError, "503 SlowDown: less"),
    (error(400, "Throttling", "less"), ReplicaThrottledError, "400 Throttling: less"),
    (Reply(429), ReplicaThrottledError, "429"),
    (Reply(408), ReplicaTemporaryError, "408"),
    (error(400, "RequestTimeout"), ReplicaTemporaryError, "RequestTimeout"),
    (error(400, "ExpiredToken"), ReplicaTemporaryError, "ExpiredToken"),
    (error(400, "BadDigest"), ReplicaTemporaryError, "BadDigest"),
    (error(409, "OperationAborted"), ReplicaTemporaryError, "OperationAborted"),
    (Reply(drop=True), ReplicaTemporaryError, "cannot write: "),
    (Reply(200), ReplicaTemporaryError, "no ETag"),
    (error(403, "AccessDenied"), ReplicaPermanentError, "403 AccessDenied"),
    (error(403, "SignatureDoesNotMatch"), ReplicaPermanentError, "SignatureDoesNotMatch"),
    (error(404, "NoSuchBucket"), ReplicaPermanentError, "NoSuchBucket"),
    (error(400, "InvalidStorageClass"), ReplicaPermanentError, "InvalidStorageClass"),
    (error(301, "PermanentRedirect"), ReplicaPermanentError, "PermanentRedirect"),
    (Reply(501, body=b"<html>"), ReplicaPermanentError, "501"),
]


@pytest.mark.parametrize(("reply", "kind", "text"), ANSWERS, ids=[a[2] for a in ANSWERS])
def test_refusals_are_temporary_or_permanent(
    server: ScriptedServer, make: Make, reply: Reply, kind: type[ReplicaError], text: str
) -> None:
    server.script(reply)
    with pytest.raises(ReplicaError) as caught:
        write(make())
    assert type(caught.value) is kind
    assert text in str(caught.value)
    assert name(1) in str(caught.value)
    assert "geheim" not in str(caught.value) + caught.value.hint


def test_nobody_listening_is_temporary(server: ScriptedServer, make: Make) -> None:
    client = make(endpoint="http://127.0.0.1:1")
    with pytest.raises(ReplicaTemporaryError, match="Connection refused"):
        write(client)


def test_a_missing_object_and_a_missing_bucket_are_told_apart(
    server: ScriptedServer, make: Make
) -> None:
    client = make()
    server.script(error(404, "NoSuchKey"), error(404, "NoSuchBucket"), Reply(404))
    with pytest.raises(LTXNotFoundError):
        read(client)
    with pytest.raises(ReplicaPermanentError, match="no such bucket"):
        read(client)
    with pytest.raises(LTXNotFoundError):
        client.open_ltx(INFO, 5, 0)


@pytest.mark.parametrize(
    ("replies", "text"),
    [
        ((Reply(200, body=b"<html>"),), "not readable"),
        ((Reply(200, body=b"<Error/>"),), "no ListBucketResult"),
        ((page(more="true"),), "does not go on"),
        ((page(token="a", more="true"), page(token="a", more="true")), "does not go on"),
    ],
)
def test_a_senseless_listing_is_temporary(
    server: ScriptedServer, make: Make, replies: tuple[Reply, ...], text: str
) -> None:
    server.script(*replies)
    with pytest.raises(ReplicaTemporaryError, match=text):
        list(make().list_ltx(0))


def test_a_listing_out_of_order_is_an_error(server: ScriptedServer, make: Make) -> None:
    server.script(page(f"db/0000/{name(2)}", f"db/0000/{name(1)}"))
    with pytest.raises(ReplicaPermanentError, match="after"):
        list(make().list_ltx(0))


def test_exact_times_are_those_of_the_metadata(server: ScriptedServer, make: Make) -> None:
    server.script(page(f"db/0000/{name(1)}"))
    meta = {"x-amz-meta-litestream-timestamp": "2020-01-02T03:04:05.678901+01:00"}
    server.script(Reply(200, meta))
    (info,) = make().list_ltx(0, exact_times=True)
    assert info.timestamp_ms == 1_577_930_645_678
    for headers in ({}, {"x-amz-meta-litestream-timestamp": "noon"}):
        server.script(page(f"db/0000/{name(1)}"), Reply(200, headers))
        (info,) = make().list_ltx(0, exact_times=True)
        assert info.timestamp_ms == 1_700_000_000_000
    server.script(page(f"db/0000/{name(1)}"), Reply(404))
    assert list(make().list_ltx(0, exact_times=True)) == []


# --- create-only ---


def test_a_server_that_minds_the_condition_is_asked_once(
    server: ScriptedServer, make: Make
) -> None:
    client = make()
    server.script(Reply(404), PUT_OK, Reply(412))  # look, write, probe
    write(client, create_only=True)
    server.script(PUT_OK)
    write(client, create_only=True)
    assert [asked.method for asked in server.asked] == ["HEAD", "PUT", "PUT", "PUT"]
    assert {asked.headers.get("if-none-match") for asked in server.asked[1:]} == {"*"}
    assert client.capabilities.conditional_put
    server.script(Reply(412))
    with pytest.raises(ReplicaExistsError, match="already there"):
        write(client, create_only=True)


@pytest.mark.parametrize(
    "replies",
    [(PUT_OK, PUT_OK), (error(501, "NotImplemented"), PUT_OK)],
    ids=["ignores", "refuses"],
)
def test_where_there_are_no_conditions_pyrep_looks_first(
    server: ScriptedServer,
    make: Make,
    replies: tuple[Reply, ...],
    caplog: pytest.LogCaptureFixture,
) -> None:
    client = make()
    server.script(Reply(404), *replies)
    write(client, create_only=True)
    assert not client.capabilities.conditional_put
    assert caplog.text.count("fencing is best effort") == 1
    server.script(Reply(200, length=5), Reply(404), PUT_OK)
    with pytest.raises(ReplicaExistsError):
        write(client, create_only=True)
    write(client, create_only=True)
    assert [asked.method for asked in server.asked[-3:]] == ["HEAD", "HEAD", "PUT"]
    assert "if-none-match" not in server.asked[-1].headers
    assert caplog.text.count("fencing is best effort") == 1


def test_a_failed_probe_does_not_fail_the_write(server: ScriptedServer, make: Make) -> None:
    client = make()
    server.script(Reply(404), PUT_OK, Reply(503))
    assert write(client, create_only=True).size == len(DATA)
    server.script(Reply(404), PUT_OK, Reply(412))  # asked again
    write(client, create_only=True)
    assert not server.replies


# --- deletion ---


def test_a_batch_delete_that_lies_is_found_out(
    server: ScriptedServer, make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    infos = [FileInfo(0, TXID(n), TXID(n)) for n in (1, 2)]
    deleted = "".join(f"<Deleted><Key>db/0000/{name(n)}</Key></Deleted>" for n in (1, 2))
    lie = Reply(200, body=f"<DeleteResult>{deleted}</DeleteResult>".encode())
    there, gone = Reply(200, length=9), Reply(404)
    client = make()
    server.script(lie, there, Reply(204), gone, Reply(204), gone)
    client.delete_ltx(infos)
    assert "one by one" in caplog.text
    assert not client.capabilities.batch_delete
    server.script(Reply(204), Reply(204))
    client.delete_ltx(infos)
    assert not server.replies


def test_a_delete_that_lies_is_an_error(server: ScriptedServer, make: Make) -> None:
    server.script(Reply(204), Reply(200, length=9))
    with pytest.raises(ReplicaPermanentError, match="still there"):
        make().delete_ltx([INFO])


@pytest.mark.parametrize(
    ("result", "kind", "text"),
    [
        (
            f"<Deleted><Key>db/0000/{name(1)}</Key></Deleted>",
            ReplicaTemporaryError,
            "did not say that it was deleted (1 of 2 objects)",
        ),
        (
            f"<Error><Key>db/0000/{name(2)}</Key><Code>AccessDenied</Code></Error>",
            ReplicaPermanentError,
            "AccessDenied",
        ),
        (
            f"<Error><Key>db/0000/{name(2)}</Key><Code>InternalError</Code></Error>",
            ReplicaTemporaryError,
            "InternalError",
        ),
    ],
)
def test_a_batch_answer_is_compared_with_what_was_asked(
    server: ScriptedServer, make: Make, result: str, kind: type[ReplicaError], text: str
) -> None:
    server.script(Reply(200, body=f"<DeleteResult>{result}</DeleteResult>".encode()))
    with pytest.raises(kind) as caught:
        make().delete_ltx([FileInfo(0, TXID(n), TXID(n)) for n in (1, 2)])
    assert text in str(caught.value)
    assert name(2) in str(caught.value)


# --- parts ---

UPLOAD_ID = (
    "<InitiateMultipartUploadResult><UploadId>u 1</UploadId></InitiateMultipartUploadResult>"
)
BEGUN = Reply(200, body=UPLOAD_ID.encode())
DONE = Reply(200, body=b"<CompleteMultipartUploadResult/>")
LARGE = DATA + bytes((11 << 20) - len(DATA))


def test_a_large_file_goes_up_in_parts(server: ScriptedServer, make: Make) -> None:
    server.script(BEGUN, Reply(503), *[PUT_OK] * 3, DONE)  # a part is tried again by itself
    info = write(make(concurrency=1), data=LARGE)
    assert info.size == len(LARGE)
    targets = [(asked.method, asked.target.removeprefix(KEY)) for asked in server.asked]
    parts = [("PUT", f"?partNumber={number}&uploadId=u%201") for number in (1, 1, 2, 3)]
    assert targets == [("POST", "?uploads="), *parts, ("POST", "?uploadId=u%201")]
    assert b"".join(asked.body for asked in server.asked[2:5]) == LARGE
    assert server.asked[0].headers["x-amz-meta-litestream-timestamp"]
    assert server.asked[-1].body.count(b"<Part>") == 3


@pytest.mark.parametrize(
    ("replies", "kind"),
    [
        ([PUT_OK, error(403, "AccessDenied"), Reply(204)], ReplicaPermanentError),
        ([*[PUT_OK] * 3, error(200, "InternalError"), Reply(204)], ReplicaTemporaryError),
        ([PUT_OK, *[Reply(500)] * 4, Reply(204)], ReplicaTemporaryError),
        ([*[PUT_OK] * 3, Reply(200, body=b" \n ", length=300), Reply(204)], ReplicaTemporaryError),
        ([*[PUT_OK] * 3, Reply(200, body=b"<Error><Co"), Reply(204)], ReplicaTemporaryError),
        ([*[PUT_OK] * 3, Reply(200, body=b"<html/>"), Reply(204)], ReplicaTemporaryError),
        ([*[PUT_OK] * 3, Reply(200), Reply(204)], ReplicaTemporaryError),
        ([*[PUT_OK] * 3, error(501, "NotImplemented"), Reply(204)], ReplicaPermanentError),
    ],
)
def test_a_failed_upload_is_aborted(
    server: ScriptedServer, make: Make, replies: list[Reply], kind: type[ReplicaError]
) -> None:
    server.script(BEGUN, *replies)
    with pytest.raises(kind):
        write(make(concurrency=1), data=LARGE)
    last = server.asked[-1]
    assert (last.method, last.target) == ("DELETE", f"{KEY}?uploadId=u%201")


def test_a_source_that_fails_half_way_aborts_the_upload(server: ScriptedServer, make: Make) -> None:
    class Source(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            if self.tell() > 10 << 20:
                raise OSError("the source's disk")
            return super().read(size)

    server.script(BEGUN, *[PUT_OK] * 2, Reply(204))
    with pytest.raises(OSError, match="the source's disk"):
        make(concurrency=1).write_ltx(0, TXID(1), TXID(1), Source(LARGE))
    assert [asked.method for asked in server.asked] == ["POST", "PUT", "PUT", "DELETE"]


def test_a_create_only_upload_in_parts_looks_before_it_completes(
    server: ScriptedServer, make: Make
) -> None:
    server.script(Reply(404), BEGUN, *[PUT_OK] * 3, Reply(200, length=9), Reply(204))
    with pytest.raises(ReplicaExistsError):
        write(make(concurrency=1), data=LARGE, create_only=True)
    assert [asked.method for asked in server.asked[-2:]] == ["HEAD", "DELETE"]


def test_an_upload_in_parts_is_create_only_before_the_server_is_known(
    server: ScriptedServer, make: Make
) -> None:
    there, parts = Reply(404), [PUT_OK] * 3
    server.script(there, BEGUN, *parts, there, Reply(412), Reply(204))  # another was quicker
    with pytest.raises(ReplicaExistsError):
        write(make(concurrency=1), data=LARGE, create_only=True)
    assert server.asked[-2].headers["if-none-match"] == "*"


def test_an_upload_in_parts_does_without_a_condition_that_is_refused(
    server: ScriptedServer, make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    client, gone = make(concurrency=1), Reply(404)
    refused = error(501, "NotImplemented")
    server.script(gone, BEGUN, *[PUT_OK] * 3, gone, refused, DONE)
    write(client, data=LARGE, create_only=True)
    assert [asked.headers.get("if-none-match") for asked in server.asked[-2:]] == ["*", None]
    assert not client.capabilities.conditional_put
    assert caplog.text.count("fencing is best effort") == 1


@pytest.mark.parametrize("total", [0, 5 << 20, 50 << 30, (50 << 30) + 1, 5 << 40])
def test_parts_are_equal_and_few_enough(total: int) -> None:
    sizes = part_sizes(5 << 20, total)
    first = next(sizes)
    assert {next(sizes) for _ in range(9_999)} == {first}
    assert first * 10_000 >= total
    assert first >= 5 << 20


def test_parts_of_an_unknown_total_grow_only_at_the_end() -> None:
    sizes = part_sizes(5 << 20, None)
    all_sizes = [next(sizes) for _ in range(10_000)]
    assert set(all_sizes[:9_000]) == {5 << 20}
    assert sum(all_sizes) >= 5 << 40 or max(all_sizes) > 1 << 30


# --- the session ---


def addressed(options: dict[str, object]) -> list[str]:
    """Return the URLs that the session of a replica would ask for an object and for the bucket."""
    keys = {"access-key-id": "a", "secret-access-key": "b", **options}
    settings = s3_settings(url=None, path="p q", options=keys, environ={})
    session = S3Session(settings.account, Budget())
    style = settings.path_style
    found = []
    for key in ("p q/0000/x", ""):
        call = Call("read", "", "GET", settings.bucket, key, path_style=style)
        found.append("".join(session._address(call)))
    session.close()
    return found


@pytest.mark.parametrize(
    ("options", "url"),
    [
        ({"bucket": "bucket", "region": "eu-west-1"}, "https://bucket.s3.eu-west-1.amazonaws.com"),
        (
            {"bucket": "my.bucket", "region": "eu-west-1"},
            "https://s3.eu-west-1.amazonaws.com/my.bucket",
        ),
        (
            {"bucket": "bucket", "region": "cn-north-1"},
            "https://bucket.s3.cn-north-1.amazonaws.com.cn",
        ),
        (
            {"bucket": "arn:aws:s3:us-west-2:123456789012:accesspoint/name"},
            "https://name-123456789012.s3-accesspoint.us-west-2.amazonaws.com",
        ),
        (
            {
                "bucket": "bucket",
                "endpoint": "nyc3.digitaloceanspaces.com",
                "force-path-style": False,
            },
            "https://bucket.nyc3.digitaloceanspaces.com",
        ),
        (
            {"bucket": "bucket", "endpoint": "https://r.supabase.co/storage/v1/s3"},
            "https://r.supabase.co/storage/v1/s3/bucket",
        ),
    ],
)
def test_addresses_of_objects_and_buckets(options: dict[str, object], url: str) -> None:
    style = "/" if url.count("/") == 2 else ""
    assert addressed(options) == [f"{url}/p%20q/0000/x", f"{url}{style}"]


def test_requests_go_through_the_proxy_of_the_environment(
    server: ScriptedServer, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", server.endpoint)
    server.script(PUT_OK, PUT_OK)
    write(make(endpoint="http://s3.example.com"))
    assert server.asked[0].target == f"http://s3.example.com{KEY}"
    assert server.asked[0].headers["host"] == "s3.example.com"
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    write(make())
    assert server.asked[1].target == KEY


def test_expired_credentials_are_asked_for_again(
    server: ScriptedServer, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = make(access_key_id="", secret_access_key="")
    for key_id in ("FIRST", "SECOND"):
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", key_id)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s")
        server.script(error(400, "ExpiredToken"))
        with pytest.raises(ReplicaTemporaryError, match="ExpiredToken"):
            write(client)
        assert f"Credential={key_id}/" in server.asked[-1].headers["authorization"]


def test_a_head_without_a_reason_may_mean_expired_credentials(
    server: ScriptedServer, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = make(access_key_id="", secret_access_key="")
    for key_id in ("FIRST", "SECOND"):
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", key_id)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s")
        server.script(Reply(400))
        with pytest.raises(ReplicaTemporaryError, match="400"):
            client.open_ltx(INFO, 0, 0)
        assert f"Credential={key_id}/" in server.asked[-1].headers["authorization"]


def test_without_credentials_the_error_says_where_to_put_them(
    server: ScriptedServer, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", "/nowhere")
    with pytest.raises(ReplicaPermanentError, match="no credentials found") as caught:
        write(make(access_key_id="", secret_access_key=""))
    assert "AWS_ACCESS_KEY_ID" in caught.value.hint
    assert not server.asked


def test_a_region_is_learned_from_an_answer() -> None:
    options = {"bucket": "bucket", "region": "us-east-1", "access-key-id": "a"}
    settings = s3_settings(url=None, path="", options=options, environ={})
    session = S3Session(settings.account, Budget())
    answer = HTTPResponse(headers={"x-amz-bucket-region": "eu-west-1"})
    assert session.learn_region("bucket", answer)
    assert not session.learn_region("bucket", answer)
    assert session._region("bucket") == "eu-west-1"
    session.close()


def test_tenants_of_one_credential_share_a_session(server: ScriptedServer) -> None:
    options = {"bucket": "bucket", "endpoint": server.endpoint}
    options |= {"access-key-id": "a", "secret-access-key": "b"}
    server.script(Reply(404), PUT_OK, Reply(412), PUT_OK)
    first = connect(ReplicaSpec("s3", "one", options=options))
    second = connect(ReplicaSpec("s3", "two", options=options))
    for client in (first, second):  # what the first has learned, the second knows
        client.write_ltx(0, TXID(1), TXID(1), io.BytesIO(DATA), create_only=True)
        client.close()
    assert [asked.method for asked in server.asked] == ["HEAD", "PUT", "PUT", "PUT"]
