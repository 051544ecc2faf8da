"""What only S3 has between Litestream and pyrep: URLs, directories of either, credentials."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest

from fixtures import litestream
from fixtures.app import App, differing_pages, row_counts
from fixtures.cli import pyrep
from fixtures.rig import Rig
from fixtures.servers import S3Server
from pyrep.errors import ReplicaPermanentError
from pyrep.storage.registry import connect

pytestmark = [pytest.mark.interop, pytest.mark.s3, pytest.mark.usefixtures("litestream")]

StartApp = Callable[..., App]
PATH = "prod/team a/db.db"
URL_PATH = "prod/team%20a/db.db"


@contextmanager
def bucket_on(server: S3Server) -> Iterator[str]:
    try:
        yield server.make_bucket()
    finally:
        server.close()


@pytest.fixture(scope="session", params=["moto", "radosgw"])
def server(request: pytest.FixtureRequest) -> S3Server:
    return request.getfixturevalue(f"{request.param}_server")


def test_litestream_reads_by_a_url_what_pyrep_wrote(
    server: S3Server, tmp_path: Path, start_app: StartApp
) -> None:
    with ExitStack() as stack:
        bucket = stack.enter_context(bucket_on(server))
        rig = Rig(tmp_path, client=stack.enter_context(closing(connect(server.spec(bucket, PATH)))))
        stack.callback(rig.close)
        app = start_app(rig.db)
        app.execute("create table t (id integer primary key, a)")
        truths = {}
        for _ in range(3):
            app.execute("insert into t (a) values (randomblob(3000))")
            rig.ship()
            truths[int(rig.durable)] = rig.truth()
        url = server.url(bucket, URL_PATH)
        listed = litestream.ltx(url, environ=server.environ)
        assert [int(file["max_txid"], 16) for file in listed] == list(truths)
        for txid, truth in truths.items():
            out = tmp_path / f"theirs-{txid}.db"
            litestream.restore(url, out, txid=txid, environ=server.environ)
            assert differing_pages(out, truth) == []


def test_a_directory_that_litestream_wrote_comes_back_without_a_configuration(
    radosgw_server: S3Server,
    tmp_path: Path,
    start_app: StartApp,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server, names = radosgw_server, ["a.db", "team/b #1.db"]
    for name, value in server.environ.items():
        monkeypatch.setenv(name, value)
    with bucket_on(server) as bucket:
        replica = {"type": "s3", "path": "theirs", **server.options(bucket)}
        for number, name in enumerate(names, 1):
            db = tmp_path / "data" / name
            db.parent.mkdir(parents=True, exist_ok=True)
            app = start_app(db)
            app.execute("create table t (a)")
            for _ in range(number):
                app.execute("insert into t values (1)")
        entry = {"dir": str(tmp_path / "data"), "pattern": "*.db", "recursive": True}
        config = litestream.write_config(tmp_path / "c.json", [{**entry, "replica": replica}])
        litestream.once(config)
        url = server.url(bucket, "theirs")
        done = pyrep("restore", "-all", "-json", "-o", tmp_path / "out", url)
        assert (done.code, done.json["count"]) == (0, {"restored": 2})
        for number, name in enumerate(names, 1):
            assert row_counts(tmp_path / "out" / name)["t"] == number


@pytest.mark.parametrize("key", ["access-key-id", "secret-access-key"])
def test_wrong_credentials_are_a_permanent_error(radosgw_server: S3Server, key: str) -> None:
    with bucket_on(radosgw_server) as bucket:
        spec = radosgw_server.spec(bucket, PATH, **{key.replace("-", "_"): "wrong-and-secret"})
        with closing(connect(spec)) as client:
            with pytest.raises(ReplicaPermanentError, match="403") as caught:
                list(client.list_ltx(0))
            assert "Check the access key" in caught.value.hint
            assert "wrong-and-secret" not in str(caught.value)


def test_a_missing_bucket_is_a_permanent_error(radosgw_server: S3Server) -> None:
    with closing(connect(radosgw_server.spec("no-such-bucket", PATH))) as client:
        with pytest.raises(ReplicaPermanentError, match="NoSuchBucket") as caught:
            list(client.list_ltx(0))
        assert caught.value.hint.startswith("Create the bucket")
