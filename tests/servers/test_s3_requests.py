"""What a bucket is asked for, counted on the way: nothing while nothing changes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from fixtures.app import App
from fixtures.request_counts import FULL, SHORT, Counts, Intervals, measure, table
from fixtures.servers import S3Server

pytestmark = pytest.mark.s3


def expect_few_requests(
    found: Mapping[str, Counts], capsys: pytest.CaptureFixture[str], intervals: Intervals
) -> None:
    with capsys.disabled():
        print(f"\n{table(found, intervals)}")
    pyrep, litestream = found["pyrep"], found["litestream"]
    assert pyrep.idle == Counter()
    assert litestream.idle["LIST"] > 0  # so the window was one in which something could be asked
    assert pyrep.busy["PUT"] == sum(pyrep.files.values()), pyrep  # each file once
    assert 0 < pyrep.files["0000"] <= pyrep.commits
    assert pyrep.files["0001"] > 0
    # A merge reads what is not staged any more, each file once.
    assert pyrep.busy["GET"] <= pyrep.files["0001"] + pyrep.files["0002"], pyrep
    assert pyrep.busy["HEAD"] <= 1  # the endpoint's first deletion is proven
    assert set(pyrep.busy) <= {"PUT", "GET", "HEAD", "DELETE", "BATCH"}, pyrep
    assert pyrep.busy["PUT"] <= litestream.busy["PUT"] + litestream.busy["LIST"]


def test_an_idle_tenant_asks_nothing_a_busy_one_little(
    moto_server: S3Server,
    tmp_path: Path,
    start_app: Callable[..., App],
    capsys: pytest.CaptureFixture[str],
) -> None:
    expect_few_requests(measure(tmp_path, moto_server, SHORT, start_app), capsys, SHORT)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_the_same_at_a_twentieth_of_every_interval(
    radosgw_server: S3Server,
    tmp_path: Path,
    start_app: Callable[..., App],
    capsys: pytest.CaptureFixture[str],
) -> None:
    expect_few_requests(measure(tmp_path, radosgw_server, FULL, start_app), capsys, FULL)
