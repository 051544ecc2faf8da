"""What the URLs and keys of replicas in object stores have in common."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, unquote, urlsplit

from pyrep.errors import ConfigError
from pyrep.storage.options import text, texts

__all__ = [
    "ABS_PARAMETERS",
    "GCS_PARAMETERS",
    "OSS_PARAMETERS",
    "TLS",
    "ObjectURL",
    "endpoint_url",
    "parse_object_url",
    "tls_of",
]

ABS_PARAMETERS = ("endpoint",)
GCS_PARAMETERS = ("endpoint",)
OSS_PARAMETERS = ("endpoint", "region")


@dataclass(frozen=True, slots=True)
class TLS:
    """Say whom to trust (files of certificates; none: the system's) and who we are."""

    root_cas: tuple[str, ...] = ()
    client_cert: str = ""
    client_key: str = ""
    skip_verify: bool = False


@dataclass(frozen=True, slots=True)
class ObjectURL:
    """Hold the parts of ``scheme://[user@]host/path?parameters``, decoded; the path is cleaned."""

    host: str
    path: str
    user: str = ""
    options: Mapping[str, object] = field(default_factory=dict)


def parse_object_url(
    kind: str, url: str, *, parameters: tuple[str, ...] = (), user_key: str = ""
) -> ObjectURL:
    """Read the URL of a replica; ``user_key`` names what may stand before an ``@``.

    :raises ConfigError: it names no bucket, or a part of it is wrong
    """
    rest, _, query = url.partition("://")[2].partition("?")
    if "#" in url:
        raise ConfigError(
            f"{kind} replica url has a fragment", hint="Write %23 for a hash sign in a path."
        )
    authority, _, path = rest.partition("/")
    user, at, host = authority.rpartition("@")
    if at and (not user_key or ":" in user):
        raise ConfigError(
            f"{kind} replica url holds a user name or secret",
            hint="Use the configuration's keys or the environment for credentials.",
        )
    if not host:
        raise ConfigError(
            f"bucket required for {kind} replica", hint=f"Write it like {kind}://bucket/path."
        )
    options: dict[str, object] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name not in parameters:
            known = f"Known parameters are {', '.join(parameters)}." if parameters else ""
            raise ConfigError(f'unknown parameter in {kind} replica url: "{name}"', hint=known)
        if value:
            options[name] = value
    return ObjectURL(unquote(host), _clean(kind, path), unquote(user), options)


def tls_of(values: Mapping[str, object]) -> TLS:
    """Return what the keys say about certificates."""
    return TLS(
        root_cas=texts(values, "root-cas"),
        client_cert=text(values, "client-cert"),
        client_key=text(values, "client-key"),
        skip_verify=bool(values.get("skip-verify", False)),
    )


def endpoint_url(address: str, *, field: str = "endpoint", scheme: str = "https") -> str:
    """Return an address with its scheme, without a trailing slash.

    :raises ConfigError: it is none, or holds a user name or parameters
    """
    endpoint = (address if "://" in address else f"{scheme}://{address}").rstrip("/")
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.netloc or parts.query or "@" in address:
        raise ConfigError(
            "not an http(s) address",
            field=field,
            value=None if "@" in address or parts.query else address,
            hint="Write it like https://storage.example.com or http://127.0.0.1:9000.",
        )
    return endpoint


def _clean(kind: str, path: str) -> str:
    try:
        decoded = unquote(path, errors="strict")
    except UnicodeDecodeError:
        raise ConfigError(
            f"{kind} replica url has a path that is not UTF-8", hint="Object names are UTF-8 texts."
        ) from None
    return posixpath.normpath("/" + decoded.strip("/")).lstrip("/")
