"""What only S3 servers do: files in several parts, metadata, credentials that another tool sees."""

from __future__ import annotations

import io
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager

import pytest

from fixtures.clients import Calling
from fixtures.ltxbytes import build_ltx
from fixtures.servers import S3Server
from pyrep.errors import ReplicaExistsError
from pyrep.ids import TXID
from pyrep.ltxfile import FileInfo
from pyrep.storage.base import ReplicaClient
from pyrep.storage.registry import connect
from pyrep.storage.search import find_replicas

pytestmark = pytest.mark.s3

KEY = "t/db/0009/0000000000000001-0000000000000003.ltx"
HEAD = build_ltx(1, 3, timestamp_ms=1_700_000_000_123)
LARGE = HEAD + random.Random(8).randbytes((11 << 20) - len(HEAD))


@contextmanager
def replica(server: S3Server) -> Iterator[tuple[ReplicaClient, str]]:
    try:
        bucket = server.make_bucket()
        with closing(connect(server.spec(bucket, "t/db"))) as client:
            yield client, bucket
    finally:
        server.close()


def put(client: ReplicaClient, source: io.BytesIO, *, create_only: bool = False) -> FileInfo:
    return client.write_ltx(9, TXID(1), TXID(3), source, create_only=create_only)


def large_files_go_up_in_parts(server: S3Server) -> None:
    with replica(server) as (client, bucket):
        info = put(client, io.BytesIO(LARGE), create_only=True)
        assert info == FileInfo(9, TXID(1), TXID(3), len(LARGE), 1_700_000_000_123)
        assert list(client.list_ltx(9, exact_times=True)) == [info]
        with client.open_ltx(info) as stream:
            assert stream.read() == LARGE
        with client.open_ltx(info, (5 << 20) - 3, 7) as stream:  # over the seam of two parts
            assert stream.read() == LARGE[(5 << 20) - 3 : (5 << 20) + 4]
        with pytest.raises(ReplicaExistsError):
            put(client, io.BytesIO(LARGE), create_only=True)
        assert put(client, io.BytesIO(LARGE)) == info
        head = server.boto.head_object(Bucket=bucket, Key=KEY)
        assert head["Metadata"] == {"litestream-timestamp": "2023-11-14T22:13:20.123Z"}
        assert not server.boto.list_multipart_uploads(Bucket=bucket).get("Uploads")


def a_failing_source_leaves_no_parts(server: S3Server) -> None:
    def fail() -> None:
        raise OSError("the source's disk")

    with replica(server) as (client, bucket):
        with pytest.raises(OSError, match="the source's disk"):
            put(client, Calling(LARGE, 10 << 20, fail))
        assert not server.boto.list_multipart_uploads(Bucket=bucket).get("Uploads")
        assert server.objects(bucket) == {}


@pytest.mark.slow
def test_more_tenants_than_a_page_are_found(radosgw_server: S3Server) -> None:
    """Find more than 1,000 tenants, and one whose level 0 has more than 1,000 files."""
    server = radosgw_server
    tenants = [f"{n:04} #{n % 7}.db" for n in range(1003)]
    with replica(server) as (_, bucket):
        keys = [f"all/{tenant}/0000/{1:016x}-{1:016x}.ltx" for tenant in tenants]
        keys += [f"all/busy.db/0000/{n:016x}-{n:016x}.ltx" for n in range(1, 1002)]
        keys += [f"all/busy.db/0000/{n:04}.tmp" for n in range(3)]

        def store(key: str) -> None:
            server.boto.put_object(Bucket=bucket, Key=key, Body=HEAD)

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(store, keys))
        with closing(connect(server.spec(bucket, "all"))) as client:
            found = find_replicas(client)
        assert found.failures == ()
        assert list(found.replicas) == sorted([*tenants, "busy.db"])


def test_large_files_on_moto(moto_server: S3Server) -> None:
    large_files_go_up_in_parts(moto_server)
    a_failing_source_leaves_no_parts(moto_server)


def test_large_files_on_radosgw(radosgw_server: S3Server) -> None:
    large_files_go_up_in_parts(radosgw_server)
    a_failing_source_leaves_no_parts(radosgw_server)


def test_large_files_on_swift(swift_server: S3Server) -> None:
    large_files_go_up_in_parts(swift_server)
    a_failing_source_leaves_no_parts(swift_server)
