"""``pyrep doctor`` on every storage finds what the table of docs/storage.md says."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fixtures.cli import pyrep
from pyrep.doctor import CHECKS

STORAGE_MD = Path(__file__).parents[2] / "docs/storage.md"
CREATE_ONLY = 2  # the column


@dataclass
class Place:
    """Say where a replica is, and how to see what is left there."""

    words: list[object]  # of the command line
    environ: dict[str, str]
    left: Callable[[], object]
    close: Callable[[], None] = lambda: None


def in_a_bucket(server: Any, tmp_path: Path) -> Place:
    bucket = server.make_bucket()
    url = server.url(bucket, "team a/x")
    return Place([url], server.environ, lambda: server.objects(bucket), server.close)


def on_nats(server: Any, tmp_path: Path) -> Place:
    bucket = server.make_bucket()
    url = f"nats://u:S3CRET@127.0.0.1:{server.port}/{bucket}"
    return Place([url], {}, lambda: server.objects(bucket), lambda: server.remove_bucket(bucket))


def on_webdav(server: Any, tmp_path: Path) -> Place:
    top = secrets.token_hex(8)
    server.write(f"{top}/kept.txt", b"x")
    url = f"webdav://u:S3CRET@127.0.0.1:{server.port}/{top}"
    left = [server.data / top / "kept.txt"]
    return Place([url], {}, lambda: [p for p in left[0].parent.iterdir() if p not in left])


def on_sftp(server: Any, tmp_path: Path) -> Place:
    """Configure a database: a URL has no place for the keys on both sides."""
    (tmp_path / "r").mkdir()
    replica = {"type": "sftp", "path": str(tmp_path / "r"), **server.options()}
    config = tmp_path / "pyrep.yml"
    config.write_text(json.dumps({"dbs": [{"path": str(tmp_path / "a.db"), "replica": replica}]}))
    words = ["-config", config, tmp_path / "a.db"]
    return Place(words, {}, lambda: list((tmp_path / "r").iterdir()))


def in_a_folder(server: None, tmp_path: Path) -> Place:
    (tmp_path / "r").mkdir()
    return Place([(tmp_path / "r").as_uri()], {}, lambda: list((tmp_path / "r").iterdir()))


STORAGES: list[tuple[str, str, str, Callable[[Any, Path], Place]]] = [
    ("file", "", "", in_a_folder),
    ("s3", "s3", "moto_server", in_a_bucket),
    ("s3", "s3", "radosgw_server", in_a_bucket),
    ("gs", "gcs", "gcs_server", in_a_bucket),
    ("abs", "abs", "abs_server", in_a_bucket),
    ("oss", "oss", "oss_server", in_a_bucket),
    ("sftp", "sftp", "sftp_server", on_sftp),
    ("webdav", "webdav", "webdav_server", on_webdav),
    ("nats", "nats", "nats", on_nats),
]


def table() -> dict[str, list[str]]:
    """Return the rows of the table of storages by the type in their first column."""
    lines = STORAGE_MD.read_text().partition("| type |")[2].partition("\n\n")[0].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    return {row[0]: row for row in rows}


def test_the_table_has_every_storage() -> None:
    assert set(table()) == {kind for kind, *_ in STORAGES}


def cases() -> list[Any]:
    found = []
    for kind, mark, fixture, place in STORAGES:
        marks = [getattr(pytest.mark, mark)] if mark else []
        found.append(pytest.param((kind, fixture, place), id=fixture or kind, marks=marks))
    return found


@pytest.fixture(scope="session", params=cases())
def running(request: pytest.FixtureRequest) -> tuple[str, Any, Callable[[Any, Path], Place]]:
    kind, fixture, place = request.param
    return kind, request.getfixturevalue(fixture) if fixture else None, place


def test_it_finds_what_the_table_says(
    running: tuple[str, Any, Callable[[Any, Path], Place]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kind, server, place = running
    at = place(server, tmp_path)
    for name, value in at.environ.items():
        monkeypatch.setenv(name, value)
    try:
        done = pyrep("doctor", "-json", *at.words)
        assert (done.code, done.error) == (0, "")
        assert "S3CRET" not in done.out + done.err
        results = {check["check"]: check["result"] for check in done.json["checks"]}
        assert list(results) == [title for title, _ in CHECKS] + ["clean up"]
        cell = table()[kind][CREATE_ONLY]
        assert cell.startswith(("atomic", "best effort"))
        race = "ok" if cell.startswith("atomic") else "limited"
        assert results == dict.fromkeys(results, "ok") | {"create race": race}
        assert not at.left()
    finally:
        at.close()
