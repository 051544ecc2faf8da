"""From URLs, keys and variables to the settings of an S3 replica."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

import pytest

from pyrep.errors import ConfigError
from pyrep.storage.registry import ReplicaSpec, connect, parse_url
from pyrep.storage.s3_config import MIN_PART_SIZE, S3Settings, s3_settings
from pyrep.storage.s3_url import is_local, parse_s3_url, preset_for

ARN = "arn:aws:s3:eu-west-1:123456789012:accesspoint/name"
KEY = base64.b64encode(bytes(range(32))).decode()


def settings(url: str | None = None, path: str = "", **keys: object) -> S3Settings:
    """Return the settings of a replica; keys with underscores for hyphens."""
    options = {key.replace("_", "-"): value for key, value in keys.items()}
    return s3_settings(url=url, path=path, options=options, environ={})


def place(found: S3Settings) -> tuple[str, str, str, str, bool]:
    account = found.account
    return found.bucket, found.path, account.region, account.endpoint, found.path_style


# (url, bucket, path, region, endpoint, path style)
URLS = [
    ("s3://bucket", "bucket", "", "", "", False),
    ("s3://bucket/", "bucket", "", "", "", False),
    ("s3://bucket/a//b/../c/", "bucket", "a/c", "", "", False),
    ("s3://bucket/a%20b/%23%3F%25+", "bucket", "a b/#?%+", "", "", False),
    ("s3://my.bucket/p", "my.bucket", "p", "", "", True),
    ("s3://bucket/p?region=eu-west-1", "bucket", "p", "eu-west-1", "", False),
    ("s3://bucket.s3.amazonaws.com/p", "bucket", "p", "", "", False),
    ("s3://bucket.s3.eu-west-1.amazonaws.com/p", "bucket", "p", "eu-west-1", "", False),
    (
        "s3://bucket.nyc3.digitaloceanspaces.com/p",
        *("bucket", "p", "nyc3", "https://nyc3.digitaloceanspaces.com", False),
    ),
    (
        "s3://bucket.s3.us-west-000.backblazeb2.com/p",
        *("bucket", "p", "us-west-000", "https://s3.us-west-000.backblazeb2.com", True),
    ),
    ("s3://bucket.s3.filebase.com/p", "bucket", "p", "us-east-1", "https://s3.filebase.com", True),
    (
        "s3://bucket.s3.fr-par.scw.cloud/p",
        *("bucket", "p", "fr-par", "https://s3.fr-par.scw.cloud", False),
    ),
    (
        "s3://bucket.localhost:9000/p",
        *("bucket", "p", "us-east-1", "http://localhost:9000", True),
    ),
    (
        "s3://bucket.minio.lan:9000/p",
        *("bucket", "p", "us-east-1", "http://minio.lan:9000", True),
    ),
    (f"s3://{ARN}", ARN, "", "eu-west-1", "", False),
    (f"s3://{ARN}/key/below", ARN, "key/below", "eu-west-1", "", False),
    (
        "s3://bucket/p?endpoint=localhost:9000",
        *("bucket", "p", "us-east-1", "http://localhost:9000", True),
    ),
    (
        "s3://bucket/p?endpoint=192.168.1.5:9000&region=r",
        *("bucket", "p", "r", "http://192.168.1.5:9000", True),
    ),
    (
        "s3://bucket/p?endpoint=https://x.example.com/base/",
        *("bucket", "p", "us-east-1", "https://x.example.com/base", True),
    ),
    (
        "s3://bucket/p?endpoint=s3.example.com&forcePathStyle=false",
        *("bucket", "p", "us-east-1", "https://s3.example.com", False),
    ),
    (
        "s3://bucket/p?endpoint=s3.example.com&force-path-style=no",
        *("bucket", "p", "us-east-1", "https://s3.example.com", False),
    ),
]


@pytest.mark.parametrize(
    ("url", "bucket", "path", "region", "endpoint", "path_style"), URLS, ids=[u[0] for u in URLS]
)
def test_urls_name_a_place(
    url: str, bucket: str, path: str, region: str, endpoint: str, path_style: bool
) -> None:
    assert place(settings(url)) == (bucket, path, region, endpoint, path_style)
    assert parse_url(url).path == path


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("s3://", "bucket required for s3 replica"),
        ("s3:///path", "bucket required for s3 replica"),
        ("s3://localhost:9000/p", "bucket required for s3 replica"),
        ("s3://s3.filebase.com/p", "bucket required for s3 replica"),
        ("s3://nyc3.digitaloceanspaces.com/p", "bucket required for s3 replica"),
        ("s3://arn:aws:s3:r:1:bucket/x", "invalid s3 access point arn: arn:aws:s3:r:1:bucket/x"),
        ("s3://arn:aws:s3:r:1:accesspoint/", "invalid s3 access point arn"),
        ("s3://user:geheim@bucket/p", "holds a user name or secret"),
        ("s3://bucket/p#x", "has a fragment"),
        ("s3://bucket/%ff", "not UTF-8"),
        ("s3://bucket/p?regon=x", 'unknown parameter in s3 replica url: "regon"'),
        ("s3://b/p?partSize=5MB", 'invalid value for query parameter "partSize": "5MB" (must be'),
        ("s3://b/p?concurrency=0", 'invalid value for query parameter "concurrency": "0"'),
        ("s3://b/p?concurrency=-1", 'invalid value for query parameter "concurrency": "-1"'),
    ],
)
def test_bad_urls_are_errors(url: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_s3_url(url)
    assert message in str(caught.value)
    assert "geheim" not in str(caught.value) + caught.value.hint


def test_every_parameter_is_taken() -> None:
    found = settings(
        "s3://b/p?endpoint=h.example.com&region=r&forcePathStyle=1&skipVerify=t&signPayload=false"
        f"&requireContentMD5=no&storageClass=GLACIER_IR&partSize=6291456&concurrency=7"
        f"&sseCustomerAlgorithm=AES256&sseCustomerKey={KEY.replace('=', '%3D')}"
    )
    assert place(found) == ("b", "p", "r", "https://h.example.com", True)
    assert found.account.skip_verify
    assert not found.sign_payload
    assert not found.content_md5
    assert (found.part_size, found.concurrency) == (6 << 20, 7)
    assert found.write_headers == {"x-amz-storage-class": "GLACIER_IR"}
    assert found.key_headers["x-amz-server-side-encryption-customer-algorithm"] == "AES256"


def test_a_replicas_own_keys_win_over_its_url() -> None:
    found = settings(
        "s3://bucket/p?endpoint=a.example.com&region=a&storageClass=A&concurrency=2&skipVerify=true",
        endpoint="https://b.example.com",
        region="b",
        storage_class="B",
        concurrency=3,
        skip_verify=False,
        force_path_style=False,
    )
    assert place(found) == ("bucket", "p", "b", "https://b.example.com", False)
    assert found.write_headers == {"x-amz-storage-class": "B"}
    assert (found.concurrency, found.account.skip_verify) == (3, False)


# (endpoint, provider, path style, content-md5, concurrency)
PROVIDERS = [
    ("https://fly.storage.tigris.dev", "tigris", False, False, None),
    ("https://t3.storage.dev", "tigris", False, False, None),
    ("fsn1.your-objectstorage.com", "hetzner", False, True, None),
    ("nyc3.digitaloceanspaces.com", "digitalocean", False, True, None),
    ("https://s3.us-west-000.backblazeb2.com", "backblaze", True, True, None),
    ("HTTPS://S3.Filebase.com ", "filebase", True, True, None),
    ("s3.fr-par.scw.cloud", "scaleway", False, True, None),
    ("https://account.r2.cloudflarestorage.com", "r2", False, True, 2),
    ("https://ref.supabase.co/storage/v1/s3", "supabase", True, True, None),
    ("https://storage.googleapis.com", "google", False, True, None),
    ("https://eu-storage.googleapis.com", "google", False, True, None),
    ("https://bigquery.googleapis.com", "", False, True, None),
    ("http://127.0.0.1:9000", "minio", True, True, None),
    ("https://s3.example.com:443", "minio", True, True, None),
    ("https://user@t3.storage.dev", "", False, True, None),
    ("https://not-t3.storage.dev", "", False, True, None),
    ("https://s3.example.com", "", False, True, None),
    ("", "", False, True, None),
]


@pytest.mark.parametrize(
    ("endpoint", "name", "path_style", "content_md5", "concurrency"), PROVIDERS
)
def test_providers_are_known_by_their_endpoint(
    endpoint: str, name: str, path_style: bool, content_md5: bool, concurrency: int | None
) -> None:
    preset = preset_for(endpoint)
    assert preset.name == name
    assert preset.path_style is path_style
    assert preset.content_md5 is content_md5
    assert preset.concurrency == concurrency
    assert dict(preset.headers) == ({"x-tigris-consistent": "true"} if name == "tigris" else {})


def test_what_a_provider_needs_can_be_overruled() -> None:
    r2 = "https://a.r2.cloudflarestorage.com"
    assert settings(bucket="b", endpoint=r2).concurrency == 2
    assert settings(bucket="b", endpoint=r2, concurrency=9).concurrency == 9
    tigris = settings(bucket="b", endpoint="https://t3.storage.dev", require_content_md5=True)
    assert tigris.content_md5
    assert tigris.account.headers == (("x-tigris-consistent", "true"),)


def test_an_endpoint_means_path_style_unless_said_otherwise() -> None:
    assert settings(bucket="b", endpoint="s3.example.com").path_style
    assert not settings(bucket="b00", endpoint="s3.example.com", force_path_style=False).path_style
    assert not settings(bucket="b00").path_style
    assert settings(bucket="b00", force_path_style=True).path_style
    assert settings(bucket="Under_score").path_style


def test_defaults_and_paths_are_litestreams() -> None:
    found = settings(bucket="bucket", path="/odd//path/")
    assert place(found) == ("bucket", "/odd//path/", "", "", False)
    assert (found.part_size, found.concurrency) == (MIN_PART_SIZE, 5)
    assert found.sign_payload
    assert found.content_md5
    assert settings(bucket="b", endpoint="s3.example.com").account.region == "us-east-1"


@pytest.mark.parametrize(
    ("host", "local"),
    [
        ("localhost:9000", True),
        ("127.0.0.1", True),
        ("[::1]:9000", True),
        ("192.168.1.1:80", True),
        ("10.0.0.1", True),
        ("172.31.0.1", True),
        ("172.32.0.1", False),
        ("nas.local", True),
        ("localhost.example.com", False),
        ("8.8.8.8", False),
    ],
)
def test_local_hosts(host: str, local: bool) -> None:
    assert is_local(host) is local


def test_sse_c_sends_the_key_with_its_digest(tmp_path: Path) -> None:
    digest = base64.b64encode(hashlib.md5(bytes(range(32))).digest()).decode()
    wanted = {
        "x-amz-server-side-encryption-customer-algorithm": "AES256",
        "x-amz-server-side-encryption-customer-key": KEY,
        "x-amz-server-side-encryption-customer-key-md5": digest,
    }
    assert settings(bucket="b", sse_customer_key=KEY).key_headers == wanted
    file = tmp_path / "key"
    file.write_text(f"\n {KEY}\n")
    found = settings(bucket="b", sse_customer_key="ignored", sse_customer_key_path=str(file))
    assert found.key_headers == wanted
    assert KEY not in repr(found)


def test_kms_names_the_key() -> None:
    assert settings(bucket="b", sse_kms_key_id="k").write_headers == {
        "x-amz-server-side-encryption": "aws:kms",
        "x-amz-server-side-encryption-aws-kms-key-id": "k",
    }


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({}, "bucket required for s3 replica"),
        ({"bucket": "b", "endpoint": "ftp://x"}, "endpoint: not an http(s) address (got ftp://x)"),
        ({"bucket": "b", "endpoint": "http://u:geheim@x"}, "endpoint: not an http(s) address"),
        ({"bucket": "b", "part_size": 5 << 19}, "part-size: must be at least 5 MiB"),
        ({"bucket": "b", "sse_customer_key": "short"}, "must be 32 bytes in base64"),
        ({"bucket": "b", "sse_customer_key": "!" + KEY}, "must be 32 bytes in base64"),
        ({"bucket": "b", "sse_customer_algorithm": "AES256"}, "needs sse-customer-key"),
        (
            {"bucket": "b", "sse_customer_key": KEY, "sse_customer_algorithm": "DES"},
            "only AES256 is known",
        ),
        (
            {"bucket": "b", "sse_customer_key": KEY, "sse_kms_key_id": "k"},
            "cannot specify sse-customer-key & sse-kms-key-id",
        ),
        (
            {"bucket": "b", "sse_customer_key": KEY, "endpoint": "http://s3.example.com"},
            "would send the key in clear text",
        ),
        ({"bucket": "b", "sse_customer_key_path": "/no/such"}, "cannot read the key: No such file"),
    ],
)
def test_bad_settings_are_errors(keys: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        settings(**keys)
    assert message in str(caught.value)
    assert "geheim" not in str(caught.value)
    assert KEY not in str(caught.value)


def test_a_customer_key_may_go_to_a_local_http_endpoint() -> None:
    assert settings(bucket="b", sse_customer_key=KEY, endpoint="http://10.0.0.1:9000").key_headers


ENV = {"LITESTREAM_ACCESS_KEY_ID": "l-id", "LITESTREAM_SECRET_ACCESS_KEY": "l-secret"}
AWS = {"AWS_ACCESS_KEY_ID": "a-id", "AWS_SECRET_ACCESS_KEY": "a-secret"}


@pytest.mark.parametrize(
    ("environ", "keys"),
    [
        ({}, ("", "")),
        (AWS, ("", "")),  # botocore's chain finds these
        (ENV, ("l-id", "l-secret")),
        (ENV | AWS, ("", "")),
        (ENV | {"AWS_ACCESS_KEY_ID": "a-id"}, ("a-id", "l-secret")),
        (ENV | {"AWS_ACCESS_KEY_ID": ""}, ("", "")),
        ({"LITESTREAM_ACCESS_KEY_ID": "l-id"}, ("", "")),
    ],
)
def test_litestreams_variables_stand_in_for_aws(
    environ: dict[str, str], keys: tuple[str, str]
) -> None:
    found = s3_settings(url="s3://b", path="", options={}, environ=environ).account
    assert (found.access_key_id, found.secret_access_key) == keys
    assert "secret" not in repr(found).replace("secret_access_key", "")


def test_configured_keys_win_over_variables() -> None:
    options = {"access-key-id": "c-id", "secret-access-key": "c-secret"}
    found = s3_settings(url="s3://b", path="", options=options, environ=ENV).account
    assert (found.access_key_id, found.secret_access_key) == ("c-id", "c-secret")


def test_connecting_needs_no_network_and_shows_no_secret() -> None:
    options = {"bucket": "b", "access-key-id": "id", "secret-access-key": "geheim"}
    client = connect(ReplicaSpec("s3", "team a/db", options=options))
    assert (client.scheme, client.url) == ("s3", "s3://b/team a/db")
    client.close()
