"""SFTP replicas from keys and URLs."""

from __future__ import annotations

import pytest

from pyrep.config.model import Secret
from pyrep.errors import ConfigError
from pyrep.storage.sftp_config import SFTPAccount, SFTPSettings, sftp_settings

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIA"


def settings(url: str | None = None, path: str = "", **keys: object) -> SFTPSettings:
    options = {name.replace("_", "-"): value for name, value in keys.items()}
    return sftp_settings(url=url, path=path, options=options)


def test_keys() -> None:
    found = settings(
        host="h:2222",
        user="u",
        password=Secret("SECRET"),
        path="b/./x/",
        key_path="~/k",
        host_key=f" {KEY} comment",
        insecure_host_key=True,
        concurrent_writes=False,
    )
    account = SFTPAccount("h", 2222, "u", "SECRET", "~/k", KEY, insecure_host_key=True)
    assert found == SFTPSettings(account, "b/x", concurrent_writes=False)
    assert (account.address, account.known_host) == ("h:2222", "[h]:2222")
    assert "SECRET" not in repr(found)


def test_urls() -> None:
    found = settings("sftp://u:p%40@h/a%20b")
    assert found == SFTPSettings(SFTPAccount("h", 22, "u", "p@"), "/a b")
    assert (found.account.address, found.account.known_host) == ("h", "h")
    assert settings("sftp://u@[::1]:23/x").account.address == "[::1]:23"
    assert settings("sftp://u:p@h/x", user="v", password="q").account.user == "v"


@pytest.mark.parametrize(
    ("path", "clean"), [("", ""), (".", ""), ("/", "/"), ("//a", "/a"), ("a//b/..", "a")]
)
def test_paths_are_cleaned(path: str, clean: str) -> None:
    assert settings(host="h", user="u", path=path).path == clean


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({}, "host required for sftp replica"),
        ({"host": "h"}, "user required for sftp replica"),
        ({"url": "sftp://h/p"}, "user required for sftp replica"),
        ({"url": "sftp://u@h/p", "host": "h"}, "cannot specify url & host for sftp replica"),
        ({"url": "sftp://u@h/p", "path": "p"}, "cannot specify url & path for sftp replica"),
        ({"host": "h:x", "user": "u"}, "host: not a host with a port"),
        ({"host": "h", "user": "u", "path": "a\0"}, "NUL"),
        ({"host": "h", "user": "u", "host_key": "AAAA"}, "host-key: not a public key"),
        ({"host": "h", "user": "u", "host_key": "h ssh-rsa AAAA"}, "host-key: not a public key"),
    ],
)
def test_conflicts(keys: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        settings(**keys)
