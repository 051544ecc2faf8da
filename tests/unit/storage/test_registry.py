"""From a configured replica to a client."""

from __future__ import annotations

import dataclasses
import io
from contextlib import closing
from pathlib import Path

import pytest

from fixtures.ltxbytes import build_ltx
from pyrep.errors import ConfigError, ReplicaTemporaryError
from pyrep.ids import TXID
from pyrep.ltxfile import FileInfo
from pyrep.storage.memory import MemoryReplicaClient, MemoryStorage
from pyrep.storage.registry import ReplicaSpec, connect, is_url, parse_url, registered
from pyrep.storage.retry import RetryPolicy


@pytest.mark.parametrize(
    "text", ["file:///a", "s3://b", "x_1://", "A://b", "\N{GREEK SMALL LETTER BETA}://"]
)
def test_urls_are_recognised(text: str) -> None:
    assert is_url(text)


@pytest.mark.parametrize(
    "text", ["", "/a/b", "a", "file:/a", "://", "a b://c", "a-b://c", "/x s3://b"]
)
def test_paths_are_no_urls(text: str) -> None:
    assert not is_url(text)


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("file:///var/backups", "/var/backups"),
        ("FILE:///a", "/a"),
        ("file:///a//b/./c/../d/", "/a/b/d"),
        ("file:////a", "/a"),
        ("file:///", "/"),
        ("file:///a%20b/%23%3F%25/%F0%9F%92%A9", "/a b/#?%/\N{PILE OF POO}"),
        ("file:///plain space/\N{SNOWMAN}", "/plain space/\N{SNOWMAN}"),
        ("file:///a+b;c=d&e@f:g", "/a+b;c=d&e@f:g"),
        ("file:///not-utf8-%FF", "/not-utf8-\udcff"),
    ],
)
def test_file_urls_are_decoded(url: str, path: str) -> None:
    assert dataclasses.astuple(parse_url(url)) == ("file", path)


@pytest.mark.parametrize(
    ("url", "message", "hint"),
    [
        ("/a/b", "replica url scheme required: /a/b", ""),
        ("", "replica url scheme required: ", ""),
        ("file://host/p", "file replica url names a host: file://host/p", "three slashes"),
        ("file://localhost/p", "names a host", "three slashes"),
        ("file://", "file replica path required", ""),
        ("file:///a?b=c", "has a query or fragment", "%3F"),
        ("file:///a?", "has a query or fragment", "%3F"),
        ("file:///a#b", "has a query or fragment", "%23"),
        ("file:///100%", "has a bad escape", "%25"),
        ("file:///a%zz", "has a bad escape", "%25"),
        ("file:///a%00b", "has a NUL character", ""),
        ("ftp://host/p", 'unsupported replica URL scheme: "ftp"', ""),
        ("memory://x", 'unsupported replica URL scheme: "memory"', ""),
    ],
)
def test_bad_urls_are_errors(url: str, message: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_url(url)
    assert message in str(caught.value)
    assert hint in caught.value.hint


def test_webdavs_is_webdav() -> None:
    for scheme in ("webdav", "webdavs"):
        with closing(connect(ReplicaSpec(url=f"{scheme}://host/path"))) as client:
            assert (client.scheme, client.url) == ("webdav", f"{scheme}://host/path")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (ReplicaSpec("tape", "p"), 'unknown replica type in config: "tape"'),
        (ReplicaSpec("memory", "p"), 'unknown replica type in config: "memory"'),
        (ReplicaSpec("file", ""), "file replica path required"),
        (ReplicaSpec(), "file replica path required"),
        (ReplicaSpec("file", "/a", "file:///a"), "cannot specify url & path for file replica"),
        (ReplicaSpec("file", "file:///a"), "replica path cannot be a url: file:///a"),
        (ReplicaSpec("file", "a\0b"), "file replica path has a NUL character"),
    ],
)
def test_bad_replicas_are_errors(spec: ReplicaSpec, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        connect(spec)
    assert message in str(caught.value)


@pytest.mark.parametrize("kind", ["", "file", "s3"])
def test_the_scheme_of_a_url_decides_the_type(kind: str, tmp_path: Path) -> None:
    client = connect(ReplicaSpec(kind, url=tmp_path.as_uri() + "/a%20b"))
    assert client.scheme == "file"
    assert client.url == f"{tmp_path.as_uri()}/a%20b"


def test_path_and_url_name_the_same_place(tmp_path: Path) -> None:
    place = tmp_path / "100% #1?" / "e\u0301"
    data = build_ltx(1, 1)
    connect(ReplicaSpec("file", str(place))).write_ltx(0, TXID(1), TXID(1), io.BytesIO(data))
    (info,) = connect(ReplicaSpec(url=place.as_uri())).list_ltx(0)
    assert (info.min_txid, info.size) == (1, len(data))


def test_connecting_touches_nothing(tmp_path: Path) -> None:
    connect(ReplicaSpec(path=str(tmp_path / "new"))).close()
    assert list(tmp_path.iterdir()) == []


def test_a_relative_path_is_taken_from_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert connect(ReplicaSpec(path="backups")).url == f"{tmp_path.as_uri()}/backups"


def test_another_type_can_be_registered_for_a_while() -> None:
    storage = MemoryStorage()
    with registered("memory", lambda spec, _: MemoryReplicaClient(storage, spec.path)):
        assert connect(ReplicaSpec("memory", "a")).url == "memory://a"
        with pytest.raises(ConfigError, match="unsupported replica URL scheme"):
            connect(ReplicaSpec(url="memory://a"))
        with pytest.raises(ValueError, match="registered already"), registered("memory", connect):
            pass
    with pytest.raises(ConfigError, match="unknown replica type"):
        connect(ReplicaSpec("memory", "a"))


def test_clients_retry() -> None:
    calls = []

    def faults(op: str, info: FileInfo | None) -> None:
        calls.append(op)
        if len(calls) == 1:
            raise ReplicaTemporaryError("once")

    policy = RetryPolicy(attempts=2, base=0.0)
    with registered("memory", lambda spec, _: MemoryReplicaClient(faults=faults)):
        client = connect(ReplicaSpec("memory", "a"), policy=policy)
    assert list(client.list_ltx(0)) == []
    assert calls == ["list", "list"]
