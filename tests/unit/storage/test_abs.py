"""What the client of Azure Blob Storage asks, and what it makes of rare answers."""

from __future__ import annotations

import base64
import hashlib
import io
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import parse_qs, quote, urlsplit

import pytest

from fixtures.fakeclock import FakeClock
from fixtures.ltxbytes import build_ltx
from fixtures.scripted import Asked, Reply, ScriptedServer, scripted_server
from pyrep.config.effective import effective
from pyrep.config.load import loads
from pyrep.errors import (
    ConfigError,
    LTXNotFoundError,
    ReplicaError,
    ReplicaExistsError,
    ReplicaPermanentError,
    ReplicaTemporaryError,
)
from pyrep.ids import TXID
from pyrep.ltxfile import FileInfo
from pyrep.storage.abs import ABSContainer
from pyrep.storage.abs_config import ABSAccount, ABSSettings, abs_settings
from pyrep.storage.abs_session import ABSSession, TokenSource, signature
from pyrep.storage.abs_upload import BLOCK_SIZE
from pyrep.storage.budget import Budget
from pyrep.storage.objects import ObjectReplicaClient
from pyrep.storage.registry import ReplicaSpec, connect, parse_url

INFO = FileInfo(0, TXID(1), TXID(1))
DATA = build_ltx(1, 1, timestamp_ms=1_700_000_000_120)
KEY = "db/ltx/0/0000000000000001-0000000000000001.ltx"
LARGE = DATA + random.Random(3).randbytes(2 * BLOCK_SIZE + 1000)
ACCOUNT_KEY = base64.b64encode(b"the key of the account").decode()
CREATED = Reply(201)

Make = Callable[..., ObjectReplicaClient]


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with scripted_server() as script:
        yield script


@pytest.fixture
def make(server: ScriptedServer) -> Iterator[Make]:
    """Return a function that makes a client of the server."""
    with ExitStack() as stack:

        def build(
            *, sas: str = "", key: bytes = b"key", tokens: TokenSource | None = None
        ) -> ObjectReplicaClient:
            account = ABSAccount(server.endpoint, "me", key, sas)
            session = ABSSession(account, Budget(clock=FakeClock()), tokens=tokens)
            stack.callback(session.close)
            return ObjectReplicaClient(
                ABSContainer("container", session), "db", release=session.close
            )

        yield build


def settings(url: str | None = None, path: str = "", **keys: object) -> ABSSettings:
    """Return the settings of a replica; keys with underscores for hyphens."""
    options = {key.replace("_", "-"): value for key, value in keys.items() if key != "environ"}
    environ = cast(dict[str, str], keys.get("environ", {}))
    return abs_settings(url=url, path=path, options=options, environ=environ)


def put(client: ObjectReplicaClient, data: bytes = DATA, *, create_only: bool = False) -> FileInfo:
    return client.write_ltx(0, TXID(1), TXID(1), io.BytesIO(data), create_only=create_only)


def failure(status: int, code: str, text: str = "said") -> Reply:
    body = f"\ufeff<?xml version='1.0'?><Error><Code>{code}</Code><Message>{text}</Message></Error>"
    return Reply(status, {"x-ms-error-code": code}, body.encode())


def query(asked: Asked) -> dict[str, str]:
    return {key: value[0] for key, value in parse_qs(urlsplit(asked.target).query).items()}


# --- settings -------------------------------------------------------------------------------------

DEFAULT = "https://me.blob.core.windows.net"
STRING = "DefaultEndpointsProtocol=https;AccountName=me;AccountKey=c2VjcmV0;EndpointSuffix=x.net"


@pytest.mark.parametrize(
    ("url", "container", "path", "endpoint"),
    [
        ("abs://me@box/a//b/", "box", "a/b", DEFAULT),
        ("abs://me@box", "box", "", DEFAULT),
        ("abs://box/p?endpoint=http://127.0.0.1:9/me", "box", "p", "http://127.0.0.1:9/me"),
        ("abs://box/p?endpoint=me.blob.core.windows.net", "box", "p", DEFAULT),
        ("abs://other@box/a%20b", "box", "a b", DEFAULT.replace("me", "other", 1)),
    ],
)
def test_urls_name_account_container_and_path(
    url: str, container: str, path: str, endpoint: str
) -> None:
    found = settings(url, account_key=ACCOUNT_KEY)
    assert (found.container, found.path, found.account.endpoint) == (container, path, endpoint)
    assert parse_url(url).path == path


