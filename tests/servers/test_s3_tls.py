"""A bucket over TLS: who is trusted, and what protects objects with keys of our own."""

from __future__ import annotations

import base64
import hashlib
import io
import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import urllib3

from fixtures.certificates import make_certificates
from fixtures.http_proxy import HTTPProxy
from fixtures.ltxbytes import build_ltx
from fixtures.servers import S3Server, moto
from pyrep.errors import ReplicaPermanentError
from pyrep.ids import TXID
from pyrep.ltxfile import FileInfo
from pyrep.storage.base import ReplicaClient
from pyrep.storage.registry import ReplicaSpec, connect

pytestmark = pytest.mark.s3

DATA = build_ltx(1, 1)
BUCKET = "tls-bucket"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tls")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[S3Server]:
    """Return a server with a certificate that nobody knows, and a bucket."""
    make_certificates(folder)
    with moto(folder, certificate=folder / "server.pem") as running:
        with urllib3.PoolManager(ca_certs=str(folder / "ca.pem")) as http:
            made = http.request("PUT", f"{running.endpoint}/{BUCKET}")
        assert made.status == 200
        yield running


def put(client: ReplicaClient) -> FileInfo:
    return client.write_ltx(0, TXID(1), TXID(1), io.BytesIO(DATA))


def there_and_back(spec: ReplicaSpec) -> None:
    with closing(connect(spec)) as client:
        info = put(client)
        assert list(client.list_ltx(0, exact_times=True)) == [info]
        with client.open_ltx(info) as stream:
            assert stream.read() == DATA


def test_a_certificate_of_our_own_authority_is_trusted(
    server: S3Server, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_CA_BUNDLE", str(folder / "ca.pem"))
    there_and_back(server.spec(BUCKET, "trusted"))


def test_without_verification_any_certificate_will_do(server: S3Server) -> None:
    there_and_back(server.spec(BUCKET, "skipped", skip_verify=True))


def test_an_unknown_certificate_is_refused_and_the_error_says_what_helps(server: S3Server) -> None:
    with (
        closing(connect(server.spec(BUCKET, "refused"))) as client,
        pytest.raises(ReplicaPermanentError, match="CERTIFICATE_VERIFY_FAILED") as caught,
    ):
        put(client)
    assert "AWS_CA_BUNDLE" in caught.value.hint
    assert "skip-verify" in caught.value.hint


@pytest.fixture
def proxy(moto_server: S3Server) -> Iterator[HTTPProxy]:
    with HTTPProxy(int(moto_server.endpoint.rpartition(":")[2])) as running:
        yield running


def headers(proxy: HTTPProxy, kind: str) -> dict[str, str]:
    """Return the headers about encryption of the last request of a kind."""
    request = [request for request in proxy.seen if request.kind == kind][-1]
    prefix = "x-amz-server-side-encryption"
    return {n.removeprefix(prefix): v for n, v in request.headers.items() if n.startswith(prefix)}


def through(proxy: HTTPProxy, server: S3Server, **keys: str) -> ReplicaSpec:
    spec = server.spec(server.make_bucket(), "t", **keys)
    options = {**spec.options, "endpoint": f"http://127.0.0.1:{proxy.port}"}
    return ReplicaSpec(spec.type, spec.path, options=options)


def test_a_key_of_the_customer_goes_with_every_request_for_bytes(
    proxy: HTTPProxy, moto_server: S3Server
) -> None:
    key = os.urandom(32)
    text = base64.b64encode(key).decode()
    there_and_back(through(proxy, moto_server, sse_customer_key=text))
    digest = base64.b64encode(hashlib.md5(key, usedforsecurity=False).digest()).decode()
    sent = {
        "-customer-algorithm": "AES256",
        "-customer-key": text,
        "-customer-key-md5": digest,
    }
    for kind in ("PUT", "GET", "HEAD"):
        assert headers(proxy, kind) == sent, kind
    assert headers(proxy, "LIST") == {}


def test_a_key_of_the_provider_is_named_in_what_writes(
    proxy: HTTPProxy, moto_server: S3Server
) -> None:
    there_and_back(through(proxy, moto_server, sse_kms_key_id="arn:aws:kms:k"))
    assert headers(proxy, "PUT") == {"": "aws:kms", "-aws-kms-key-id": "arn:aws:kms:k"}
    for kind in ("GET", "HEAD", "LIST"):
        assert headers(proxy, kind) == {}, kind
