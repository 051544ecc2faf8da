"""Two daemons on one replica path in a bucket: one goes on, the other is fenced and says so."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from fixtures.app import App, checkpointed_copy
from fixtures.bucket_host import BucketHost
from fixtures.effort import wait_until
from fixtures.servers import S3Server

pytestmark = [pytest.mark.s3, pytest.mark.slow, pytest.mark.interop]

NAME = "a.db"
QUICK = {
    "entry": {"monitor_interval": "100ms"},
    "replica": {"sync_interval": "100ms"},
    "levels": [{"interval": "500ms"}, {"interval": "1s"}],
    "snapshot": {"interval": "2s"},
}


class Bucket:
    """Look at a bucket again and again: what is there never changes."""

    def __init__(self, host: BucketHost) -> None:
        self.host = host
        self.seen: dict[str, str] = {}

    def look(self) -> int:
        """Compare every object with what it was; return how many have been seen by now."""
        now = self.host.etags()
        changed = {key for key, etag in now.items() if self.seen.get(key, etag) != etag}
        assert changed == set(), "an object was overwritten"
        self.seen |= now
        return len(self.seen)

    def newest(self) -> int:
        """Return the highest TXID of level 0."""
        self.look()
        return max(int(key.rpartition("-")[2].split(".")[0], 16) for key in self.seen)


@contextmanager
def two_hosts(tmp_path: Path, server: S3Server) -> Iterator[tuple[BucketHost, BucketHost]]:
    with ExitStack() as stack:
        folders = [tmp_path / "first", tmp_path / "second"]
        for folder in folders:
            folder.mkdir()
        first = stack.enter_context(BucketHost(folders[0], server, **QUICK))
        second = stack.enter_context(BucketHost(folders[1], server, bucket=first.bucket, **QUICK))
        yield first, second


def commit(app: App, times: int = 1) -> None:
    for _ in range(times):
        app.execute("insert into t (a) values (randomblob(3000))")


def start_app(stack: ExitStack, host: BucketHost) -> App:
    app = stack.enter_context(App(host.data / NAME))
    app.execute("create table if not exists t (id integer primary key, a)")
    return app


def write_until(apps: list[App], bucket: Bucket, condition: Callable[[], bool], what: str) -> None:
    """Write to every database until something has happened."""

    def step() -> bool:
        for app in apps:
            commit(app)
        bucket.look()
        return condition()

    wait_until(step, what, timeout=60.0)


def fenced(host: BucketHost) -> bool:
    return host.status().get(NAME, {}).get("status") == "fenced"


def expect_fenced(host: BucketHost, why: str) -> None:
    """Require one clear error."""
    (line,) = [line for line in host.about(NAME) if "lineage" in str(line)]
    assert line["level"] == "ERROR"
    assert why in line["error"]
    assert "pyrep reset -take-over" in line["hint"]
    host.stop()


def ship_first(stack: ExitStack, first: BucketHost, bucket: Bucket) -> App:
    app = start_app(stack, first)
    first.start()
    write_until([app], bucket, lambda: len(bucket.seen) > 6, "the first daemon ships")
    return app


def test_a_second_daemon_with_a_database_of_its_own_is_fenced(
    radosgw_server: S3Server, tmp_path: Path
) -> None:
    with ExitStack() as stack:
        first, second = stack.enter_context(two_hosts(tmp_path, radosgw_server))
        bucket = Bucket(first)
        app = ship_first(stack, first, bucket)
        other = start_app(stack, second)
        second.start()
        write_until([app, other], bucket, lambda: fenced(second), "the second is fenced")
        before = bucket.newest()
        write_until([app, other], bucket, lambda: bucket.newest() > before + 4, "the first goes on")
        expect_fenced(second, "the replica is not ours: it belongs to lineage")
        app.exit()
        first.wait_shipped(NAME)
        assert first.stop() == 0, first.text()
        assert first.problems() == []
        bucket.look()
        first.expect_equal([NAME])


def test_a_second_daemon_with_a_copy_of_the_database_is_fenced(
    radosgw_server: S3Server, tmp_path: Path
) -> None:
    """Copy the database while it is quiet: without state of its own the second adopts."""
    with ExitStack() as stack:
        first, second = stack.enter_context(two_hosts(tmp_path, radosgw_server))
        bucket = Bucket(first)
        app = ship_first(stack, first, bucket)
        app.exit()
        first.wait_shipped(NAME)
        checkpointed_copy(first.data / NAME, second.data / NAME)
        second.start()
        adopted = "adopted the replica: its newest state equals the database"
        second.wait_for(lambda: bool(second.lines(adopted)), "the second adopts")
        one_is_fenced(stack, first, second, bucket)


def test_a_second_daemon_with_a_copy_of_all_is_fenced(
    radosgw_server: S3Server, tmp_path: Path
) -> None:
    """Copy database and state, as a cloned machine has them."""
    with ExitStack() as stack:
        first, second = stack.enter_context(two_hosts(tmp_path, radosgw_server))
        bucket = Bucket(first)
        app = ship_first(stack, first, bucket)
        app.exit()
        first.wait_shipped(NAME)
        assert first.stop() == 0, first.text()
        shutil.copytree(first.data, second.data, dirs_exist_ok=True)
        first.start()
        second.start()
        for host in (first, second):
            host.wait_for(lambda host=host: NAME in host.status(), "it is taken in")
        one_is_fenced(stack, first, second, bucket)


def one_is_fenced(stack: ExitStack, first: BucketHost, second: BucketHost, bucket: Bucket) -> None:
    """Write to both until one is fenced; the other's restores equal its database."""
    apps = {host: start_app(stack, host) for host in (first, second)}
    write_until(
        list(apps.values()), bucket, lambda: fenced(first) or fenced(second), "one is fenced"
    )
    winner, loser = (first, second) if fenced(second) else (second, first)
    before = bucket.newest()
    write_until(
        list(apps.values()), bucket, lambda: bucket.newest() > before + 4, "the other goes on"
    )
    assert not fenced(winner)
    expect_fenced(loser, "another pyrep process, with a copy of this database, writes to")
    apps[winner].exit()
    winner.wait_shipped(NAME)
    assert winner.stop() == 0, winner.text()
    bucket.look()
    winner.expect_equal([NAME])
