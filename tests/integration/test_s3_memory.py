"""A snapshot of any size goes to a bucket and comes back in constant memory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fixtures.app import App, pages_equal
from fixtures.servers import S3Server
from fixtures.sources import ROOT

_MIB = 300
_ALLOWED_KB = 64 << 10
_CORPUS = ROOT / "benchmarks" / "corpus.py"
# A process's peak begins with its parent's at the fork: this parent is a small one.
_PEAK = (
    "import resource, subprocess, sys; code = subprocess.call(sys.argv[1:]); "
    "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); sys.exit(code)"
)


def peak_kb(server: S3Server, *words: str) -> int:
    """Run a command line of pyrep and return its peak memory."""
    done = subprocess.run(
        [sys.executable, "-c", _PEAK, sys.executable, "-m", "pyrep", *words],
        env={**os.environ, **server.environ},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return int(done.stdout.splitlines()[-1])


def up_and_down(server: S3Server, folder: Path, database: Path) -> tuple[int, int]:
    """Replicate a database and restore it; return the peak memory of both."""
    url = server.url(server.make_bucket(), "db")
    config = folder / f"{database.stem}.yml"
    config.write_text(
        f"state-dir: {folder}/{database.stem}-state\n"
        f"dbs:\n  - path: {database}\n    replica:\n      url: {url}\n"
    )
    up = peak_kb(server, "replicate", "-config", str(config), "-once")
    output = database.with_suffix(".out")
    down = peak_kb(server, "restore", "-o", str(output), url)
    assert pages_equal(database, output)
    output.unlink()
    server.close()
    return up, down


@pytest.mark.slow
@pytest.mark.large
@pytest.mark.s3
def test_memory_does_not_grow_with_the_database(radosgw_server: S3Server, tmp_path: Path) -> None:
    small, large = tmp_path / "small.db", tmp_path / "large.db"
    with App(small) as app:
        app.script("create table t (a); insert into t values (randomblob(3000))")
    command = [sys.executable, str(_CORPUS), "mixed", str(large), "--mib", str(_MIB)]
    environ = {**os.environ, "PYTHONPATH": str(ROOT / "tests")}
    subprocess.run(command, env=environ, check=True)
    base = up_and_down(radosgw_server, tmp_path, small)
    peak = up_and_down(radosgw_server, tmp_path, large)
    grown = [(after - before) >> 10 for before, after in zip(base, peak, strict=True)]
    print(f"base {[kb >> 10 for kb in base]} MB, with {_MIB} MB {[kb >> 10 for kb in peak]} MB")
    assert max(after - before for before, after in zip(base, peak, strict=True)) <= _ALLOWED_KB, (
        grown
    )
