"""S3 replica URLs in all their forms, and what is known of the providers behind endpoints."""

from __future__ import annotations

import ipaddress
import posixpath
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, unquote

from pyrep.errors import ConfigError

__all__ = ["PARAMETERS", "Preset", "S3URL", "is_local", "parse_s3_url", "preset_for"]

_ARN = re.compile(r"(arn:[^:/]*:s3:([^:/]*):[^:/]*:accesspoint/[^/]+)(?:/(.*))?\Z", re.DOTALL)
# Hosts that name a bucket: pattern, then the endpoint and the path style that follow from it.
_HOSTS: tuple[tuple[re.Pattern[str], str, bool], ...] = (
    (re.compile(r"(?P<bucket>.+)\.s3(?:\.(?P<region>[^.]+))?\.amazonaws\.com"), "", False),
    (
        re.compile(r"(?:(?P<bucket>.+)\.)?(?P<region>[^.]+)\.digitaloceanspaces\.com"),
        "https://{region}.digitaloceanspaces.com",
        False,
    ),
    (
        re.compile(r"(?:(?P<bucket>.+)\.)?s3\.(?P<region>[^.]+)\.backblazeb2\.com"),
        "https://s3.{region}.backblazeb2.com",
        True,
    ),
    (re.compile(r"(?:(?P<bucket>.+)\.)?s3\.filebase\.com"), "https://s3.filebase.com", False),
    (
        re.compile(r"(?:(?P<bucket>.+)\.)?s3\.(?P<region>[^.]+)\.scw\.cloud"),
        "https://s3.{region}.scw.cloud",
        False,
    ),
)
# Each parameter of a URL with the configuration key of the same meaning.
PARAMETERS: Mapping[str, str] = {
    "endpoint": "endpoint",
    "region": "region",
    "forcePathStyle": "force-path-style",
    "skipVerify": "skip-verify",
    "signPayload": "sign-payload",
    "requireContentMD5": "require-content-md5",
    "storageClass": "storage-class",
    "partSize": "part-size",
    "concurrency": "concurrency",
    "sseCustomerAlgorithm": "sse-customer-algorithm",
    "sseCustomerKey": "sse-customer-key",
    "sseCustomerKeyMD5": "sse-customer-key-md5",
    "sseKmsKeyId": "sse-kms-key-id",
}
_KEYS = {**PARAMETERS, **{key: key for key in PARAMETERS.values()}}
_FLAGS = frozenset(("force-path-style", "skip-verify", "sign-payload", "require-content-md5"))
_NUMBERS = frozenset(("part-size", "concurrency"))
_TRUE = frozenset(("true", "1", "t", "yes"))
_MAX_INT64 = (1 << 63) - 1
_LOCAL_SUFFIXES = (".local", ".localhost")


@dataclass(frozen=True, slots=True)
class S3URL:
    """Hold what a URL says: ``path`` is decoded and cleaned, ``options`` are configuration keys.

    ``options`` holds what the host and the parameters stand for: texts, booleans and numbers.
    """

    bucket: str
    path: str
    options: Mapping[str, object] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class Preset:
    """Say what a provider needs where the configuration does not say otherwise."""

    name: str = ""
    path_style: bool = False
    content_md5: bool = True
    concurrency: int | None = None
    headers: tuple[tuple[str, str], ...] = ()


def parse_s3_url(url: str) -> S3URL:
    """Read an ``s3://`` URL.

    :raises ConfigError: it names no bucket, or a part of it is wrong
    """
    rest, _, query = url.partition("://")[2].partition("?")
    options = _parameters(query)
    if "#" in url:
        raise ConfigError(
            "s3 replica url has a fragment", hint="Write %23 for a hash sign in a path."
        )
    if rest.lower().startswith("arn:"):
        return _access_point(rest, options)
    host, _, path = rest.partition("/")
    if "@" in host:
        raise ConfigError(
            "s3 replica url holds a user name or secret",
            hint="Use the keys access-key-id and secret-access-key, or the environment.",
        )
    bucket, implied = _host(unquote(host))
    if not bucket:
        raise ConfigError("bucket required for s3 replica", hint="Write it like s3://bucket/path.")
    return S3URL(bucket, _clean(path), implied | options)


