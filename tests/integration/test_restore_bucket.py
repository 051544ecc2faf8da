"""``pyrep restore -all`` from a bucket: with a configuration, and with nothing but its URL."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from fixtures.cli import pyrep
from fixtures.replicas import History
from fixtures.servers import S3Server
from pyrep.storage.registry import connect

pytestmark = pytest.mark.s3

NAMES = [
    "db1.db",
    "team-a/db2.db",
    "team-b/east/db3.db",
    "team-b/\N{LATIN SMALL LETTER U WITH DIAERESIS} #%?'+ & \N{SNOWMAN}.db",
    "0000",
    "ltx/9",
]


@contextmanager
def bucket_on(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    for name, value in server.environ.items():
        monkeypatch.setenv(name, value)
    try:
        yield server.make_bucket()
    finally:
        server.close()


def fill(server: S3Server, bucket: str, base: str) -> dict[str, History]:
    """Store databases below a path, and beside them what is none."""
    made = {name: History(seed=n).run(n + 2) for n, name in enumerate(NAMES)}
    for name, history in made.items():
        with closing(connect(server.spec(bucket, f"{base}/{name}" if base else name))) as client:
            history.put_singles(client)
    for key in ("notes.txt", "db1.db/readme", "x/../../../outside/0000/%s", "x//y/0000/%s"):
        name = f"{1:016x}-{1:016x}.ltx"
        server.boto.put_object(
            Bucket=bucket, Key=f"{base}/{key.replace('%s', name)}", Body=made["0000"].file(1, 1)
        )
    return made


def found(root: Path) -> dict[str, bytes]:
    files = (path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


def expect_all_back(server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with bucket_on(server, monkeypatch) as bucket:
        made = fill(server, bucket, "prod/tenants")
        newest = {name: history.image(history.newest) for name, history in made.items()}
        url = server.url(bucket, "prod/tenants")
        done = pyrep("restore", "-all", "-o", tmp_path / "newest", url)
        assert (done.code, done.err) == (0, "")
        assert found(tmp_path / "newest") == newest
        assert done.out.splitlines()[-1].startswith(f"{len(NAMES)} restored in ")
        assert not (tmp_path / "outside").exists()

        flags = ["-timestamp", "1970-01-01T00:00:02Z", "-json"]
        done = pyrep("restore", "-all", *flags, "-o", tmp_path / "past", url)
        assert (done.code, done.json["count"]) == (0, {"restored": len(NAMES)})
        assert {item["replica"] for item in done.json["databases"]} == {"s3"}
        assert found(tmp_path / "past") == {name: h.image(2) for name, h in made.items()}

        one = server.url(bucket, "prod/tenants/team-b")
        assert pyrep("restore", "-all", "-o", tmp_path / "part", one).code == 0
        assert set(found(tmp_path / "part")) == {
            name.removeprefix("team-b/") for name in NAMES if name.startswith("team-b/")
        }
        assert server.secret_key not in done.out + done.err


def expect_a_lost_directory_back(
    server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with bucket_on(server, monkeypatch) as bucket:
        made = fill(server, bucket, "")
        replica = {"type": "s3", **server.options(bucket)}
        entry = {"dir": str(tmp_path / "lost"), "pattern": "*.db", "recursive": True}
        config = tmp_path / "pyrep.yml"
        config.write_text(json.dumps({"dbs": [{**entry, "replica": replica}]}))
        done = pyrep("restore", "-all", "-json", "-config", config, "-o", tmp_path / "lost")
        matching = {name: h.image(h.newest) for name, h in made.items() if name.endswith(".db")}
        assert done.code == 0
        assert sorted(done.json["not_matched"]) == [f"s3://{bucket}/0000", f"s3://{bucket}/ltx/9"]
        restored = found(tmp_path / "lost").items()
        assert {name: data for name, data in restored if "-pyrep/" not in name} == matching
        assert (tmp_path / "lost" / ".db1.db-pyrep" / "state.json").exists()


def test_all_come_back_from_moto(
    moto_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expect_all_back(moto_server, tmp_path, monkeypatch)
    expect_a_lost_directory_back(moto_server, tmp_path, monkeypatch)


def test_all_come_back_from_radosgw(
    radosgw_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expect_all_back(radosgw_server, tmp_path, monkeypatch)
    expect_a_lost_directory_back(radosgw_server, tmp_path, monkeypatch)


def test_all_come_back_from_swift(
    swift_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expect_all_back(swift_server, tmp_path, monkeypatch)


def test_a_bucket_that_cannot_be_listed_is_a_clear_error(
    radosgw_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with bucket_on(radosgw_server, monkeypatch) as bucket:
        done = pyrep("restore", "-all", "-o", tmp_path, radosgw_server.url(bucket, "nothing"))
        assert done.code == 6
        assert done.error.startswith("no replica found at or below s3://")
        done = pyrep("restore", "-all", "-o", tmp_path, radosgw_server.url(f"{bucket}-x", "p"))
        assert done.code == 5
        assert "NoSuchBucket" in done.error
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-and-secret")
        done = pyrep("restore", "-all", "-o", tmp_path, radosgw_server.url(bucket, "p"))
        assert done.code == 5
        assert "403" in done.error
        assert "wrong-and-secret" not in done.out + done.err
