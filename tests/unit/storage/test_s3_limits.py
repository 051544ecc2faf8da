"""Requests to an S3 server are counted, paced and held back where they are sent."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from fixtures.fakeclock import FakeClock
from fixtures.ltxbytes import build_ltx
from fixtures.scripted import Reply, ScriptedServer, scripted_server
from pyrep.errors import ReplicaThrottledError
from pyrep.ids import TXID
from pyrep.ltxfile import FileInfo
from pyrep.storage.budget import Budget, Counts, Limits
from pyrep.storage.s3 import S3ReplicaClient
from pyrep.storage.s3_config import s3_settings
from pyrep.storage.s3_session import S3Session

DATA = build_ltx(1, 1)
LARGE = DATA + bytes((11 << 20) - len(DATA))
INFO = FileInfo(0, TXID(1), TXID(1), len(DATA))
PUT_OK = Reply(200, {"ETag": '"e"'})
BEGUN = Reply(
    200,
    body=b"<InitiateMultipartUploadResult><UploadId>u</UploadId></InitiateMultipartUploadResult>",
)
DONE = Reply(200, body=b"<CompleteMultipartUploadResult/>")
OPTIONS = {"access-key-id": "AKID", "secret-access-key": "geheim", "concurrency": 1}


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with scripted_server() as running:
        yield running


class Site:
    """Hold a client, the budget it uses and the clock on which that waits."""

    def __init__(self, server: ScriptedServer, **limits: float) -> None:
        self.clock = FakeClock()
        self.budget = Budget(clock=self.clock)
        self.budget.tighten(Limits(**limits))
        options = {**OPTIONS, "bucket": "bucket", "endpoint": server.endpoint}
        settings = s3_settings(url=None, path="db", options=options, environ={})
        self.session = S3Session(settings.account, self.budget)
        self.client = S3ReplicaClient(settings, self.session, release=self.session.close)

    def close(self) -> None:
        self.client.close()

    def write(self, data: bytes = DATA) -> FileInfo:
        return self.client.write_ltx(0, TXID(1), TXID(1), io.BytesIO(data))

    def seconds(self) -> float:
        return self.clock.monotonic() - 1000.0


MakeSite = Callable[..., Site]


@pytest.fixture
def make(server: ScriptedServer) -> Iterator[MakeSite]:
    with ExitStack() as stack:

        def build(**limits: float) -> Site:
            site = Site(server, **limits)
            stack.callback(site.close)
            return site

        yield build


def test_each_part_and_each_retry_is_a_request(server: ScriptedServer, make: MakeSite) -> None:
    site = make(requests=1)
    server.script(BEGUN, Reply(500), *[PUT_OK] * 3, DONE)
    site.write(LARGE)
    assert site.budget.counts == Counts(requests=6)
    assert site.seconds() == pytest.approx(5, abs=0.5)


def test_listings_reads_looks_and_deletions_are_requests(
    server: ScriptedServer, make: MakeSite
) -> None:
    site = make()
    listing = b"<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>"
    body = Reply(200, body=DATA)
    server.script(Reply(200, body=listing), body, Reply(204), Reply(404))
    assert list(site.client.list_ltx(0)) == []
    with site.client.open_ltx(INFO) as stream:
        assert stream.read() == DATA
    site.client.delete_ltx([INFO])
    assert [asked.method for asked in server.asked] == ["GET", "GET", "DELETE", "HEAD"]
    assert site.budget.counts.requests == 4


def test_bytes_are_paced_up_and_down(server: ScriptedServer, make: MakeSite) -> None:
    site = make(bytes=1 << 20)
    server.script(BEGUN, *[PUT_OK] * 3, DONE, Reply(200, body=LARGE))
    site.write(LARGE)
    assert b"".join(asked.body for asked in server.asked[1:4]) == LARGE
    assert site.seconds() == pytest.approx(11, abs=0.2)
    with site.client.open_ltx(INFO) as stream:
        assert stream.read() == LARGE
    assert site.seconds() == pytest.approx(22, abs=0.4)


@pytest.mark.parametrize(
    "complaint",
    [
        Reply(503, body=b"<Error><Code>SlowDown</Code></Error>"),
        Reply(429),
        Reply(400, body=b"<Error><Code>RequestLimitExceeded</Code></Error>"),
    ],
)
def test_a_complaint_makes_all_of_an_endpoint_pause(
    server: ScriptedServer, make: MakeSite, complaint: Reply
) -> None:
    site = make()
    server.script(complaint, PUT_OK)
    with pytest.raises(ReplicaThrottledError):
        site.write()
    assert site.seconds() == 0
    site.write()
    assert 0.25 <= site.seconds() <= 0.6
    assert site.budget.counts == Counts(requests=2, throttled=1)


def test_a_complaint_about_one_object_of_a_batch_counts(
    server: ScriptedServer, make: MakeSite
) -> None:
    site = make()
    result = "<DeleteResult><Error><Key>k</Key><Code>SlowDown</Code></Error></DeleteResult>"
    server.script(Reply(200, body=result.encode()))
    with pytest.raises(ReplicaThrottledError):
        site.client.delete_ltx([FileInfo(0, TXID(n), TXID(n)) for n in (1, 2)])
    assert site.budget.counts.throttled == 1


def test_the_storage_says_when_to_come_back_and_parts_are_thrown_away_at_once(
    server: ScriptedServer, make: MakeSite
) -> None:
    site = make()
    server.script(BEGUN, PUT_OK, Reply(503, {"Retry-After": "60"}), Reply(204))
    with pytest.raises(ReplicaThrottledError, match=r"wants a pause of 5\d seconds"):
        site.write(LARGE)
    methods = [asked.method for asked in server.asked]
    assert methods == ["POST", "PUT", "PUT", "DELETE"]  # not asked again, and aborted in the pause
    assert site.seconds() < 10
    site.clock.advance(60)
    server.script(PUT_OK)
    site.write()
