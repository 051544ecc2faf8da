"""A daemon behind a proxy that breaks requests: all is recovered, nothing is lost."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path

import pytest

from fixtures import effort
from fixtures.app import App, db_digest, integrity
from fixtures.bucket_host import BucketHost
from fixtures.http_proxy import HTTPProxy, Trouble, seeded
from fixtures.servers import S3Server
from pyrep import ltxio
from pyrep.ids import SNAPSHOT_LEVEL
from pyrep.ltxfile import FileInfo
from pyrep.restore.execute import RestoreOptions, restore
from pyrep.storage.base import ReplicaClient
from pyrep.storage.registry import connect
from pyrep.storage.retry import PATIENT

pytestmark = pytest.mark.s3

TENANTS = ("a.db", "sub/b.db", "c d.db")
PUTS = 300
SEEDS = range(1, effort.times(1) + 1)
FAST = {
    "levels": [{"interval": "1s"}, {"interval": "3s"}],
    "snapshot": {"interval": "5s", "retention": "1h"},
    "shutdown_sync_timeout": "60s",
}


@pytest.fixture(scope="session")
def server(request: pytest.FixtureRequest) -> S3Server:
    """Return the server that checks signatures where it is installed, else the emulator."""
    name = "radosgw_server" if shutil.which("radosgw") else "moto_server"
    return request.getfixturevalue(name)  # type: ignore[no-any-return]


@pytest.fixture
def proxy(server: S3Server) -> Iterator[HTTPProxy]:
    with HTTPProxy(int(server.endpoint.rpartition(":")[2])) as running:
        yield running


def through(proxy: HTTPProxy, server: S3Server) -> S3Server:
    return replace(server, endpoint=f"http://127.0.0.1:{proxy.port}")


def files_of(client: ReplicaClient) -> list[FileInfo]:
    return [info for level in range(SNAPSHOT_LEVEL + 1) for info in client.list_ltx(level)]


def expect_no_position_ahead(host: BucketHost, server: S3Server) -> None:
    """Require that what counts as replicated is in the bucket."""
    for name, entry in host.status().items():
        with closing(connect(server.spec(host.bucket, host.place(name)))) as client:
            top = max((info.max_txid for info in files_of(client)), default=0)
        assert int(entry["durable_txid"], 16) <= top, (name, entry)


def expect_every_state(client: ReplicaClient, source: Path, out: Path, txids: list[int]) -> None:
    """Require that each TXID restores to the rows up to some number, never fewer than before."""
    rows = 0
    for txid in txids:
        restore(client, out, RestoreOptions(txid=txid))
        with closing(sqlite3.connect(f"file:{out}?immutable=1", uri=True)) as db:
            ((count, last),) = db.execute("select count(*), coalesce(max(id), 0) from t")
        assert count == last >= rows, txid
        rows = count
        if txid == txids[-1]:
            assert integrity(out) == ["ok"]
            assert db_digest(out) == db_digest(source)
        out.unlink()


def write_until(host: BucketHost, proxy: HTTPProxy, server: S3Server, apps: list[App]) -> None:
    """Commit to each database in turn until enough files went up; look at positions meanwhile."""
    checked = 0
    while (puts := proxy.count("PUT")) < PUTS:
        for app in apps:
            app.execute("insert into t (v) values (randomblob(800))")
        if puts >= checked + PUTS // 4:
            checked = puts
            expect_no_position_ahead(host, server)
        host.wait_for(lambda puts=puts: proxy.count("PUT") >= puts + 2, "it goes on")


@pytest.mark.parametrize("seed", SEEDS)
def test_all_troubles_are_recovered(
    server: S3Server, proxy: HTTPProxy, tmp_path: Path, start_app: Callable[..., App], seed: int
) -> None:
    bucket = server.make_bucket()
    near = through(proxy, server)
    with BucketHost(tmp_path, near, bucket=bucket, replica={"sync_interval": "50ms"}, **FAST) as h:
        h.server = server
        apps = []
        for name in TENANTS:
            (h.data / name).parent.mkdir(parents=True, exist_ok=True)
            app = start_app(h.data / name)
            app.execute("create table t (id integer primary key, v blob)")
            apps.append(app)
        proxy.plan = seeded(seed)
        h.start()
        write_until(h, proxy, server, apps)
        assert h.stop() == 0, h.text()
        expect_everything(h, proxy, server, near, tmp_path)


def expect_everything(
    host: BucketHost, proxy: HTTPProxy, server: S3Server, near: S3Server, folder: Path
) -> None:
    """Require that every object is whole, every TXID restores, and that a bad line is no excuse."""
    for name in TENANTS:
        status = host.status()[name]
        assert status["local_txid"] == status["durable_txid"], status
        with ExitStack() as stack:
            spec = server.spec(host.bucket, host.place(name))
            client = stack.enter_context(closing(connect(spec)))
            files = files_of(client)
            for info in files:
                with client.open_ltx(info) as stream:
                    ltxio.verify(stream, name=info.name)
            txids = sorted(info.max_txid for info in files if info.level == 0)
            assert txids == list(range(1, int(status["durable_txid"], 16) + 1))
            source = host.data / name
            expect_every_state(client, source, folder / "each", txids)
            bad = connect(near.spec(host.bucket, host.place(name)), policy=PATIENT)
            stack.enter_context(closing(bad))
            expect_every_state(bad, source, folder / "bad", txids[-1:])
            while name == TENANTS[-1] and set(proxy.troubles()) != set(Trouble):
                expect_every_state(bad, source, folder / "bad", txids[-1:])
