"""What a NATS replica is configured to be."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from pyrep.errors import ConfigError
from pyrep.storage.host_url import parse_host_url, split_bucket
from pyrep.storage.object_url import TLS
from pyrep.storage.options import seconds, text, texts

__all__ = ["NATSAccount", "NATSSettings", "nats_settings"]

_DEFAULT_HOST = "127.0.0.1:4222"
# It is part of a subject, in base64; for a line above 4096 bytes a server ends the connection, and
# that is the one of all tenants.
_MAX_PATH = 2800
_BUCKET = re.compile(r"[A-Za-z0-9_-]+\Z")


@dataclass(frozen=True, slots=True)
class NATSAccount:
    """Name servers and who we are there; tenants that agree in it share one connection.

    ``seed`` alone is a key of our own, with ``jwt`` it is that of the token's user.
    """

    servers: tuple[str, ...]
    user: str = field(default="", repr=False)
    password: str = field(default="", repr=False)
    token: str = field(default="", repr=False)
    jwt: str = field(default="", repr=False)
    seed: str = field(default="", repr=False)
    creds: str = ""
    tls: TLS | None = None
    timeout: float = 10.0
    reconnect_wait: float = 2.0
    max_reconnects: int = -1


@dataclass(frozen=True, slots=True)
class NATSSettings:
    """Hold the settings of one tenant's replica; ``path`` is empty for a single database."""

    account: NATSAccount
    bucket: str
    path: str = ""


def nats_settings(*, url: str | None, path: str, options: Mapping[str, object]) -> NATSSettings:
    """Resolve a replica: a URL's bucket wins over the key, the keys win over its user.

    :raises ConfigError: a key is missing, wrong or contradicts another
    """
    host, bucket = _DEFAULT_HOST, text(options, "bucket")
    user, password, token = (text(options, key) for key in ("username", "password", "token"))
    if url:
        parsed = parse_host_url(url)
        named, below = split_bucket(parsed.path)
        host, bucket, path = parsed.host, named or bucket, below or path
        if parsed.password is None:
            token = token or parsed.user
        else:
            user, password = user or parsed.user, password or parsed.password
    if not bucket:
        raise ConfigError(
            "bucket required for nats replica", hint="Write it like nats://host:4222/bucket."
        )
    if not _BUCKET.match(bucket):
        raise ConfigError(
            "a bucket's name has letters, digits, '-' and '_' only", field="bucket", value=bucket
        )
    path = path.strip("/")
    if len(path.encode()) > _MAX_PATH:
        raise ConfigError(
            f"path of {len(path.encode())} bytes is longer than {_MAX_PATH}, which nats can take: "
            f"{path[:40]}…",
            hint="Use shorter names of folders and databases, or a shorter path.",
        )
    tls = _tls(options)
    account = NATSAccount(
        servers=tuple(_server(part, tls is not None) for part in host.split(",") if part),
        creds=text(options, "creds"),
        tls=tls,
        timeout=seconds(options, "timeout", 10.0) or 10.0,
        reconnect_wait=seconds(options, "reconnect-wait", 2.0),
        max_reconnects=_number(options, "max-reconnects", -1),
        **_credentials(options, user, password, token),
    )
    return NATSSettings(account, bucket, path)


def _number(options: Mapping[str, object], key: str, default: int) -> int:
    value = options.get(key)
    return value if isinstance(value, int) else default


def _server(host: str, tls: bool) -> str:
    return f"{'tls' if tls else 'nats'}://{host}"


def _credentials(
    options: Mapping[str, object], user: str, password: str, token: str
) -> dict[str, str]:
    """Return what is used of several: JWT, creds file, key, user, token, in this order."""
    jwt, seed, nkey = (text(options, key) for key in ("jwt", "seed", "nkey"))
    if jwt and not seed:
        raise ConfigError("needs seed", field="jwt")
    if jwt:
        return {"jwt": jwt, "seed": seed}
    if text(options, "creds"):
        return {}
    if nkey or seed:
        key = seed or nkey
        if not key.startswith("SU"):
            raise ConfigError(
                "is a public key: the seed is needed",
                field="nkey",
                hint="Set seed to the user's seed, which begins with SU.",
            )
        return {"seed": key}
    if user:
        return {"user": user, "password": password}
    return {"token": token} if token else {}


def _tls(options: Mapping[str, object]) -> TLS | None:
    roots, cert, key = (
        texts(options, "root-cas"),
        text(options, "client-cert"),
        text(options, "client-key"),
    )
    if bool(cert) != bool(key):
        raise ConfigError("client-cert and client-key need each other for nats replica")
    if not (options.get("tls") or roots or cert):
        return None
    return TLS(roots, cert, key)
