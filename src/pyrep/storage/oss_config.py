"""What a replica in Alibaba Cloud OSS is configured to be."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from pyrep.errors import ConfigError
from pyrep.storage.object_url import OSS_PARAMETERS, TLS, endpoint_url, parse_object_url, tls_of
from pyrep.storage.options import text
from pyrep.storage.s3_config import S3Account, S3Settings
from pyrep.storage.s3_url import is_local

__all__ = ["OSSAccount", "oss_settings"]

_DEFAULT_REGION = "cn-hangzhou"
_CONCURRENCY = 3
_MIN_PART_SIZE = 100 << 10
_PART_SIZE = 6 << 20
_HOST = re.compile(
    r"(?:(?P<bucket>[^.]+)\.)?(?P<host>oss-(?P<region>.+?)(?:-internal)?\.aliyuncs\.com)"
)


@dataclass(frozen=True, slots=True)
class OSSAccount:
    """Name an endpoint and who we are there; tenants that agree in it share one session."""

    keys: S3Account
    tls: TLS = field(default_factory=TLS)


def oss_settings(
    *,
    url: str | None,
    path: str,
    options: Mapping[str, object],
    environ: Mapping[str, str],
) -> tuple[OSSAccount, S3Settings]:
    """Resolve a replica: its own keys win over its URL, both over the environment.

    The API is that of S3 under other names, and so are the settings.

    :raises ConfigError: a key is missing or wrong
    """
    values = {key: value for key, value in options.items() if value not in (None, "")}
    if url:
        if path:
            raise ConfigError("cannot specify url & path for oss replica")
        parsed = parse_object_url("oss", url, parameters=OSS_PARAMETERS)
        path = parsed.path
        values = _from_host(parsed.host) | dict(parsed.options) | values
        values["bucket"] = _from_host(parsed.host)["bucket"]
    bucket = text(values, "bucket")
    if not bucket:
        raise ConfigError("bucket required for oss replica")
    account = OSSAccount(_keys(values, environ), tls_of(values))
    settings = S3Settings(
        account=account.keys,
        bucket=bucket,
        path=path,
        path_style=is_local(urlsplit(account.keys.endpoint).netloc),
        part_size=_part_size(values),
        concurrency=_number(values, "concurrency") or _CONCURRENCY,
        scheme="oss",
    )
    return account, settings


def _keys(values: Mapping[str, object], environ: Mapping[str, str]) -> S3Account:
    endpoint, region = text(values, "endpoint"), text(values, "region")
    match = _HOST.fullmatch(urlsplit(endpoint if "://" in endpoint else f"//{endpoint}").netloc)
    region = region or (match["region"] if match else _DEFAULT_REGION)
    scheme = "http" if endpoint and is_local(endpoint.partition("/")[0]) else "https"
    key_id, secret = text(values, "access-key-id"), text(values, "secret-access-key")
    token = ""
    if not (key_id and secret):
        key_id, secret, token = (
            environ.get(f"OSS_{name}", "")
            for name in ("ACCESS_KEY_ID", "ACCESS_KEY_SECRET", "SESSION_TOKEN")
        )
    return S3Account(
        endpoint=endpoint_url(endpoint or f"oss-{region}.aliyuncs.com", scheme=scheme),
        region=region,
        access_key_id=key_id,
        secret_access_key=secret,
        session_token=token,
    )


def _from_host(host: str) -> dict[str, object]:
    """Return what the host of a URL stands for: a bucket, or a bucket at an endpoint."""
    match = _HOST.fullmatch(host)
    if match is None or not match["bucket"]:
        return {"bucket": host}
    return {"bucket": match["bucket"], "endpoint": match["host"], "region": match["region"]}


def _part_size(values: Mapping[str, object]) -> int:
    size = _number(values, "part-size") or _PART_SIZE
    if size < _MIN_PART_SIZE:
        raise ConfigError(
            "must be at least 100 KiB, the storage refuses smaller parts",
            field="part-size",
            value=size,
        )
    return size


def _number(values: Mapping[str, object], key: str) -> int:
    value = values.get(key, 0)
    return value if isinstance(value, int) else 0
