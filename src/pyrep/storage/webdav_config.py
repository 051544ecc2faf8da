"""What a WebDAV replica is configured to be."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import quote, urlsplit

from pyrep.errors import ConfigError
from pyrep.storage.host_url import parse_host_url
from pyrep.storage.object_url import TLS, tls_of
from pyrep.storage.options import text

__all__ = ["WebDAVAccount", "WebDAVSettings", "webdav_settings"]


@dataclass(frozen=True, slots=True)
class WebDAVAccount:
    """Name a server and who we are there; tenants that agree in it share connections.

    ``root`` is the encoded path on the server below which all paths are, without a slash at
    its end.
    """

    origin: str
    root: str = ""
    user: str = field(default="", repr=False)
    password: str = field(default="", repr=False)
    tls: TLS = field(default_factory=TLS)


@dataclass(frozen=True, slots=True)
class WebDAVSettings:
    """Hold the settings of one tenant's replica; ``path`` has no slash at either end."""

    account: WebDAVAccount
    path: str = ""


def webdav_settings(*, url: str | None, path: str, options: Mapping[str, object]) -> WebDAVSettings:
    """Resolve a replica: the keys for user and password win over those in an address.

    :raises ConfigError: a key is missing, wrong or contradicts another
    """
    address = text(options, "webdav-url")
    if url:
        for key, value in (("webdav-url", address), ("path", path)):
            if value:
                raise ConfigError(f"cannot specify url & {key} for webdav replica")
        parsed = parse_host_url(url)
        origin, root, path = f"{_http(parsed.scheme)}://{parsed.host}", "", parsed.path
        user, password = parsed.user, parsed.password or ""
    else:
        origin, root, user, password = _address(address)
    if "\0" in path:
        raise ConfigError("webdav replica path has a NUL character")
    account = WebDAVAccount(
        origin=origin,
        root=root,
        user=text(options, "webdav-username") or user,
        password=text(options, "webdav-password") or password,
        tls=tls_of(options),
    )
    clean = posixpath.normpath(path).strip("/") if path else ""
    return WebDAVSettings(account, "" if clean == "." else clean)


def _http(scheme: str) -> str:
    return {"webdav": "http", "webdavs": "https"}.get(scheme, scheme)


def _address(address: str) -> tuple[str, str, str, str]:
    """Return origin, root, user and password of ``webdav-url``."""
    if not address:
        raise ConfigError("webdav-url required for webdav replica")
    parts = urlsplit(address)
    if _http(parts.scheme) not in ("http", "https") or not parts.hostname:
        raise ConfigError(
            "not an http(s) address",
            field="webdav-url",
            hint="Write it like https://dav.example.com/remote.php/dav/files/user.",
        )
    if parts.query or parts.fragment:
        raise ConfigError("has a query or fragment", field="webdav-url")
    parsed = parse_host_url(address)
    root = quote(parsed.path.rstrip("/"), safe="/-_.~")
    return (
        f"{_http(parsed.scheme)}://{parsed.host}",
        root,
        parsed.user,
        parsed.password or "",
    )
