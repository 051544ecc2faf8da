"""What a replica in Azure Blob Storage is configured to be."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from pyrep.errors import ConfigError
from pyrep.storage.object_url import ABS_PARAMETERS, TLS, endpoint_url, parse_object_url, tls_of
from pyrep.storage.options import text

__all__ = ["ABSAccount", "ABSSettings", "abs_settings"]

_SUFFIX = "core.windows.net"
# The account of Microsoft's emulators, published with them.
_EMULATOR = "devstoreaccount1"
_EMULATOR_KEY = (
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
)
_EMULATOR_ENDPOINT = f"http://127.0.0.1:10000/{_EMULATOR}"


@dataclass(frozen=True, slots=True)
class ABSAccount:
    """Name an endpoint and who we are there; tenants that agree in it share one session.

    A SAS token wins over a key; with neither, Azure's default credentials are used.
    """

    endpoint: str
    name: str
    key: bytes = field(default=b"", repr=False)
    sas_token: str = field(default="", repr=False)
    tls: TLS = field(default_factory=TLS)


@dataclass(frozen=True, slots=True)
class ABSSettings:
    """Hold the settings of one tenant's replica."""

    account: ABSAccount
    container: str
    path: str = ""


def abs_settings(
    *,
    url: str | None,
    path: str,
    options: Mapping[str, object],
    environ: Mapping[str, str],
) -> ABSSettings:
    """Resolve a replica: its own keys win over its URL, both over a connection string.

    :raises ConfigError: a key is missing, wrong or contradicts another
    """
    values = {key: value for key, value in options.items() if value not in (None, "")}
    if url:
        if path:
            raise ConfigError("cannot specify url & path for abs replica")
        parsed = parse_object_url("abs", url, parameters=ABS_PARAMETERS, user_key="account-name")
        path = parsed.path
        named = {"account-name": parsed.user} if parsed.user else {}
        values = dict(parsed.options) | named | values | {"bucket": parsed.host}
    container = text(values, "bucket")
    if not container:
        raise ConfigError("bucket required for abs replica")
    if "\\" in path:
        raise ConfigError(
            f"abs replica path has a backslash: {path!r}",
            hint="The storage takes it for a slash: rename the database, or change the path.",
        )
    return ABSSettings(_account(values, environ), container, path)


def _account(values: Mapping[str, object], environ: Mapping[str, str]) -> ABSAccount:
    """Resolve endpoint and credentials; what is not configured is the connection string's.

    The environment comes last, as it is the same for all accounts.
    """
    from_string = _connection_string(
        text(values, "connection-string") or environ.get("AZURE_STORAGE_CONNECTION_STRING", "")
    )
    found = {**from_string, **{key: text(values, key) for key in values if text(values, key)}}
    if "account-key" in values and "sas-token" not in values:
        found.pop("sas-token", None)  # the string's
    name = found.get("account-name", "")
    endpoint = found.get("endpoint", "")
    if not name and endpoint:
        name = _name_in(endpoint)
    if not name:
        raise ConfigError(
            "account-name required for abs replica",
            hint="Set the key, write abs://ACCOUNT@CONTAINER/PATH, or give a connection-string.",
        )
    sas, key = found.get("sas-token", ""), found.get("account-key", "")
    if not sas and not key:
        sas = environ.get("LITESTREAM_AZURE_SAS_TOKEN", "")
        key = environ.get("LITESTREAM_AZURE_ACCOUNT_KEY", "")
    endpoint = endpoint_url(endpoint or f"https://{name}.blob.{_SUFFIX}")
    if not sas and not key and endpoint.startswith("http://"):
        raise ConfigError(
            "would send an access token in clear text over http",
            field="endpoint",
            hint="Use an https endpoint, or set account-key or sas-token.",
        )
    return ABSAccount(
        endpoint=endpoint,
        name=name,
        key=b"" if sas else _decoded(key),
        sas_token=sas.removeprefix("?"),
        tls=tls_of(values),
    )


def _connection_string(string: str) -> dict[str, str]:
    """Return the configuration keys that a connection string stands for."""
    if not string:
        return {}
    parts = {}
    for part in filter(None, map(str.strip, string.split(";"))):
        name, equals, value = part.partition("=")
        if not equals:
            raise ConfigError(
                "not a connection string",
                field="connection-string",
                hint="Copy it from the storage account's page 'Access keys'.",
            )
        parts[name.strip().lower()] = value.strip()
    if parts.get("usedevelopmentstorage", "").lower() == "true":
        return {
            "account-name": _EMULATOR,
            "account-key": _EMULATOR_KEY,
            "endpoint": _EMULATOR_ENDPOINT,
        }
    name = parts.get("accountname", "")
    endpoint = parts.get("blobendpoint", "")
    if not endpoint and name:
        scheme = parts.get("defaultendpointsprotocol", "https")
        endpoint = f"{scheme}://{name}.blob.{parts.get('endpointsuffix', _SUFFIX)}"
    found = {
        "account-name": name,
        "account-key": parts.get("accountkey", ""),
        "sas-token": parts.get("sharedaccesssignature", ""),
        "endpoint": endpoint,
    }
    return {key: value for key, value in found.items() if value}


def _name_in(endpoint: str) -> str:
    """Return the account that an endpoint names: in its path, else the first part of its host."""
    parts = urlsplit(endpoint if "://" in endpoint else f"https://{endpoint}")
    host = parts.hostname or ""
    return parts.path.strip("/") or (host.partition(".")[0] if ".blob." in host else "")


def _decoded(key: str) -> bytes:
    try:
        return base64.b64decode(key, validate=True)
    except (binascii.Error, ValueError):
        raise ConfigError(
            "not an account key, which is base64",
            field="account-key",
            hint="Copy it from the storage account's page 'Access keys'.",
        ) from None
