"""The limits of a configuration hold for all its databases together."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from fixtures.app import App
from fixtures.bucket_host import BucketHost
from fixtures.http_proxy import HTTPProxy
from fixtures.servers import S3Server

pytestmark = pytest.mark.s3

TENANTS = tuple(f"{number}.db" for number in range(8))
RATE = 20
ALLOWANCE = 1.5  # the first requests may have come late


def test_requests_of_all_databases_are_spaced(moto_server: S3Server, tmp_path: Path) -> None:
    with HTTPProxy(int(moto_server.endpoint.rpartition(":")[2])) as proxy:
        near = replace(moto_server, endpoint=f"http://127.0.0.1:{proxy.port}")
        limits = {"requests_per_second": RATE, "bytes_per_second": "1MiB"}
        bucket = moto_server.make_bucket()
        with BucketHost(tmp_path, near, bucket=bucket, replica=limits) as host:
            for name in TENANTS:
                with App(host.data / name) as app:
                    app.execute("create table t (v)")
            done = host.pyrep("replicate", "-config", str(host.config), "-once")
            assert done.returncode == 0, done.stdout + done.stderr
            times = [request.at for request in proxy.seen]
            assert proxy.count("LIST") == 10 * len(TENANTS)
            assert proxy.count("PUT") > len(TENANTS)  # the first ones find out about create-only
            assert len(times) / (times[-1] - times[0]) <= RATE * ALLOWANCE
            assert len(host.replica_files()) == len(TENANTS)
        moto_server.close()
