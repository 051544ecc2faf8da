"""What an S3 replica is configured to be: every setting resolved, every conflict found."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from pyrep.errors import ConfigError
from pyrep.storage.s3_url import is_local, parse_s3_url, preset_for

__all__ = ["MIN_PART_SIZE", "S3Account", "S3Settings", "s3_settings"]

MIN_PART_SIZE = 5 << 20
_CONCURRENCY = 5
_DEFAULT_REGION = "us-east-1"
_KEY_BYTES = 32
# A virtual host is a name of the DNS, and with dots a certificate would not cover it.
_HOST_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{1,61}[a-z0-9])\Z")
_SSE = "x-amz-server-side-encryption"


@dataclass(frozen=True, slots=True)
class S3Account:
    """Name an endpoint and who we are there; tenants that agree in it share one session.

    ``endpoint`` is empty for AWS, ``region`` is empty if the bucket's is to be asked for.
    Without the two keys, credentials come from the environment.
    """

    endpoint: str = ""
    region: str = ""
    access_key_id: str = field(default="", repr=False)
    secret_access_key: str = field(default="", repr=False)
    session_token: str = field(default="", repr=False)
    skip_verify: bool = False
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class S3Settings:
    """Hold the settings of one tenant's replica.

    ``path`` stands before ``/<level>/<name>`` in every key, as it is.  ``write_headers`` go with
    what creates an object, ``key_headers`` with every request for an object's bytes.
    """

    account: S3Account
    bucket: str
    path: str = ""
    path_style: bool = False
    sign_payload: bool = True
    content_md5: bool = True
    part_size: int = MIN_PART_SIZE
    concurrency: int = _CONCURRENCY
    write_headers: Mapping[str, str] = field(default_factory=dict)
    key_headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    scheme: str = "s3"


def s3_settings(
    *,
    url: str | None,
    path: str,
    options: Mapping[str, object],
    environ: Mapping[str, str],
) -> S3Settings:
    """Resolve a replica: its own keys win over its URL, both over what the provider needs.

    :raises ConfigError: a key is missing, wrong or contradicts another
    """
    values = {key: value for key, value in options.items() if value not in (None, "")}
    if "endpoint" in values:
        values["endpoint"] = _endpoint(_text(values, "endpoint"))
        values.setdefault("force-path-style", True)
    if url:
        if path:
            raise ConfigError("cannot specify url & path for s3 replica")
        parsed = parse_s3_url(url)
        path = parsed.path
        values = dict(parsed.options) | {"bucket": parsed.bucket} | values
    bucket = _text(values, "bucket")
    if not bucket:
        raise ConfigError("bucket required for s3 replica")
    endpoint = _text(values, "endpoint")
    preset = preset_for(endpoint)
    explicit = values.get("force-path-style")
    style = preset.path_style if explicit is None else bool(explicit)
    return S3Settings(
        account=_account(values, bucket, endpoint, preset.headers, environ),
        bucket=bucket,
        path=path,
        path_style=not bucket.startswith("arn:") and (style or not _HOST_NAME.match(bucket)),
        sign_payload=bool(values.get("sign-payload", True)),
        content_md5=bool(values.get("require-content-md5", preset.content_md5)),
        part_size=_part_size(values),
        concurrency=_number(values, "concurrency") or preset.concurrency or _CONCURRENCY,
        write_headers=_write_headers(values),
        key_headers=_key_headers(values, endpoint),
    )


def _text(values: Mapping[str, object], key: str) -> str:
    value = values.get(key, "")
    reveal = getattr(value, "reveal", None)
    return str(reveal() if reveal is not None else value)


def _number(values: Mapping[str, object], key: str) -> int:
    value = values.get(key, 0)
    return value if isinstance(value, int) else 0


def _endpoint(text: str) -> str:
    """Return an endpoint with its scheme, without a trailing slash."""
    endpoint = (text if "://" in text else f"https://{text}").rstrip("/")
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.netloc or parts.query or "@" in text:
        raise ConfigError(
            "not an http(s) address",
            field="endpoint",
            value=None if "@" in text else text,
            hint="Write it like https://s3.example.com or http://127.0.0.1:9000.",
        )
    return endpoint


def _account(
    values: Mapping[str, object],
    bucket: str,
    endpoint: str,
    headers: tuple[tuple[str, str], ...],
    environ: Mapping[str, str],
) -> S3Account:
    region = _text(values, "region")
    if bucket.startswith("arn:"):
        region = bucket.split(":")[3] or region
    key_id, secret = _text(values, "access-key-id"), _text(values, "secret-access-key")
    token = ""
    if not (key_id and secret):
        key_id, secret, token = _from_environment(environ)
    return S3Account(
        endpoint=_endpoint(endpoint) if endpoint else "",
        region=region or (_DEFAULT_REGION if endpoint else ""),
        access_key_id=key_id,
        secret_access_key=secret,
        session_token=token,
        skip_verify=bool(values.get("skip-verify", False)),
        headers=headers,
    )


def _from_environment(environ: Mapping[str, str]) -> tuple[str, str, str]:
    """Return the keys if LITESTREAM_* variables are needed for them, else nothing.

    Each stands in for the AWS variable that is not set; AWS's own are the provider chain's.
    """
    names = ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY")
    if not any(f"LITESTREAM_{name}" in environ and f"AWS_{name}" not in environ for name in names):
        return "", "", ""
    found = [environ.get(f"AWS_{name}", environ.get(f"LITESTREAM_{name}", "")) for name in names]
    return (found[0], found[1], environ.get("AWS_SESSION_TOKEN", "")) if all(found) else ("",) * 3


def _part_size(values: Mapping[str, object]) -> int:
    size = _number(values, "part-size") or MIN_PART_SIZE
    if size < MIN_PART_SIZE:
        raise ConfigError(
            "must be at least 5 MiB, storages refuse smaller parts", field="part-size", value=size
        )
    return size


def _write_headers(values: Mapping[str, object]) -> dict[str, str]:
    headers = {}
    if _text(values, "storage-class"):
        headers["x-amz-storage-class"] = _text(values, "storage-class")
    if _text(values, "sse-kms-key-id"):
        headers[_SSE] = "aws:kms"
        headers[f"{_SSE}-aws-kms-key-id"] = _text(values, "sse-kms-key-id")
    return headers


def _key_headers(values: Mapping[str, object], endpoint: str) -> dict[str, str]:
    """Return the headers of SSE-C: the storage encrypts with a key that we send each time."""
    algorithm = _text(values, "sse-customer-algorithm")
    text = _customer_key(values)
    if not text:
        if algorithm:
            raise ConfigError("needs sse-customer-key", field="sse-customer-algorithm")
        return {}
    if algorithm not in ("", "AES256"):
        raise ConfigError("only AES256 is known", field="sse-customer-algorithm", value=algorithm)
    if _text(values, "sse-kms-key-id"):
        raise ConfigError("cannot specify sse-customer-key & sse-kms-key-id for s3 replica")
    parts = urlsplit(endpoint)
    if parts.scheme == "http" and not is_local(parts.netloc):
        raise ConfigError(
            "would send the key in clear text to an http endpoint",
            field="sse-customer-key",
            hint="Use an https endpoint.",
        )
    digest = base64.b64encode(hashlib.md5(_decoded(text), usedforsecurity=False).digest()).decode()
    given = _text(values, "sse-customer-key-md5")
    if given not in ("", digest):
        raise ConfigError("does not belong to the key", field="sse-customer-key-md5")
    return {
        f"{_SSE}-customer-algorithm": "AES256",
        f"{_SSE}-customer-key": text,
        f"{_SSE}-customer-key-md5": digest,
    }


def _customer_key(values: Mapping[str, object]) -> str:
    path = _text(values, "sse-customer-key-path")
    if not path:
        return _text(values, "sse-customer-key")
    try:
        with open(path, encoding="ascii") as file:
            return file.read().strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise ConfigError(
            f"cannot read the key: {reason}", field="sse-customer-key-path", value=path
        ) from error


def _decoded(text: str) -> bytes:
    try:
        key = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if len(key) != _KEY_BYTES:
        raise ConfigError(
            "must be 32 bytes in base64",
            field="sse-customer-key",
            hint="Make one with: openssl rand -base64 32",
        )
    return key