@pytest.mark.parametrize(
    ("keys", "environ", "sas", "key"),
    [
        ({"sas_token": "?sig=1", "account_key": ACCOUNT_KEY}, {}, "sig=1", b""),
        ({"account_key": ACCOUNT_KEY}, {}, "", b"the key of the account"),
        ({"account_key": ACCOUNT_KEY}, {"LITESTREAM_AZURE_SAS_TOKEN": "s"}, "", b"the key"),
        ({}, {"LITESTREAM_AZURE_SAS_TOKEN": "s", "LITESTREAM_AZURE_ACCOUNT_KEY": "eA=="}, "s", b""),
        ({}, {"LITESTREAM_AZURE_ACCOUNT_KEY": "eA=="}, "", b"x"),
        ({}, {"AZURE_STORAGE_CONNECTION_STRING": STRING}, "", b"secret"),
        ({"connection_string": STRING}, {"LITESTREAM_AZURE_ACCOUNT_KEY": "eA=="}, "", b"secret"),
        ({"connection_string": f"{STRING};SharedAccessSignature=s=1"}, {}, "s=1", b""),
        (
            {"connection_string": "AccountName=me;SharedAccessSignature=s", "account_key": "eA=="},
            *({}, "", b"x"),
        ),
        ({}, {}, "", b""),
    ],
)
def test_the_order_of_credentials(
    keys: dict[str, object], environ: dict[str, str], sas: str, key: bytes
) -> None:
    account = settings(bucket="b", account_name="me", environ=environ, **keys).account
    assert (account.sas_token, account.key[: len(key) or None]) == (sas, key)
    assert "secret" not in repr(account)
    assert "sig=1" not in repr(account)


