"""WebDAV replicas from keys and URLs."""

from __future__ import annotations

import pytest

from pyrep.config.model import Secret, SecretURL
from pyrep.errors import ConfigError
from pyrep.storage.object_url import TLS
from pyrep.storage.webdav_config import WebDAVAccount, WebDAVSettings, webdav_settings


def settings(url: str | None = None, path: str = "", **keys: object) -> WebDAVSettings:
    options = {name.replace("_", "-"): value for name, value in keys.items()}
    return webdav_settings(url=url, path=path, options=options)


def test_keys() -> None:
    found = settings(
        webdav_url=SecretURL("https://v:SECRET@h:8443/remote.php/dav%20x/"),
        webdav_username="u",
        webdav_password=Secret("SECRET"),
        path="/a/./b/",
        root_cas=("/ca",),
    )
    account = WebDAVAccount("https://h:8443", "/remote.php/dav%20x", "u", "SECRET", TLS(("/ca",)))
    assert found == WebDAVSettings(account, "a/b")
    assert "SECRET" not in repr(found)


@pytest.mark.parametrize(
    ("url", "origin", "path", "user", "password"),
    [
        ("webdav://h/a%20b", "http://h", "a b", "", ""),
        ("webdavs://u:p%40@h:1/", "https://h:1", "", "u", "p@"),
        ("webdavs://u@h", "https://h", "", "u", ""),
    ],
)
def test_urls(url: str, origin: str, path: str, user: str, password: str) -> None:
    account = WebDAVAccount(origin, "", user, password)
    assert settings(url) == WebDAVSettings(account, path)
    assert settings(url, webdav_username="x").account.user == "x"


@pytest.mark.parametrize("scheme", ["http", "https", "webdav", "webdavs"])
def test_an_address_may_have_either_scheme(scheme: str) -> None:
    origin = settings(webdav_url=f"{scheme}://h").account.origin
    assert origin == ("https://h" if scheme in ("https", "webdavs") else "http://h")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({}, "webdav-url required for webdav replica"),
        ({"webdav_url": "ftp://SECRET@h"}, "webdav-url: not an http"),
        ({"webdav_url": "h/p"}, "webdav-url: not an http"),
        ({"webdav_url": "http://h/p?x=SECRET"}, "webdav-url: has a query"),
        ({"url": "webdav://h/p", "path": "p"}, "cannot specify url & path"),
        ({"url": "webdav://h/p", "webdav_url": "http://h"}, "cannot specify url & webdav-url"),
        ({"webdav_url": "http://h", "path": "a\0"}, "NUL"),
    ],
)
def test_conflicts(keys: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        settings(**keys)
    assert "SECRET" not in str(caught.value)
