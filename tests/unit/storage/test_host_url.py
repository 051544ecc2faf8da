"""URLs that name a server."""

from __future__ import annotations

import pytest

from pyrep.errors import ConfigError
from pyrep.storage.host_url import HostURL, parse_host_url, split_port


@pytest.mark.parametrize(
    ("url", "parsed"),
    [
        ("sftp://h", HostURL("sftp", "h", "")),
        ("SFTP://h/", HostURL("sftp", "h", "/")),
        ("sftp://u@h:22//a/./b/", HostURL("sftp", "h:22", "/a/b", "u")),
        ("sftp://u:@h/p", HostURL("sftp", "h", "/p", "u", "")),
        ("sftp://u%40x:p%2F%3A@h/a%20b%23", HostURL("sftp", "h", "/a b#", "u@x", "p/:")),
        ("sftp://u:p@w@h/p", HostURL("sftp", "h", "/p", "u", "p@w")),
        ("webdavs://[::1]:8443/d%C3%A9j%C3%A0", HostURL("webdavs", "[::1]:8443", "/d\xe9j\xe0")),
        ("nats://a:1,b:2/bucket", HostURL("nats", "a:1,b:2", "/bucket")),
    ],
)
def test_parts(url: str, parsed: HostURL) -> None:
    assert parse_host_url(url) == parsed


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("no url", "scheme required"),
        ("sftp:///p", "host required for sftp replica"),
        ("sftp://u@/p", "host required for sftp replica"),
        ("sftp://h/p?x=1", "query or fragment"),
        ("sftp://h/p#x", "query or fragment"),
        ("sftp://h/100%", "bad escape"),
        ("sftp://u:SECRET%@h/", "bad escape"),
        ("sftp://h/%FF", "not UTF-8"),
        ("sftp://h/a%00b", "NUL"),
    ],
)
def test_bad_urls_are_errors_without_a_secret(url: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        parse_host_url(url)
    assert "SECRET" not in str(caught.value)


def test_secrets_are_not_printed() -> None:
    assert "SECRET" not in repr(parse_host_url("sftp://SECRET:SECRET@h/p"))


@pytest.mark.parametrize(
    ("host", "wanted"),
    [
        ("h", ("h", 22)),
        ("h:2222", ("h", 2222)),
        ("[::1]", ("::1", 22)),
        ("[::1]:65535", ("::1", 65535)),
        ("::1", ("::1", 22)),
    ],
)
def test_ports(host: str, wanted: tuple[str, int]) -> None:
    assert split_port(host, 22) == wanted


@pytest.mark.parametrize("host", ["h:", "h:0", "h:65536", "h:x", ":22", "[::1]:"])
def test_bad_ports_are_errors(host: str) -> None:
    with pytest.raises(ConfigError, match="not a host with a port"):
        split_port(host, 22)