def test_a_connection_string_says_where() -> None:
    assert settings(bucket="b", connection_string=STRING).account.endpoint == (
        "https://me.blob.x.net"
    )
    found = settings(bucket="b", connection_string="UseDevelopmentStorage=true").account
    assert found.endpoint == "http://127.0.0.1:10000/devstoreaccount1"
    assert (found.name, len(found.key)) == ("devstoreaccount1", 64)
    string = "BlobEndpoint=https://h.lan/acc;SharedAccessSignature=sv=1&sig=x"
    found = settings(bucket="b", connection_string=string).account
    assert (found.name, found.endpoint) == ("acc", "https://h.lan/acc")
    assert settings(bucket="b", account_name="n", connection_string=string).account.name == "n"


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"account_name": "me"}, "bucket required for abs replica"),
        ({"bucket": "b"}, "account-name required for abs replica"),
        ({"bucket": "b", "endpoint": "http://h.lan"}, "account-name required"),
        ({"bucket": "b", "account_name": "me", "account_key": "secret!"}, "account-key: not an"),
        ({"bucket": "b", "connection_string": "secret"}, "connection-string: not a connection"),
        (
            {"bucket": "b", "account_name": "me", "endpoint": "http://h"},
            "endpoint: would send an access token in clear text",
        ),
        ({"bucket": "b", "account_name": "me", "path": "a\\b"}, "path has a backslash"),
    ],
)
def test_bad_keys_are_errors(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        settings(None, **keys)
    assert "secret" not in str(caught.value) + caught.value.hint


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("abs://", "bucket required for abs replica"),
        ("abs://me@", "bucket required for abs replica"),
        ("abs://me:secret@box/p", "holds a user name or secret"),
        ("abs://me@box/p?sas=secret", 'unknown parameter in abs replica url: "sas"'),
    ],
)
def test_bad_urls_are_errors(url: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        connect(ReplicaSpec(url=url))
    assert "secret" not in str(caught.value).replace("name or secret", "")


def test_secrets_are_hidden_in_the_effective_configuration() -> None:
    keys = "account-name: me, account-key: hush1, sas-token: hush2, connection-string: hush3"
    config = loads(f"dbs: [{{path: /x, replica: {{type: abs, bucket: b, {keys}}}}}]", environ={})
    assert "hush" not in str(effective(config))


def test_databases_with_a_backslash_are_refused_by_name() -> None:
    from pyrep.config.expand import tenant_at

    replica = "replica: {type: abs, bucket: b, account-name: me, path: p}"
    config = loads(f"dbs: [{{dir: /d, pattern: '*', {replica}}}]", environ={})
    assert tenant_at(config, "/d/a.db") is not None
    with pytest.raises(ConfigError, match="has a backslash"):
        tenant_at(config, "/d/a\\b.db")


# --- requests -------------------------------------------------------------------------------------


def test_a_small_file_is_one_request(server: ScriptedServer, make: Make) -> None:
    server.script(CREATED)
    put(make(), create_only=True)
    (asked,) = server.asked
    assert (asked.method, asked.target, asked.body) == ("PUT", f"/container/{KEY}", DATA)
    wanted = {
        "x-ms-blob-type": "BlockBlob",
        "x-ms-meta-litestreamtimestamp": "2023-11-14T22:13:20.12Z",
        "if-none-match": "*",
        "content-md5": base64.b64encode(hashlib.md5(DATA).digest()).decode(),
    }
    assert {name: asked.headers[name] for name in wanted} == wanted
    assert asked.headers["authorization"].startswith("SharedKey me:")


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_signatures_are_those_of_azures_own_client(method: str) -> None:
    from azure.core.pipeline import PipelineContext, PipelineRequest
    from azure.core.pipeline.transport import HttpRequest
    from azure.storage.blob._shared.authentication import SharedKeyCredentialPolicy

    target = "/me/box/a%20b/%25%23/%F0%9F%92%A9"
    asked = {"restype": "container", "comp": "list", "prefix": "a b/\u00e9&=", "marker": "1/2+="}
    headers = {
        "x-ms-version": "2021-12-02",
        "x-ms-date": "Sun, 22 Nov 2026 20:00:00 GMT",
        "x-ms-meta-litestreamtimestamp": "2023-11-14T22:13:20.12Z",
        "content-md5": "eA==",
        "content-type": "application/octet-stream",
        "content-length": "5" if method == "PUT" else "0",
        "if-none-match": "*",
    }
    request = HttpRequest(method, f"https://h.lan{target}", headers=headers)
    policy = SharedKeyCredentialPolicy("me", ACCOUNT_KEY)
    request.url = f"https://h.lan{target}?" + "&".join(
        f"{name}={quote(value, safe='')}" for name, value in asked.items()
    )
    policy.on_request(PipelineRequest(request, PipelineContext(None)))
    ours = signature("me", base64.b64decode(ACCOUNT_KEY), method, target, asked, headers)
    assert request.headers["Authorization"] == f"SharedKey me:{ours}"


def test_a_sas_token_goes_into_the_address_and_nowhere_else(
    server: ScriptedServer, make: Make
) -> None:
    client = make(sas="sv=2021&sig=hush%3D", key=b"")
    server.script(
        Reply(404, {"x-ms-error-code": "BlobNotFound"}), failure(403, "AuthenticationFailed")
    )
    with pytest.raises(LTXNotFoundError) as missing:
        client.open_ltx(INFO)
    with pytest.raises(ReplicaPermanentError) as refused:
        list(client.list_ltx(0))
    assert server.asked[0].target == f"/container/{KEY}?sv=2021&sig=hush%3D"
    assert server.asked[1].target.endswith("&sv=2021&sig=hush%3D")
    assert all("authorization" not in asked.headers for asked in server.asked)
    server.script(Reply(drop=True))
    with pytest.raises(ReplicaTemporaryError) as dropped:
        client.open_ltx(INFO)
    for error in (missing, refused, dropped):
        assert "hush" not in str(error.value) + repr(error.value) + client.url


def test_a_missing_container_is_permanent(server: ScriptedServer, make: Make) -> None:
    server.script(failure(404, "ContainerNotFound"), failure(404, "ContainerNotFound"))
    calls: list[Callable[[], object]] = [
        lambda: make().open_ltx(INFO),
        lambda: list(make().list_ltx(0)),
    ]
    for call in calls:
        with pytest.raises(ReplicaPermanentError, match="ContainerNotFound") as caught:
            call()
        assert caught.value.hint.startswith("Create the container")


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (failure(500, "InternalError"), ReplicaTemporaryError),
        (failure(503, "ServerBusy"), ReplicaTemporaryError),
        (failure(400, "Md5Mismatch"), ReplicaTemporaryError),
        (failure(409, "ContainerBeingDeleted"), ReplicaTemporaryError),
        (failure(409, "BlobAlreadyExists"), ReplicaExistsError),
        (failure(412, "ConditionNotMet"), ReplicaExistsError),
        (failure(403, "AuthenticationFailed"), ReplicaPermanentError),
        (failure(403, "AuthorizationPermissionMismatch"), ReplicaPermanentError),
        (failure(409, "BlobImmutableDueToPolicy"), ReplicaPermanentError),
        (Reply(400, body=b"\xff"), ReplicaPermanentError),
        (Reply(drop=True), ReplicaTemporaryError),
    ],
)
def test_errors_are_temporary_or_permanent(
    server: ScriptedServer, make: Make, reply: Reply, kind: type[ReplicaError]
) -> None:
    server.script(reply)
    with pytest.raises(kind) as caught:
        put(make(), create_only=True)
    assert type(caught.value) is kind
    assert f"abs://container/{KEY}" in str(caught.value)
    if reply.status == 403:
        assert caught.value.hint.startswith("Check the")


