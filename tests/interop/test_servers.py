"""Litestream and pyrep on one replica of a server, both ways: all storages but files."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
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
NAMES = ("db1.db", "team a/db#2.db")
PATH = "prod/team a/db.db"


@dataclass(frozen=True)
class Place:
    """Hold a place of its own on a server, as the keys of a replica.

    ``files`` gives the names of all files below it, as the server has them; ``by_time`` says
    whether Litestream knows their times to the millisecond.
    """

    replica: Keys
    files: Callable[[], Iterable[str]]
    by_time: bool
    secret: str = "S3CRET"


def in_folder(replica: Keys, folder: Path) -> Place:
    def files() -> list[str]:
        return [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]

    return Place(replica, files, by_time=False)


def on_sftp(server: SFTPServer, folder: Path) -> Place:
    # Litestream asks for the key types in an order of its own, whatever key it was told.
    options = server.options(host_key=server.host_key("hostkey_rsa"), password="S3CRET")
    path = folder / "replica/team a"
    return in_folder({"type": "sftp", "path": str(path), **options}, path)


def on_webdav(server: WebDAVServer, folder: Path) -> Place:
    path = f"{folder.name}/team a"
    replica = {"type": "webdav", "path": f"/{path}", **server.options()}
    return in_folder(replica, server.data / path)


def on_nats(server: NATSServer, folder: Path) -> Place:
    bucket = server.make_bucket()
    # Litestream takes a user from the keys only.
    replica = {"type": "nats", **server.keys(bucket)}
    return Place(replica, lambda: server.objects(bucket), by_time=True)


def in_bucket(server: Any, folder: Path, *, by_time: bool = True) -> Place:
    bucket = server.make_bucket()
    spec = server.spec(bucket, PATH)
    secrets = [spec.options.get(key) for key in ("account-key", "secret-access-key")]
    return Place(
        {"type": spec.type, "path": PATH, **spec.options},
        lambda: [name.removeprefix(f"{PATH}/") for name in server.objects(bucket)],
        by_time=by_time,
        secret=next(filter(None, secrets), "no secret"),
    )


# By time Litestream first looks at the upload times of S3 and OSS, which moto gives in seconds.
in_moto = partial(in_bucket, by_time=False)
KINDS: dict[str, tuple[str, str, Callable[[Any, Path], Place]]] = {
    "sftp": ("sftp", "sftp_server", on_sftp),
    "webdav": ("webdav", "webdav_server", on_webdav),
    "nats": ("nats", "nats", on_nats),
    "gcs": ("gcs", "gcs_server", in_bucket),
    "abs": ("abs", "abs_server", in_bucket),
    "oss": ("oss", "oss_server", in_moto),
    "moto": ("s3", "moto_server", in_moto),
    "radosgw": ("s3", "radosgw_server", in_bucket),
}


@pytest.fixture(
    scope="session",
    params=[pytest.param(kind, marks=getattr(pytest.mark, KINDS[kind][0])) for kind in KINDS],
)
def running(request: pytest.FixtureRequest) -> tuple[str, Any]:
    return request.param, request.getfixturevalue(KINDS[request.param][1])


@pytest.fixture
def place(
    running: tuple[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Place]:
    kind, server = running
    mark, _, make = KINDS[kind]
    if mark in ("gcs", "abs", "oss"):
        for name, value in server.environ.items():
            monkeypatch.setenv(name, value)
    yield make(server, tmp_path)
    if make in (in_bucket, in_moto):
        server.close()


def client_of(replica: Keys) -> Any:
    """Return a client of a replica that is given by its keys."""
    options = {key: v for key, v in replica.items() if key not in ("type", "path", "url")}
    spec = ReplicaSpec(replica["type"], replica.get("path", ""), replica.get("url"), options)
    return connect(spec)


def test_litestream_restores_what_pyrep_wrote(
    place: Place, tmp_path: Path, start_app: StartApp
) -> None:
    db = tmp_path / "theirs"
    entry = {"path": str(db), "replica": place.replica}
    config = litestream.write_config(tmp_path / "litestream.json", [entry])
    theirs = partial(litestream.restore, db, config=config)
    with ExitStack() as stack:
        client = stack.enter_context(closing(client_of(place.replica)))
        rig = Rig(tmp_path, client=client)
        stack.callback(rig.close)
        app = start_app(rig.db)
        app.execute("create table t (id integer primary key, a)")
        truths, times = {}, {}
        for _ in range(6):
            app.execute("insert into t (a) values (randomblob(3000))")
            rig.ship()
            truths[int(rig.durable)] = rig.truth()
            times[int(rig.durable)] = rig.acknowledged[-1].timestamp_ms
        for txid, truth in truths.items():
            out = theirs(tmp_path / f"theirs-{txid}.db", txid=txid)
            assert differing_pages(out, truth) == []
        out = theirs(tmp_path / "theirs.db")
        assert differing_pages(out, list(truths.values())[-1]) == []
        middle = list(truths)[3]
        if place.by_time:
            # Litestream restores what is older than the time it is given.
            out = theirs(tmp_path / "theirs-at.db", timestamp=from_ms(times[middle] + 1))
            assert differing_pages(out, truths[middle]) == []
        out = tmp_path / "ours-at.db"
        restore(client, out, RestoreOptions(timestamp_ms=times[middle]))
        assert differing_pages(out, truths[middle]) == []


def test_pyrep_restores_what_litestream_wrote(
    place: Place, tmp_path: Path, start_app: StartApp
) -> None:
    db = tmp_path / "tenant.db"
    app = start_app(db)
    app.execute("create table t (id integer primary key, a)")
    entry = {"path": str(db), "replica": place.replica}
    config = litestream.write_config(tmp_path / "litestream.json", [entry])
    for _ in range(3):
        app.execute("insert into t (a) values (randomblob(9000))")
        litestream.once(config)
    app.checkpoint("truncate")
    truth = checkpointed_copy(db, tmp_path / "truth.db")
    with closing(client_of(place.replica)) as client:
        restore(client, tmp_path / "ours.db")
        files = [info for level in (0, 9) for info in client.list_ltx(level)]
        exact = [info for level in (0, 9) for info in client.list_ltx(level, exact_times=True)]
    assert files
    assert [(one.level, one.min_txid, one.size) for one in files] == [
        (one.level, one.min_txid, one.size) for one in exact
    ]
    assert differing_pages(tmp_path / "ours.db", truth) == []


def test_a_directory_goes_there_and_back(place: Place, tmp_path: Path, start_app: StartApp) -> None:
    a_directory_goes_there_and_back(place.replica, tmp_path, start_app, place.secret)
    assert tenants(place.files()) == set(NAMES)


def a_directory_goes_there_and_back(
    replica: Keys, folder: Path, start_app: StartApp, secret: str
) -> None:
    """Run the command line: a directory to a server and back, one by one and all at once."""
    for name in NAMES:
        path = folder / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        app = start_app(path)
        app.execute("create table t (a)")
        app.execute("insert into t values (?)", (name,))
    entry = {"dir": str(folder / "data"), "pattern": "*.db", "recursive": True}
    config = folder / "pyrep.yml"
    config.write_text(json.dumps({"dbs": [{**entry, "replica": replica}]}))
    done = pyrep("replicate", "-config", config, "-once")
    assert (done.code, done.error) == (0, "")
    assert "not built yet" not in done.out + done.err
    for number, name in enumerate(NAMES):
        out = folder / f"out{number}.db"
        assert pyrep("restore", "-config", config, "-o", out, folder / "data" / name).code == 0
        assert row_counts(out) == {"t": 1}
    listed = pyrep("ltx", "-config", config, "-json", folder / "data" / NAMES[0])
    assert [file["level"] for file in listed.json["files"]] == [0]
    everything = pyrep("restore", "-config", config, "-all", "-o", folder / "all")
    assert everything.code == 0, everything.out + everything.err
    for name in NAMES:
        assert row_counts(folder / "all" / name) == {"t": 1}
    checked = pyrep("config", "check", "-config", config)
    assert checked.code == 0
    assert secret not in done.out + done.err + checked.out + checked.err


def tenants(files: Iterable[str]) -> set[str]:
    """Return whose the files are, all of them LTX files of level 0."""
    found = [re.fullmatch(r"(.+)/(ltx/0|0000)/[-0-9a-f]+\.ltx", name) for name in files]
    return {"" if match is None else match[1] for match in found}


@pytest.mark.nats
def test_a_bucket_key_with_a_url_that_has_none(
    nats: NATSServer, tmp_path: Path, start_app: StartApp
) -> None:
    bucket = nats.make_bucket()
    url = f"nats://127.0.0.1:{nats.port}"
    replica = {"type": "nats", **nats.options, "url": url, "bucket": bucket}
    a_directory_goes_there_and_back(replica, tmp_path, start_app, "S3CRET")
    assert tenants(nats.objects(bucket)) == set(NAMES)


@pytest.mark.webdav
def test_a_url_with_user_and_password(
    webdav_server: WebDAVServer, tmp_path: Path, start_app: StartApp
) -> None:
    url = f"webdav://u:S3CRET@127.0.0.1:{webdav_server.port}/{tmp_path.name}"
    a_directory_goes_there_and_back({"url": url}, tmp_path, start_app, "S3CRET")
    folder = webdav_server.data / tmp_path.name
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert tenants(str(path.relative_to(folder)) for path in files) == set(NAMES)