def preset_for(endpoint: str) -> Preset:
    """Return what is known of the provider behind an endpoint."""
    host = endpoint.strip().lower().partition("://")[2] or endpoint.strip().lower()
    host = host.partition("/")[0]
    if not host or "@" in host:
        return Preset()
    name = host.partition(":")[0]
    for suffix, preset in _PROVIDERS:
        if name == suffix or (suffix.startswith(".") and name.endswith(suffix)):
            return preset
    if _is_google(name):
        return Preset("google")  # wants Accept-Encoding unsigned: we never sign it
    return Preset("minio", path_style=True) if ":" in host else Preset()


def is_local(host: str) -> bool:
    """Tell whether a host (with or without a port) is this machine or in a private network."""
    name = host.rpartition("@")[2]
    name = name[1:].partition("]")[0] if name.startswith("[") else name.partition(":")[0]
    if name == "localhost" or name.endswith(_LOCAL_SUFFIXES):
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    return address.is_loopback or address.is_private


_TIGRIS = Preset("tigris", content_md5=False, headers=(("x-tigris-consistent", "true"),))
_PROVIDERS: tuple[tuple[str, Preset], ...] = (
    ("fly.storage.tigris.dev", _TIGRIS),
    ("t3.storage.dev", _TIGRIS),
    (".your-objectstorage.com", Preset("hetzner")),
    (".digitaloceanspaces.com", Preset("digitalocean")),
    (".backblazeb2.com", Preset("backblaze", path_style=True)),
    ("s3.filebase.com", Preset("filebase", path_style=True)),
    (".scw.cloud", Preset("scaleway")),
    (".r2.cloudflarestorage.com", Preset("r2", concurrency=2)),
    (".supabase.co", Preset("supabase", path_style=True)),
)


def _is_google(name: str) -> bool:
    labels = name.split(".")
    return labels[-2:] == ["googleapis", "com"] and "storage" in labels[0].split("-")


def _access_point(rest: str, options: dict[str, object]) -> S3URL:
    match = _ARN.match(rest)
    if match is None:
        raise ConfigError(
            f"invalid s3 access point arn: {rest}",
            hint="Write it like s3://arn:aws:s3:REGION:ACCOUNT:accesspoint/NAME/path.",
        )
    arn, region, path = match.groups()
    return S3URL(arn, _clean(path or ""), {"region": region} | options)


def _host(host: str) -> tuple[str, dict[str, object]]:
    """Return the bucket that a host names, and the options that it stands for."""
    for pattern, endpoint, path_style in _HOSTS:
        match = pattern.fullmatch(host)
        if match is None:
            continue
        found = match.groupdict()
        options: dict[str, object] = {}
        if found.get("region"):
            options["region"] = found["region"]
        if endpoint:
            options["endpoint"] = endpoint.format(region=found.get("region"))
            options["force-path-style"] = path_style or preset_for(endpoint).path_style
        return found["bucket"] or "", options
    if ":" in host and ".com" not in host:
        bucket, _, server = host.partition(".")
        options = {
            "endpoint": f"http://{server}",
            "region": "us-east-1",
            "force-path-style": True,
        }
        return (bucket if server else ""), options
    return host, {}


def _clean(path: str) -> str:
    try:
        text = unquote(path, errors="strict")
    except UnicodeDecodeError:
        raise ConfigError(
            "s3 replica url has a path that is not UTF-8", hint="Object keys are UTF-8 texts."
        ) from None
    return posixpath.normpath("/" + text.strip("/")).lstrip("/")


def _parameters(query: str) -> dict[str, object]:
    options: dict[str, object] = {}
    for name, text in parse_qsl(query, keep_blank_values=True):
        key = _KEYS.get(name)
        if key is None:
            raise ConfigError(
                f'unknown parameter in s3 replica url: "{name}"',
                hint=f"Known parameters are {', '.join(PARAMETERS)}.",
            )
        if text:
            options[key] = _value(name, key, text)
    if "endpoint" in options:
        options["endpoint"] = _with_scheme(str(options["endpoint"]))
        options.setdefault("force-path-style", True)
    return options


def _value(name: str, key: str, text: str) -> object:
    if key in _FLAGS:
        return text.lower() in _TRUE
    if key not in _NUMBERS:
        return text
    if not (text.isascii() and text.isdecimal() and 0 < int(text) <= _MAX_INT64):
        raise ConfigError(
            f'invalid value for query parameter "{name}": "{text}" (must be a positive integer)'
        )
    return int(text)


def _with_scheme(endpoint: str) -> str:
    """Add the scheme that is left out: http for local servers, else https."""
    if "://" in endpoint:
        return endpoint
    return f"{'http' if is_local(endpoint.partition('/')[0]) else 'https'}://{endpoint}"
