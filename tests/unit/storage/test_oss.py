"""From keys to settings of an OSS replica, and how calls of S3 become those of OSS."""

from __future__ import annotations

import base64
import hashlib
import io
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from urllib.parse import quote

import pytest

from fixtures.fakeclock import FakeClock
from fixtures.ltxbytes import build_ltx
from fixtures.scripted import Reply, ScriptedServer, scripted_server
from pyrep.errors import ConfigError, ReplicaExistsError, ReplicaPermanentError
from pyrep.ids import TXID
from pyrep.ltxfile import FileInfo
from pyrep.storage.base import ReplicaClient
from pyrep.storage.budget import Budget
from pyrep.storage.oss_config import oss_settings
from pyrep.storage.oss_session import OSSSession, signature
from pyrep.storage.registry import ReplicaSpec, connect, parse_url
from pyrep.storage.s3 import S3ReplicaClient
from pyrep.storage.s3_calls import Call

DATA = build_ltx(1, 1, timestamp_ms=1_700_000_000_120)
KEY = "/bucket/db/0000/0000000000000001-0000000000000001.ltx"
KEYS = {"access-key-id": "me", "secret-access-key": "hush"}
OK = Reply(200, {"ETag": '"e"'})


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with scripted_server() as script:
        yield script


@pytest.fixture
def client(server: ScriptedServer) -> Iterator[ReplicaClient]:
    options = {"bucket": "bucket", "endpoint": server.endpoint, **KEYS}
    account, settings = oss_settings(url=None, path="db", options=options, environ={})
    session = OSSSession(account, Budget(clock=FakeClock()))
    with closing(S3ReplicaClient(settings, session, release=session.close)) as made:
        yield made


def error(status: int, code: str) -> Reply:
    return Reply(status, body=f"<Error><Code>{code}</Code><Message>said</Message></Error>".encode())


@pytest.mark.parametrize(
    ("url", "bucket", "path", "region", "endpoint"),
    [
        ("oss://b/p", "b", "p", "cn-hangzhou", "https://oss-cn-hangzhou.aliyuncs.com"),
        (
            "oss://b.oss-cn-beijing.aliyuncs.com/a%20b",
            *("b", "a b", "cn-beijing", "https://oss-cn-beijing.aliyuncs.com"),
        ),
        (
            "oss://b.oss-us-east-1-internal.aliyuncs.com/p",
            *("b", "p", "us-east-1", "https://oss-us-east-1-internal.aliyuncs.com"),
        ),
        ("oss://b/p?region=ap-x", "b", "p", "ap-x", "https://oss-ap-x.aliyuncs.com"),
        ("oss://b/p?endpoint=127.0.0.1:9", "b", "p", "cn-hangzhou", "http://127.0.0.1:9"),
        (
            "oss://b/p?endpoint=oss-cn-x.aliyuncs.com",
            *("b", "p", "cn-x", "https://oss-cn-x.aliyuncs.com"),
        ),
    ],
)
def test_urls_name_bucket_path_and_endpoint(
    url: str, bucket: str, path: str, region: str, endpoint: str
) -> None:
    account, found = oss_settings(url=url, path="", options={}, environ={})
    assert (found.bucket, found.path) == (bucket, path)
    assert (account.keys.region, account.keys.endpoint) == (region, endpoint)
    assert parse_url(url).path == path


