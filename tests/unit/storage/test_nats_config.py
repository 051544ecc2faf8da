"""NATS replicas from keys and URLs."""

from __future__ import annotations

from datetime import timedelta

import pytest

from pyrep.config.model import Secret
from pyrep.errors import ConfigError
from pyrep.storage.nats_config import NATSAccount, NATSSettings, nats_settings
from pyrep.storage.object_url import TLS


def settings(url: str | None = None, path: str = "", **keys: object) -> NATSSettings:
    options = {name.replace("_", "-"): value for name, value in keys.items()}
    return nats_settings(url=url, path=path, options=options)


def test_keys() -> None:
    found = settings(
        bucket="b",
        path="/a/b/",
        username="u",
        password=Secret("SECRET"),
        timeout=timedelta(seconds=3),
        reconnect_wait=timedelta(0),
        max_reconnects=5,
    )
    account = NATSAccount(
        ("nats://127.0.0.1:4222",),
        "u",
        "SECRET",
        timeout=3.0,
        reconnect_wait=0.0,
        max_reconnects=5,
    )
    assert found == NATSSettings(account, "b", "a/b")
    assert "SECRET" not in repr(found)


@pytest.mark.parametrize(
    ("url", "keys", "bucket", "path"),
    [
        ("nats://h/b", {}, "b", ""),
        ("nats://h/b", {"bucket": "x"}, "b", ""),
        ("nats://h/", {"bucket": "x"}, "x", ""),
        ("nats://h", {"bucket": "x", "path": "t"}, "x", "t"),
        ("nats://h/b/team%20a/x.db", {}, "b", "team a/x.db"),
    ],
)
def test_bucket_and_path(url: str, keys: dict[str, str], bucket: str, path: str) -> None:
    found = settings(url, **keys)
    assert (found.bucket, found.path) == (bucket, path)


def test_several_servers_and_tls() -> None:
    assert settings("nats://a:1,b/x").account.servers == ("nats://a:1", "nats://b")
    found = settings("nats://a:1/x", root_cas=("/ca",)).account
    assert (found.servers, found.tls) == (("tls://a:1",), TLS(("/ca",)))
    assert settings("nats://a/x", tls=True).account.tls == TLS()
    assert settings("nats://a/x", tls=False).account.tls is None


@pytest.mark.parametrize(
    ("url", "keys", "used"),
    [
        ("nats://u:p@h/b", {}, {"user": "u", "password": "p"}),
        ("nats://u:p@h/b", {"username": "v"}, {"user": "v", "password": "p"}),
        ("nats://t@h/b", {}, {"token": "t"}),
        ("nats://h/b", {"token": "t", "username": "u"}, {"user": "u"}),
        ("nats://u:p@h/b", {"nkey": "SUAX"}, {"seed": "SUAX"}),
        ("nats://u:p@h/b", {"nkey": "UAX", "seed": "SUAX"}, {"seed": "SUAX"}),
        ("nats://u:p@h/b", {"seed": "SUAX", "creds": "/c"}, {"creds": "/c"}),
        (
            "nats://u:p@h/b",
            {"seed": "SUAX", "jwt": "J", "creds": "/c"},
            {"jwt": "J", "seed": "SUAX", "creds": "/c"},
        ),
    ],
)
def test_the_strongest_credentials_are_used(
    url: str, keys: dict[str, str], used: dict[str, str]
) -> None:
    assert settings(url, **keys).account == NATSAccount(("nats://h",), **used)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({}, "bucket required for nats replica"),
        ({"url": "nats://h"}, "bucket required for nats replica"),
        ({"bucket": "a.b"}, "bucket: a bucket's name has letters"),
        ({"bucket": "b", "jwt": "SECRET"}, "jwt: needs seed"),
        ({"bucket": "b", "nkey": "UASECRET"}, "nkey: is a public key"),
        ({"bucket": "b", "client_cert": "/c"}, "client-cert and client-key need each other"),
        ({"bucket": "b", "client_key": "/c"}, "client-cert and client-key need each other"),
    ],
)
def test_conflicts(keys: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        settings(**keys)
    assert "SECRET" not in str(caught.value)
