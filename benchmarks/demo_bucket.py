"""A local S3 server for ``make run-s3``, and what a bucket looks like from outside."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from fixtures.servers import S3Server, moto, radosgw

__all__ = ["Bucket", "local_bucket", "tree"]

_NAME = "backups"
_LEVELS = {9: "snapshots"}


@dataclass(frozen=True)
class Bucket:
    """Name a bucket of a running server."""

    server: S3Server
    program: str
    name: str

    def url(self, path: str) -> str:
        """Return the URL of a path; the credentials come from the environment."""
        return self.server.url(self.name, path)


@contextmanager
def local_bucket() -> Iterator[Bucket]:
    """Run an S3 server of this machine: Ceph's radosgw where it is installed, else moto."""
    make, program = (radosgw, "Ceph radosgw") if shutil.which("radosgw") else (moto, "moto")
    print(f"starting    {program}, on a free port of 127.0.0.1")
    with tempfile.TemporaryDirectory(prefix="pyrep-s3-", ignore_cleanup_errors=True) as folder:
        try:
            with make(Path(folder)) as server:
                server.boto.create_bucket(Bucket=_NAME)
                yield Bucket(server, program, _NAME)
        except (pytest.fail.Exception, pytest.skip.Exception) as error:
            sys.exit(f"{program} cannot be run: {error}")


def tree(bucket: Bucket, path: str) -> Iterator[str]:
    """Yield lines that show the bucket: each tenant, its levels, what they hold."""
    found: dict[str, dict[int, list[tuple[str, int]]]] = {}
    pages = bucket.server.boto.get_paginator("list_objects_v2")
    for page in pages.paginate(Bucket=bucket.name, Prefix=f"{path}/"):
        for item in page.get("Contents", []):
            tenant, level, name = item["Key"].removeprefix(f"{path}/").rsplit("/", 2)
            files = found.setdefault(tenant, {}).setdefault(int(level, 16), [])
            files.append((name.removesuffix(".ltx"), item["Size"]))
    yield f"s3://{bucket.name}/{path}/"
    for tenant, levels in sorted(found.items()):
        yield f"    {tenant}/"
        for level, files in sorted(levels.items()):
            first, last = _txid(files[0][0], 0), _txid(files[-1][0], 1)  # as the table has them
            size = sum(size for _, size in files) / 1024
            what = f"txid {first}" if first == last else f"txids {first} to {last}"
            yield (
                f"        {level:04x}/  {len(files):>4} file{'s' * (len(files) != 1):<1}"
                f"{size:>10,.0f} KB  {what:<22} {_LEVELS.get(level, '')}".rstrip()
            )


def _txid(name: str, end: int) -> str:
    return f"{int(name.split('-')[end], 16):x}"