def test_the_order_of_credentials() -> None:
    environ = {"OSS_ACCESS_KEY_ID": "env", "OSS_ACCESS_KEY_SECRET": "e", "OSS_SESSION_TOKEN": "t"}

    def keys(**given: str) -> tuple[str, str, str]:
        options = {"bucket": "b", **{k.replace("_", "-"): v for k, v in given.items()}}
        found = oss_settings(url=None, path="", options=options, environ=environ)[0].keys
        return found.access_key_id, found.secret_access_key, found.session_token

    assert keys() == ("env", "e", "t")
    assert keys(access_key_id="me", secret_access_key="s") == ("me", "s", "")
    assert keys(access_key_id="me") == ("env", "e", "t")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (ReplicaSpec("oss", "p"), "bucket required for oss replica"),
        (ReplicaSpec(url="oss:///p"), "bucket required for oss replica"),
        (ReplicaSpec(url="oss://k:hush@b/p"), "holds a user name or secret"),
        (ReplicaSpec(url="oss://b/p?key=hush"), 'unknown parameter in oss replica url: "key"'),
        (ReplicaSpec("oss", "p", "oss://b/p"), "cannot specify url & path for oss replica"),
        (
            ReplicaSpec("oss", "p", options={"bucket": "b", "part-size": 1000}),
            "part-size: must be at least 100 KiB",
        ),
    ],
)
def test_bad_replicas_are_errors(spec: ReplicaSpec, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        connect(spec)
    assert "hush" not in str(caught.value)


def test_without_credentials_nothing_is_sent() -> None:
    with closing(connect(ReplicaSpec("oss", "p", options={"bucket": "b"}))) as client:
        with pytest.raises(ReplicaPermanentError, match="no credentials found") as caught:
            list(client.list_ltx(0))
        assert "OSS_ACCESS_KEY_ID" in caught.value.hint


def test_a_write_is_that_of_oss(server: ScriptedServer, client: ReplicaClient) -> None:
    server.script(OK, error(409, "FileAlreadyExists"))
    source = io.BytesIO(DATA)
    client.write_ltx(0, TXID(1), TXID(1), source, create_only=True)
    with pytest.raises(ReplicaExistsError, match="oss://bucket/db/0000/"):
        client.write_ltx(0, TXID(1), TXID(1), io.BytesIO(DATA), create_only=True)
    first, second = server.asked
    assert (first.method, first.target, first.body) == ("PUT", KEY, DATA)
    assert first.headers["x-oss-forbid-overwrite"] == "true"
    assert first.headers["x-oss-meta-litestream-timestamp"] == "2023-11-14T22:13:20.12Z"
    assert first.headers["authorization"].startswith("OSS4-HMAC-SHA256 Credential=me/")
    for asked in (first, second):
        assert "hush" not in str(asked)
        assert not [name for name in asked.headers if name.startswith(("x-amz-", "if-none"))]


def test_pages_are_of_a_thousand_and_times_are_read(
    server: ScriptedServer, client: ReplicaClient
) -> None:
    key = KEY.removeprefix("/bucket/")
    item = f"<Contents><Key>{key}</Key><Size>7</Size></Contents>"
    server.script(Reply(200, body=f"<ListBucketResult>{item}</ListBucketResult>".encode()))
    server.script(Reply(200, {"x-oss-meta-Litestream-Timestamp": "2023-11-14T22:13:20.12Z"}))
    (info,) = client.list_ltx(0, exact_times=True)
    assert info == FileInfo(0, TXID(1), TXID(1), 7, 1_700_000_000_120)
    assert "max-keys=1000" in server.asked[0].target


def test_batch_deletes_have_no_namespace(server: ScriptedServer, client: ReplicaClient) -> None:
    infos = [FileInfo(0, TXID(n), TXID(n)) for n in (1, 2)]
    keys = [f"db/0000/{info.name}" for info in infos]
    gone = "".join(f"<Deleted><Key>{key}</Key></Deleted>" for key in keys)
    server.script(Reply(200, body=f"<DeleteResult>{gone}</DeleteResult>".encode()), Reply(404))
    client.delete_ltx(infos)
    asked = server.asked[0]
    assert asked.target == "/bucket/?delete"
    assert b"xmlns" not in asked.body
    digest = base64.b64encode(hashlib.md5(asked.body).digest()).decode()
    assert asked.headers["content-md5"] == digest


@pytest.mark.parametrize("code", ["InvalidAccessKeyId", "SignatureDoesNotMatch", "AccessDenied"])
def test_a_refusal_is_permanent(server: ScriptedServer, client: ReplicaClient, code: str) -> None:
    server.script(error(403, code))
    with pytest.raises(ReplicaPermanentError, match=code) as caught:
        list(client.list_ltx(0))
    assert caught.value.hint.startswith("Check the access key")


@pytest.mark.parametrize("token", ["", "the token"])
def test_signatures_are_those_of_alibabas_own_client(token: str) -> None:
    from alibabacloud_oss_v2 import signer
    from alibabacloud_oss_v2.credentials import Credentials
    from alibabacloud_oss_v2.types import HttpRequest, SigningContext

    key = "a b/%#?+/\N{PILE OF POO}"
    query = (("uploadId", "x/+="), ("partNumber", "1"), ("uploads", ""))
    moment = datetime(2026, 11, 22, 20, 0, 1, tzinfo=UTC)
    headers = {"content-type": "application/xml", "content-md5": "eA==", "range": "bytes=0-1"}
    headers |= {"x-oss-meta-litestream-timestamp": "2023-11-14T22:13:20.12Z"}
    tail = "&".join(f"{k}={quote(v, safe='')}" if v else k for k, v in query)
    request = HttpRequest("PUT", f"https://h/{quote(key)}?{tail}", headers=dict(headers))
    context = SigningContext("oss", "cn-x", "bucket", key, request, Credentials("me", "s", token))
    context.signing_time = moment
    signer.SignerV4().sign(context)
    mine = {**headers, "x-oss-content-sha256": "UNSIGNED-PAYLOAD", "x-oss-date": "20261122T200001Z"}
    mine |= {"x-oss-security-token": token} if token else {}
    ours = signature("s", "cn-x", "PUT", f"/bucket/{key}", query, mine)
    assert context.request is not None
    assert str(context.request.headers["Authorization"]).endswith(f"Signature={ours}")


def test_objects_of_alibaba_are_addressed_by_host() -> None:
    options = {"bucket": "b", **KEYS}
    account, settings = oss_settings(url=None, path="", options=options, environ={})
    session = OSSSession(account, Budget())
    call = Call("read", "x", "GET", "b", "a b/x", path_style=settings.path_style)
    assert session._address(call) == ("https://b.oss-cn-hangzhou.aliyuncs.com", "/a%20b/x")
    session.close()


def test_it_loads_nothing_of_aws() -> None:
    code = (
        "import sys; from pyrep.storage.registry import *; "
        "connect(ReplicaSpec('oss', 'p', options={'bucket': 'b'})).close(); "
        "print([m for m in sys.modules if 'botocore' in m])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