def test_only_the_first_line_of_a_message_is_shown(server: ScriptedServer, make: Make) -> None:
    text = "Server failed to authenticate.\nRequestId:1\nThe string to sign was hush"
    server.script(failure(403, "AuthenticationFailed", text))
    with pytest.raises(ReplicaPermanentError, match=r"Server failed to authenticate\.") as caught:
        put(make())
    assert "hush" not in str(caught.value)


def page(*txids: int, marker: str = "", tail: str = "") -> Reply:
    blobs = "".join(
        f"<Blob><Name>db/ltx/0/{n:016x}-{n:016x}.ltx</Name><Properties>"
        "<Creation-Time>Tue, 14 Nov 2023 22:13:20 GMT</Creation-Time>"
        f"<Content-Length>7</Content-Length></Properties>{tail}</Blob>"
        for n in txids
    )
    text = f"<EnumerationResults><Blobs>{blobs}</Blobs><NextMarker>{marker}</NextMarker>"
    return Reply(200, body=f"\ufeff{text}</EnumerationResults>".encode())


def test_a_listing_from_a_transaction_has_the_later_ones(
    server: ScriptedServer, make: Make
) -> None:
    meta = "<Metadata><litestreamtimestamp>2023-11-14T22:13:20.5Z</litestreamtimestamp></Metadata>"
    server.script(page(15, 16, marker="next/1"), page(17, 255, tail=meta))
    found = list(make().list_ltx(0, TXID(16)))
    assert [(int(info.min_txid), info.timestamp_ms) for info in found] == [
        (16, 1_700_000_000_000),
        (17, 1_700_000_000_500),
        (255, 1_700_000_000_500),
    ]
    first, second = map(query, server.asked)
    assert first["prefix"] == "db/ltx/0/"  # never with the TXID: that would hide the later ones
    assert second == {**first, "marker": "next/1"}


@pytest.mark.parametrize(
    "reply",
    [
        Reply(200, body=b""),
        Reply(200, body=b"<html/>"),
        Reply(200, body=page(1).body.replace(b"7<", b"x<")),
        Reply(200, body=page(1).body.replace(b"Name>", b"N>")),
    ],
)
def test_a_listing_that_makes_no_sense(server: ScriptedServer, make: Make, reply: Reply) -> None:
    server.script(reply)
    with pytest.raises(ReplicaTemporaryError, match="abs://container/db/ltx/0/: cannot list"):
        list(make().list_ltx(0))


def test_a_listing_that_goes_in_circles_ends(server: ScriptedServer, make: Make) -> None:
    server.script(page(1, marker="same"), page(2, marker="same"), page(3, marker="same"))
    with pytest.raises(ReplicaTemporaryError, match="does not go on"):
        list(make().list_ltx(0))


# --- blocks ---------------------------------------------------------------------------------------


def test_a_large_file_goes_up_in_blocks(server: ScriptedServer, make: Make) -> None:
    server.script(Reply(404), *[CREATED] * 4)
    assert put(make(), LARGE, create_only=True).size == len(LARGE)
    look, *blocks, commit = server.asked
    assert look.method == "HEAD"
    assert {query(asked)["comp"] for asked in blocks} == {"block"}
    by_id = {query(asked)["blockid"]: asked.body for asked in blocks}
    order = [part.partition("<")[0] for part in commit.body.decode().split("<Latest>")[1:]]
    assert b"".join(by_id[block_id] for block_id in order) == LARGE
    assert query(commit) == {"comp": "blocklist"}
    assert commit.headers["if-none-match"] == "*"
    assert commit.headers["x-ms-meta-litestreamtimestamp"] == "2023-11-14T22:13:20.12Z"


