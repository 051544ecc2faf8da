"""What a replica in Google Cloud Storage is configured to be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pyrep.errors import ConfigError
from pyrep.storage.object_url import (
    GCS_PARAMETERS,
    TLS,
    endpoint_url,
    parse_object_url,
    tls_of,
)
from pyrep.storage.options import text

__all__ = ["GCSAccount", "GCSSettings", "gcs_settings"]


@dataclass(frozen=True, slots=True)
class GCSAccount:
    """Name an endpoint (empty: Google's) and how it is reached; tenants share a session by it.

    ``anonymous``: an emulator, which needs no credentials.  Else they are Google's application
    default credentials, first of all the file that the environment names.
    """

    endpoint: str = ""
    anonymous: bool = False
    tls: TLS = field(default_factory=TLS)
    credentials_file: str = ""


@dataclass(frozen=True, slots=True)
class GCSSettings:
    """Hold the settings of one tenant's replica."""

    account: GCSAccount
    bucket: str
    path: str = ""


def gcs_settings(
    *,
    url: str | None,
    path: str,
    options: Mapping[str, object],
    environ: Mapping[str, str],
) -> GCSSettings:
    """Resolve a replica: its own keys win over its URL, both over the emulator's variable.

    :raises ConfigError: a key is missing or wrong
    """
    values = {key: value for key, value in options.items() if value not in (None, "")}
    if url:
        if path:
            raise ConfigError("cannot specify url & path for gs replica")
        parsed = parse_object_url("gs", url, parameters=GCS_PARAMETERS)
        path = parsed.path
        values = dict(parsed.options) | values | {"bucket": parsed.host}
    bucket = text(values, "bucket")
    if not bucket:
        raise ConfigError("bucket required for gs replica")
    endpoint = text(values, "endpoint")
    emulator = environ.get("STORAGE_EMULATOR_HOST", "")
    if endpoint:
        endpoint = endpoint_url(endpoint)
    elif emulator:
        endpoint = endpoint_url(emulator, field="STORAGE_EMULATOR_HOST", scheme="http")
    return GCSSettings(
        account=GCSAccount(
            endpoint=endpoint,
            anonymous=bool(emulator),
            tls=tls_of(values),
            credentials_file=environ.get("GOOGLE_APPLICATION_CREDENTIALS", ""),
        ),
        bucket=bucket,
        path=path,
    )
