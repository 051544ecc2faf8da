"""Litestream and pyrep on one replica of a server, both ways: all storages but files and S3."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from fixtures import litestream
from fixtures.apache import WebDAVServer
from fixtures.app import App, checkpointed_copy, differing_pages, row_counts
from fixtures.cli import pyrep
from fixtures.nats_server import NATSServer
from fixtures.rig import Rig
from fixtures.sshd import SFTPServer
from pyrep.clock import from_ms
from pyrep.restore.execute import RestoreOptions, restore
from pyrep.storage.registry import ReplicaSpec, connect

pytestmark = [pytest.mark.interop, pytest.mark.usefixtures("litestream")]

StartApp = Callable[..., App]
Keys = dict[str, Any]


def client_of(replica: Keys) -> Any:
    """Return a client of a replica that is given by its keys."""
    options = {key: v for key, v in replica.items() if key not in ("type", "path", "url")}
    spec = ReplicaSpec(replica["type"], replica.get("path", ""), replica.get("url"), options)
    return connect(spec)


def litestream_restore(replica: Keys, out: Path, **flags: Any) -> Path:
    """Restore by the original, which is given the same keys."""
    config = litestream.write_config(
        out.with_suffix(".json"), [{"path": str(out.with_suffix(".source")), "replica": replica}]
    )
    words = ["restore", "-config", str(config), "-o", str(out)]
    for name, value in flags.items():
        words += [f"-{name}", value]
    litestream.run(*words, str(out.with_suffix(".source")))
    return out


def pyrep_writes_litestream_restores(
    replica: Keys, folder: Path, start_app: StartApp, *, by_time: bool = True
) -> None:
    with ExitStack() as stack:
        client = stack.enter_context(closing(client_of(replica)))
        rig = Rig(folder, client=client)
        stack.callback(rig.close)
        app = start_app(rig.db)
        app.execute("create table t (id integer primary key, a)")
        truths, times = {}, {}
        for _ in range(5):
            app.execute("insert into t (a) values (randomblob(3000))")
            rig.ship()
            truths[int(rig.durable)] = rig.truth()
            times[int(rig.durable)] = rig.acknowledged[-1].timestamp_ms
        for txid, truth in truths.items():
            out = litestream_restore(replica, folder / f"theirs-{txid}.db", txid=f"{txid:016x}")
            assert differing_pages(out, truth) == []
        out = litestream_restore(replica, folder / "theirs.db")
        assert differing_pages(out, list(truths.values())[-1]) == []
        middle = list(truths)[3]
        if by_time:
            # Litestream restores what is older than the time it is given.
            at = from_ms(times[middle] + 1).isoformat().replace("+00:00", "Z")
            out = litestream_restore(replica, folder / "theirs-at.db", timestamp=at)
            assert differing_pages(out, truths[middle]) == []
        out = folder / "ours-at.db"
        restore(client, out, RestoreOptions(timestamp_ms=times[middle]))
        assert differing_pages(out, truths[middle]) == []


def litestream_writes_pyrep_restores(replica: Keys, folder: Path, start_app: StartApp) -> None:
    db = folder / "tenant.db"
    app = start_app(db)
    app.execute("create table t (id integer primary key, a)")
    entry = {"path": str(db), "replica": replica}
    config = litestream.write_config(folder / "litestream.json", [entry])
    for _ in range(3):
        app.execute("insert into t (a) values (randomblob(9000))")
        litestream.once(config)
    app.checkpoint("truncate")
    truth = checkpointed_copy(db, folder / "truth.db")
    with closing(client_of(replica)) as client:
        restore(client, folder / "ours.db")
        files = [info for level in (0, 9) for info in client.list_ltx(level)]
        exact = [info for level in (0, 9) for info in client.list_ltx(level, exact_times=True)]
    assert files
    assert [(one.level, one.min_txid, one.size) for one in files] == [
        (one.level, one.min_txid, one.size) for one in exact
    ]
    assert differing_pages(folder / "ours.db", truth) == []


def a_directory_goes_there_and_back(
    replica: Mapping[str, Any], folder: Path, start_app: StartApp, secrets: list[str]
) -> None:
    """Run the command line: a directory to a server and back, one by one and all at once."""
    names = ["db1.db", "team a/db#2.db"]
    for name in names:
        path = folder / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        app = start_app(path)
        app.execute("create table t (a)")
        app.execute("insert into t values (?)", (name,))
    entry = {"dir": str(folder / "data"), "pattern": "*.db", "recursive": True}
    config = folder / "pyrep.yml"
    config.write_text(json.dumps({"dbs": [{**entry, "replica": dict(replica)}]}))
    done = pyrep("replicate", "-config", config, "-once")
    assert (done.code, done.error) == (0, "")
    assert "not built yet" not in done.out + done.err
    for number, name in enumerate(names):
        out = folder / f"out{number}.db"
        assert pyrep("restore", "-config", config, "-o", out, folder / "data" / name).code == 0
        assert row_counts(out) == {"t": 1}
    listed = pyrep("ltx", "-config", config, "-json", folder / "data" / names[0])
    assert [file["level"] for file in listed.json["files"]] == [0]
    everything = pyrep("restore", "-config", config, "-all", "-o", folder / "all")
    assert everything.code == 0, everything.out + everything.err
    for name in names:
        assert row_counts(folder / "all" / name) == {"t": 1}
    checked = pyrep("config", "check", "-config", config)
    assert checked.code == 0
    for secret in secrets:
        assert secret not in done.out + done.err + checked.out + checked.err


# --- SFTP -----------------------------------------------------------------------------------------


def on_sftp(server: SFTPServer, folder: Path) -> Keys:
    # Litestream asks for the key types in an order of its own, whatever key it was told.
    options = server.options(host_key=server.host_key("hostkey_rsa"))
    return {"type": "sftp", "path": str(folder / "replica/team a"), **options}


@pytest.mark.sftp
def test_litestream_restores_what_pyrep_wrote_to_sftp(
    sftp_server: SFTPServer, tmp_path: Path, start_app: StartApp
) -> None:
    # Litestream knows these times to the second.
    replica = on_sftp(sftp_server, tmp_path)
    pyrep_writes_litestream_restores(replica, tmp_path, start_app, by_time=False)


@pytest.mark.sftp
def test_pyrep_restores_what_litestream_wrote_to_sftp(
    sftp_server: SFTPServer, tmp_path: Path, start_app: StartApp
) -> None:
    litestream_writes_pyrep_restores(on_sftp(sftp_server, tmp_path), tmp_path, start_app)


@pytest.mark.sftp
def test_a_directory_goes_to_sftp_and_back(
    sftp_server: SFTPServer, tmp_path: Path, start_app: StartApp
) -> None:
    replica = {**on_sftp(sftp_server, tmp_path), "password": "S3CRET"}
    a_directory_goes_there_and_back(replica, tmp_path, start_app, ["S3CRET"])


# --- NATS -----------------------------------------------------------------------------------------


def on_nats(server: NATSServer) -> Keys:
    keys = server.keys(server.make_bucket())
    # Litestream takes a user from the keys only.
    return {"type": "nats", **keys}


@pytest.mark.nats
def test_litestream_restores_what_pyrep_wrote_to_nats(
    nats: NATSServer, tmp_path: Path, start_app: StartApp
) -> None:
    pyrep_writes_litestream_restores(on_nats(nats), tmp_path, start_app)


@pytest.mark.nats
def test_pyrep_restores_what_litestream_wrote_to_nats(
    nats: NATSServer, tmp_path: Path, start_app: StartApp
) -> None:
    litestream_writes_pyrep_restores(on_nats(nats), tmp_path, start_app)


@pytest.mark.nats
def test_a_directory_goes_to_nats_and_back(
    nats: NATSServer, tmp_path: Path, start_app: StartApp
) -> None:
    replica = on_nats(nats)
    a_directory_goes_there_and_back(replica, tmp_path, start_app, ["S3CRET"])
    bucket = replica["url"].rpartition("/")[2]
    names = {name.rpartition("/ltx/")[0] for name in nats.objects(bucket)}
    assert names == {"db1.db", "team a/db#2.db"}


@pytest.mark.nats
def test_a_bucket_key_with_a_url_that_has_none(
    nats: NATSServer, tmp_path: Path, start_app: StartApp
) -> None:
    url, _, bucket = on_nats(nats)["url"].rpartition("/")
    replica = {"type": "nats", **nats.options, "url": url, "bucket": bucket}
    a_directory_goes_there_and_back(replica, tmp_path, start_app, ["S3CRET"])
    names = {name.rpartition("/ltx/")[0] for name in nats.objects(bucket)}
    assert names == {"db1.db", "team a/db#2.db"}


# --- WebDAV ---------------------------------------------------------------------------------------


def on_webdav(server: WebDAVServer, folder: Path) -> Keys:
    return {"type": "webdav", "path": f"/{folder.name}/team a", **server.options()}


@pytest.mark.webdav
def test_litestream_restores_what_pyrep_wrote_to_webdav(
    webdav_server: WebDAVServer, tmp_path: Path, start_app: StartApp
) -> None:
    # Litestream knows the times of the uploads only, in seconds.
    replica = on_webdav(webdav_server, tmp_path)
    pyrep_writes_litestream_restores(replica, tmp_path, start_app, by_time=False)


@pytest.mark.webdav
def test_pyrep_restores_what_litestream_wrote_to_webdav(
    webdav_server: WebDAVServer, tmp_path: Path, start_app: StartApp
) -> None:
    litestream_writes_pyrep_restores(on_webdav(webdav_server, tmp_path), tmp_path, start_app)


@pytest.mark.webdav
def test_a_directory_goes_to_webdav_and_back(
    webdav_server: WebDAVServer, tmp_path: Path, start_app: StartApp
) -> None:
    replica = on_webdav(webdav_server, tmp_path)
    a_directory_goes_there_and_back(replica, tmp_path, start_app, ["S3CRET"])
    url = f"webdav://u:S3CRET@127.0.0.1:{webdav_server.port}/{tmp_path.name}-url"
    other = tmp_path / "url"
    other.mkdir()
    a_directory_goes_there_and_back({"url": url}, other, start_app, ["S3CRET"])


# --- GCS, Azure, OSS ------------------------------------------------------------------------------


@pytest.fixture(
    scope="session",
    params=[pytest.param(kind, marks=getattr(pytest.mark, kind)) for kind in ("gcs", "abs", "oss")],
)
def object_server(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(f"{request.param}_server")


@pytest.fixture
def in_bucket(object_server: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Keys]:
    """Return the keys of a replica in a bucket of its own."""
    for name, value in object_server.environ.items():
        monkeypatch.setenv(name, value)
    spec = object_server.spec(object_server.make_bucket(), "prod/team a/db.db")
    yield {"type": spec.type, "path": spec.path, **spec.options}
    object_server.close()


def test_litestream_restores_what_pyrep_wrote_to_a_bucket(
    in_bucket: Keys, tmp_path: Path, start_app: StartApp
) -> None:
    # By time Litestream first looks at the upload times of OSS, which moto gives in seconds.
    by_time = in_bucket["type"] != "oss"
    pyrep_writes_litestream_restores(in_bucket, tmp_path, start_app, by_time=by_time)


def test_pyrep_restores_what_litestream_wrote_to_a_bucket(
    in_bucket: Keys, tmp_path: Path, start_app: StartApp
) -> None:
    litestream_writes_pyrep_restores(in_bucket, tmp_path, start_app)


def test_a_directory_goes_to_a_bucket_and_back(
    in_bucket: Keys, tmp_path: Path, start_app: StartApp
) -> None:
    secrets = [str(in_bucket[key]) for key in ("account-key",) if key in in_bucket]
    a_directory_goes_there_and_back(in_bucket, tmp_path, start_app, secrets)
