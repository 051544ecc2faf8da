"""What an SFTP replica is configured to be."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from dataclasses import dataclass, field

from pyrep.errors import ConfigError
from pyrep.storage.host_url import parse_host_url, split_port
from pyrep.storage.options import text

__all__ = ["SFTPAccount", "SFTPSettings", "sftp_settings"]

_PORT = 22


@dataclass(frozen=True, slots=True)
class SFTPAccount:
    """Name a server and who we are there; tenants that agree in it share one connection.

    ``host_key`` is a key's type and its text in base64, as ``known_hosts`` has them after the
    name.
    """

    host: str
    port: int
    user: str
    password: str = field(default="", repr=False)
    key_path: str = ""
    host_key: str = ""
    insecure_host_key: bool = False

    @property
    def address(self) -> str:
        """Return the server as URLs have it: without the usual port."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORT else f"{host}:{self.port}"

    @property
    def known_host(self) -> str:
        """Return the server as ``known_hosts`` has it."""
        return self.host if self.port == _PORT else f"[{self.host}]:{self.port}"


@dataclass(frozen=True, slots=True)
class SFTPSettings:
    """Hold the settings of one tenant's replica; a relative path is below the login directory."""

    account: SFTPAccount
    path: str = ""
    concurrent_writes: bool = True


def sftp_settings(*, url: str | None, path: str, options: Mapping[str, object]) -> SFTPSettings:
    """Resolve a replica: its own keys win over what its URL says of user and password.

    :raises ConfigError: a key is missing, wrong or contradicts another
    """
    host, user, password = text(options, "host"), text(options, "user"), text(options, "password")
    if url:
        for key, value in (("host", host), ("path", path)):
            if value:
                raise ConfigError(f"cannot specify url & {key} for sftp replica")
        parsed = parse_host_url(url)
        host, path = parsed.host, parsed.path
        user, password = user or parsed.user, password or parsed.password or ""
    for key, value in (("host", host), ("user", user)):
        if not value:
            raise ConfigError(f"{key} required for sftp replica")
    if "\0" in path:
        raise ConfigError("sftp replica path has a NUL character")
    name, port = split_port(host, _PORT)
    account = SFTPAccount(
        host=name,
        port=port,
        user=user,
        password=password,
        key_path=text(options, "key-path"),
        host_key=_host_key(text(options, "host-key")),
        insecure_host_key=bool(options.get("insecure-host-key", False)),
    )
    clean = posixpath.normpath(path) if path else ""
    return SFTPSettings(
        account,
        "" if clean == "." else clean.replace("//", "/", 1) if clean[:2] == "//" else clean,
        bool(options.get("concurrent-writes", True)),
    )


def _host_key(line: str) -> str:
    """Return type and key of an authorised-key line, without its comment."""
    if not line.strip():
        return ""
    parts = line.split()
    if len(parts) < 2 or not parts[1].startswith("AAAA"):
        raise ConfigError(
            "not a public key",
            field="host-key",
            hint="Write it like: ssh-ed25519 AAAAC3NzaC1lZDI1NTE5…, as ssh-keyscan prints it "
            "after the name of the host.",
        )
    return f"{parts[0]} {parts[1]}"