def test_each_block_is_tried_again(server: ScriptedServer, make: Make) -> None:
    server.script(Reply(503), Reply(drop=True), *[CREATED] * 4)
    put(make(), LARGE)
    assert len(server.asked) == 6


def test_a_block_that_cannot_be_written_ends_it(server: ScriptedServer, make: Make) -> None:
    server.script(*[failure(403, "AuthorizationFailure")] * 3)
    with pytest.raises(ReplicaPermanentError, match="AuthorizationFailure"):
        put(make(), LARGE)
    assert "blocklist" not in str(server.asked)


def test_another_writer_may_win_at_the_end(server: ScriptedServer, make: Make) -> None:
    # It swept our blocks away, or was only just faster.
    for last in (
        [failure(400, "InvalidBlockList"), Reply(200)],
        [failure(409, "BlobAlreadyExists")],
    ):
        server.script(Reply(404), *[CREATED] * 3, *last)
        with pytest.raises(ReplicaExistsError):
            put(make(), LARGE, create_only=True)
    server.script(*[CREATED] * 3, failure(400, "InvalidBlockList"))
    with pytest.raises(ReplicaTemporaryError, match="InvalidBlockList"):
        put(make(), LARGE)


def test_what_is_there_is_not_sent_again(server: ScriptedServer, make: Make) -> None:
    server.script(Reply(200))
    with pytest.raises(ReplicaExistsError):
        put(make(), LARGE, create_only=True)
    assert len(server.asked) == 1


# --- default credentials --------------------------------------------------------------------------


@dataclass
class Token:
    token: str
    expires_on: int


class Tokens:
    """Give one token after the other."""

    def __init__(self, *tokens: Token | Exception) -> None:
        self.left = list(tokens)

    def get_token(self, *scopes: str) -> Token:
        assert scopes == ("https://storage.azure.com/.default",)
        found = self.left.pop(0)
        if isinstance(found, Exception):
            raise found
        return found


FAR = 1 << 40


def test_a_token_is_used_until_it_expires(server: ScriptedServer, make: Make) -> None:
    now = int(FakeClock().now().timestamp())
    tokens = Tokens(Token("T1", now + 60), Token("T2", FAR))
    client = make(key=b"", tokens=cast(TokenSource, tokens))
    server.script(CREATED, CREATED, CREATED)
    for _ in range(3):
        put(client)
    sent = [asked.headers["authorization"] for asked in server.asked]
    assert sent == ["Bearer T1", "Bearer T2", "Bearer T2"]


def test_a_token_that_was_withdrawn_is_renewed_once(server: ScriptedServer, make: Make) -> None:
    tokens = Tokens(*(Token(f"T{n}", FAR) for n in range(1, 4)))
    client = make(key=b"", tokens=cast(TokenSource, tokens))
    refusal = failure(401, "InvalidAuthenticationInfo")
    server.script(refusal, CREATED, refusal, refusal)
    put(client)
    with pytest.raises(ReplicaPermanentError, match="401") as caught:
        put(client)
    assert "T3" not in str(caught.value)


def test_no_identity_is_permanent_and_no_network_temporary(make: Make) -> None:
    from azure.core.exceptions import ClientAuthenticationError, ServiceRequestError

    tokens = Tokens(ClientAuthenticationError("no identity"), ServiceRequestError("no network"))
    client = make(key=b"", tokens=cast(TokenSource, tokens))
    with pytest.raises(ReplicaPermanentError, match="no access token: no identity") as caught:
        put(client)
    assert "Set account-key" in caught.value.hint
    with pytest.raises(ReplicaTemporaryError, match="no access token: no network"):
        put(client)


def test_a_missing_package_is_named_with_its_extra(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "azure.identity", None)
    with pytest.raises(ReplicaPermanentError, match=r"package azure\.identity") as caught:
        put(make(key=b""))
    assert "pip install 'pyrep[abs]'" in caught.value.hint


def test_keys_need_no_package_of_azure() -> None:
    code = (
        "import sys; from pyrep.storage.registry import *; "
        "connect(ReplicaSpec('abs', 'p', options={'bucket': 'b', 'account-name': 'm', "
        "'account-key': 'eA=='})).close(); print(sorted(m for m in sys.modules if 'azure' in m))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
