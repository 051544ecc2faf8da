"""Litestream and pyrep in one bucket of a real server, both ways."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest

from fixtures import litestream
from fixtures.app import App, checkpointed_copy, differing_pages, row_counts
from fixtures.cli import pyrep
from fixtures.rig import Rig
from fixtures.servers import S3Server
from pyrep.clock import from_ms
from pyrep.errors import ReplicaPermanentError
from pyrep.restore.execute import RestoreOptions, restore
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


def pyrep_writes_litestream_restores(
    server: S3Server, folder: Path, start_app: StartApp, *, by_time: bool = True
) -> None:
    with ExitStack() as stack:
        bucket = stack.enter_context(bucket_on(server))
        client = stack.enter_context(closing(connect(server.spec(bucket, PATH))))
        rig = Rig(folder, client=client)
        stack.callback(rig.close)
        app = start_app(rig.db)
        app.execute("create table t (id integer primary key, a)")
        truths, times = {}, {}
        for _ in range(6):
            app.execute("insert into t (a) values (randomblob(3000))")
            rig.ship()
            truths[int(rig.durable)] = rig.truth()
            times[int(rig.durable)] = rig.acknowledged[-1].timestamp_ms
        url = server.url(bucket, URL_PATH)
        listed = litestream.ltx(url, environ=server.environ)
        assert [int(file["max_txid"], 16) for file in listed] == list(truths)
        for txid, truth in truths.items():
            out = folder / f"theirs-{txid}.db"
            litestream.restore(url, out, txid=txid, environ=server.environ)
            assert differing_pages(out, truth) == []
        middle = list(truths)[3]
        if by_time:
            at = from_ms(times[middle] + 1)  # Litestream restores what is older than that
            out = litestream.restore(
                url, folder / "theirs-at.db", timestamp=at, environ=server.environ
            )
            assert differing_pages(out, truths[middle]) == []
        out = folder / "ours-at.db"
        restore(client, out, RestoreOptions(timestamp_ms=times[middle]))
        assert differing_pages(out, truths[middle]) == []


def litestream_writes_pyrep_restores(server: S3Server, folder: Path, start_app: StartApp) -> None:
    db = folder / "tenant.db"
    app = start_app(db)
    app.execute("create table t (id integer primary key, a)")
    with bucket_on(server) as bucket:
        entry = {
            "path": str(db),
            "replica": {"type": "s3", "path": PATH, **server.options(bucket)},
        }
        config = litestream.write_config(folder / "litestream.json", [entry])
        for _ in range(3):
            app.execute("insert into t (a) values (randomblob(9000))")
            litestream.once(config)
        app.checkpoint("truncate")
        truth = checkpointed_copy(db, folder / "truth.db")
        with closing(connect(server.spec(bucket, PATH))) as client:
            restore(client, folder / "ours.db")
            files = [info for level in (0, 9) for info in client.list_ltx(level)]
        assert files
        assert differing_pages(folder / "ours.db", truth) == []


def a_daemon_ships_a_directory(server: S3Server, folder: Path, start_app: StartApp) -> None:
    """Run the command line: a directory to a bucket and back, by configuration and by URL."""
    names = ["db1.db", "team a/db#2.db"]
    for name in names:
        path = folder / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        app = start_app(path)
        app.execute("create table t (a)")
        app.execute("insert into t values (?)", (name,))
    with bucket_on(server) as bucket:
        replica = {"type": "s3", "path": "tenants", **server.options(bucket)}
        entry = {"dir": str(folder / "data"), "pattern": "*.db", "recursive": True}
        config = folder / "pyrep.yml"
        config.write_text(json.dumps({"dbs": [{**entry, "replica": replica}]}))
        done = pyrep("replicate", "-config", config, "-once")
        assert (done.code, done.error) == (0, "")
        assert "not built yet" not in done.out + done.err
        assert {key.rpartition("/0000/")[0] for key in server.objects(bucket)} == {
            f"tenants/{name}" for name in names
        }
        for number, name in enumerate(names):
            out = folder / f"out{number}.db"
            assert pyrep("restore", "-config", config, "-o", out, folder / "data" / name).code == 0
            assert row_counts(out) == {"t": 1}
        listed = pyrep("ltx", "-config", config, "-json", folder / "data" / names[0])
        assert [file["level"] for file in listed.json["files"]] == [0]
        assert server.secret_key not in done.out + done.err


def test_litestream_restores_what_pyrep_wrote_to_moto(
    moto_server: S3Server, tmp_path: Path, start_app: StartApp
) -> None:
    # Litestream first looks at the upload times of a listing, which moto gives in seconds.
    pyrep_writes_litestream_restores(moto_server, tmp_path, start_app, by_time=False)


def test_litestream_restores_what_pyrep_wrote_to_radosgw(
    radosgw_server: S3Server, tmp_path: Path, start_app: StartApp
) -> None:
    pyrep_writes_litestream_restores(radosgw_server, tmp_path, start_app)


def test_pyrep_restores_what_litestream_wrote_to_moto(
    moto_server: S3Server, tmp_path: Path, start_app: StartApp
) -> None:
    litestream_writes_pyrep_restores(moto_server, tmp_path, start_app)


def test_pyrep_restores_what_litestream_wrote_to_radosgw(
    radosgw_server: S3Server, tmp_path: Path, start_app: StartApp
) -> None:
    litestream_writes_pyrep_restores(radosgw_server, tmp_path, start_app)


def test_a_directory_goes_to_moto_and_back(
    moto_server: S3Server, tmp_path: Path, start_app: StartApp
) -> None:
    a_daemon_ships_a_directory(moto_server, tmp_path, start_app)


def test_a_directory_goes_to_radosgw_and_back(
    radosgw_server: S3Server, tmp_path: Path, start_app: StartApp
) -> None:
    a_daemon_ships_a_directory(radosgw_server, tmp_path, start_app)


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
