"""URLs that name a server, perhaps a user there, and a path: sftp, webdav and nats."""

from __future__ import annotations

import posixpath
import re
from dataclasses import dataclass, field
from urllib.parse import unquote

from pyrep.errors import ConfigError

__all__ = ["HostURL", "parse_host_url", "split_bucket", "split_port"]

_URL = re.compile(
    r"(?P<scheme>\w+)://(?:(?P<user>[^/?#]*)@)?(?P<host>[^/?#]*)(?P<path>[^?#]*)(?P<rest>.*)",
    re.DOTALL,
)
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_PORT = re.compile(r"[0-9]{1,5}\Z")
_MAX_PORT = 65535


@dataclass(frozen=True, slots=True)
class HostURL:
    """Hold the parts of a URL: user, password and path decoded, the path cleaned.

    ``host`` is as written, with its port; ``path`` keeps its leading slash and is empty without
    one; ``password`` is None where the URL has no colon after the user.
    """

    scheme: str
    host: str
    path: str
    user: str = field(default="", repr=False)
    password: str | None = field(default=None, repr=False)


def parse_host_url(url: str) -> HostURL:
    """Read a URL.

    :raises ConfigError: it names no server, or has a part that means nothing
    """
    match = _URL.fullmatch(url)
    if match is None:
        raise ConfigError("replica url scheme required")
    scheme = match["scheme"].lower()
    if match["rest"]:
        raise ConfigError(
            f"{scheme} replica url has a query or fragment",
            hint="Write %3F for a question mark and %23 for a hash sign in a path.",
        )
    if not match["host"]:
        raise ConfigError(
            f"host required for {scheme} replica", hint=f"Write it like {scheme}://host/path."
        )
    user, colon, password = (match["user"] or "").partition(":")
    path = _decoded(scheme, match["path"])
    return HostURL(
        scheme,
        match["host"],
        "/" + posixpath.normpath(path).lstrip("/") if path else "",
        _decoded(scheme, user),
        _decoded(scheme, password) if colon else None,
    )


def split_bucket(path: str) -> tuple[str, str]:
    """Return the bucket that a URL's path begins with, and the rest."""
    bucket, _, rest = path.strip("/").partition("/")
    return bucket, rest


def split_port(host: str, default: int) -> tuple[str, int]:
    """Return name (or address) and port of ``host``, ``host:port`` or ``[address]:port``.

    :raises ConfigError: the port is no port
    """
    name, colon, port = host.rpartition(":")
    if not colon or host.endswith("]") or (":" in name and not name.endswith("]")):
        return host.strip("[]"), default
    if not _PORT.match(port) or not 0 < int(port) <= _MAX_PORT or not name:
        raise ConfigError("not a host with a port", field="host", value=host)
    return name.strip("[]"), int(port)


def _decoded(scheme: str, part: str) -> str:
    if _BAD_ESCAPE.search(part):
        raise ConfigError(
            f"{scheme} replica url has a bad escape", hint="Write %25 for a percent sign."
        )
    try:
        decoded = unquote(part, errors="strict")
    except UnicodeDecodeError:
        raise ConfigError(f"{scheme} replica url is not UTF-8") from None
    if "\0" in decoded:
        raise ConfigError(f"{scheme} replica url has a NUL character")
    return decoded
