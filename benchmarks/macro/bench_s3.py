"""What a bucket costs: CPU per PUT, PUTs a second, snapshot and restore, pyrep beside Litestream.

Question: how much of a core does a small upload take, how many fit into a second, and how fast does
a large database reach a bucket and come back?  A local server (Ceph radosgw where it is installed,
else moto) takes everything, so its speed bounds both programs; CPU is that of the client alone.
The small uploads are also made with botocore's own client.  Restores are compared with their
source before a time counts.  Ratios of one run count; absolute figures move with the machine.

usage: bench_s3.py [--mib 2048] [--puts 500] [--seconds 10]
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from fixtures.app import pages_equal
from fixtures.effort import wait_until
from fixtures.litestream import program
from fixtures.ltxbytes import build_ltx
from fixtures.servers import S3Server, moto, radosgw
from pyrep.ids import TXID
from pyrep.storage.registry import connect

_STORE_BYTES = 16 << 30
_SMALL = 2000  # bytes of a file, about what one small transaction makes
_INTERVAL = "25ms"
_ABOVE_MB = 64
_CORPUS = Path(__file__).parents[1] / "corpus.py"
_LOAD = Path(__file__).parents[1] / "load.py"
# A process's peak memory begins with its parent's at the fork: this parent is a small one.
_MEASURED = """
import json, resource, subprocess, sys, time
began = time.monotonic()
code = subprocess.call(sys.argv[1:], stdout=sys.stderr)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
seconds = time.monotonic() - began
print(json.dumps([seconds, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024]))
sys.exit(code)
"""


@dataclass(frozen=True)
class Run:
    """Hold what one process took: wall and CPU seconds, peak resident MB."""

    seconds: float
    cpu: float
    mb: float


def _command(tool: str) -> list[str]:
    return [sys.executable, "-m", "pyrep"] if tool == "pyrep" else [str(program())]


def _environ(server: S3Server) -> dict[str, str]:
    kept = {name: text for name, text in os.environ.items() if name != "AWS_CA_BUNDLE"}
    return {**kept, **server.environ}


def _config(tool: str, folder: Path, database: Path, url: str, more: str = "") -> Path:
    state = f"state-dir: {folder}/state\n" if tool == "pyrep" else ""
    config = folder / "config.yml"
    config.write_text(
        f"{state}dbs:\n  - path: {database}\n    monitor-interval: {_INTERVAL}\n"
        f"    replica:\n      url: {url}\n{more}"
    )
    return config


# --- small uploads --------------------------------------------------------------------------------


def measure_puts(server: S3Server, count: int) -> None:
    """Print PUTs a second and CPU per PUT, one after another, of pyrep's client and botocore's."""
    bucket = server.make_bucket()
    bodies = {txid: _small_file(txid) for txid in range(1, count + 1)}

    def by_botocore(txid: int) -> None:
        server.boto.put_object(Bucket=bucket, Key=f"b/{txid}", Body=bodies[txid], IfNoneMatch="*")

    with closing(connect(server.spec(bucket, "p"))) as client:

        def by_pyrep(txid: int) -> None:
            body = io.BytesIO(bodies[txid])
            client.write_ltx(0, TXID(txid), TXID(txid), body, create_only=True)

        rates = {"pyrep": _puts(by_pyrep, count), "botocore": _puts(by_botocore, count)}
        stored = sum(1 for _ in client.list_ltx(0))
    if stored != count:
        sys.exit(f"{stored} of {count} files are in the bucket; nothing is measured")
    for name, (rate, cpu) in rates.items():
        print(f"PUT of {_SMALL} bytes  {name:<10} {rate:6.0f} a second  {cpu:5.2f} CPU-ms each")


def _small_file(txid: int) -> bytes:
    head = build_ltx(txid, txid)
    return head + bytes(max(0, _SMALL - len(head)))


def _puts(put: Callable[[int], None], count: int) -> tuple[float, float]:
    put(1)  # connections, credentials, what the server can do
    began, cpu = time.monotonic(), time.process_time()
    for txid in range(2, count + 1):
        put(txid)
    done = count - 1
    return done / (time.monotonic() - began), 1000 * (time.process_time() - cpu) / done


# --- one busy database ----------------------------------------------------------------------------


def measure_daemon(server: S3Server, tool: str, folder: Path, seconds: float) -> tuple[int, float]:
    """Replicate a database under load; return the files stored and the daemon's CPU seconds."""
    folder.mkdir()
    bucket, database = server.make_bucket(), folder / "app.db"
    _small_database(database)
    config = _config(
        tool, folder, database, server.url(bucket, "db"), f"      sync-interval: {_INTERVAL}\n"
    )
    with _running(tool, config, _environ(server), folder / "log") as process:
        stored = partial(_stored, server, bucket)
        wait_until(lambda: stored() > 0, "the first file is stored", timeout=60.0)
        before, files = _cpu_seconds(process.pid), stored()
        flags = ["--rate=100", "--workers=1", f"--duration={seconds:g}"]
        subprocess.run([sys.executable, str(_LOAD), str(database), *flags], check=True,
                       stdout=subprocess.DEVNULL)  # fmt: skip
        return stored() - files, _cpu_seconds(process.pid) - before


def _small_database(path: Path) -> None:
    command = [sys.executable, str(_LOAD), str(path), "--duration=0.01"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


@contextmanager
def _running(
    tool: str, config: Path, environ: Mapping[str, str], log: Path
) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as out:
        command = [*_command(tool), "replicate", "-config", str(config)]
        process = subprocess.Popen(command, env=environ, stdout=out, stderr=out)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60.0)


def _stored(server: S3Server, bucket: str) -> int:
    pages = server.boto.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix="db/0000/")
    return sum(page["KeyCount"] for page in pages)


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# --- one large database ---------------------------------------------------------------------------


def measure_large(server: S3Server, tool: str, source: Path, folder: Path) -> tuple[Run, Run]:
    """Replicate a copy of ``source`` once and restore it; return both runs."""
    folder.mkdir()
    database, output = folder / "app.db", folder / "out.db"
    shutil.copyfile(source, database)
    url = server.url(server.make_bucket(), "db")
    config = _config(tool, folder, database, url)
    environ = _environ(server)
    up = _measured([*_command(tool), "replicate", "-config", str(config), "-once"], environ)
    down = _measured([*_command(tool), "restore", "-o", str(output), url], environ)
    if not pages_equal(source if tool == "pyrep" else database, output):
        sys.exit(f"{tool}: the restore differs from the database; nothing is measured")
    shutil.rmtree(folder)
    return up, down


def _measured(command: list[str], environ: Mapping[str, str]) -> Run:
    os.sync()  # what was prepared is not to be written back on this program's time
    done = subprocess.run(
        [sys.executable, "-c", _MEASURED, *command],
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return Run(*json.loads(done.stdout.splitlines()[-1]))


def _text(run: Run, mib: float) -> str:
    return (
        f"{run.seconds:6.2f} s {mib / run.seconds:5.0f} MiB/s {run.cpu:6.2f} CPU-s {run.mb:4.0f} MB"
    )


def _row(name: str, runs: dict[str, Run], mib: float) -> None:
    ours, theirs = runs["pyrep"], runs["litestream"]
    faster, less = theirs.seconds / ours.seconds, theirs.cpu / ours.cpu
    print(
        f"{name:<10} pyrep {_text(ours, mib)}   litestream {_text(theirs, mib)}   "
        f"{faster:.1f} times faster, {less:.1f} times less CPU"
    )


# --- all ------------------------------------------------------------------------------------------


@contextmanager
def _server(folder: Path) -> Iterator[S3Server]:
    ceph = shutil.which("radosgw") is not None
    make = partial(radosgw, store_bytes=_STORE_BYTES) if ceph else moto
    try:
        with make(folder) as server:
            print(f"server: {'Ceph radosgw, in memory' if ceph else 'moto'}, on this machine")
            yield server
    except (pytest.fail.Exception, pytest.skip.Exception) as error:
        sys.exit(f"the server cannot be run: {error}")


def main() -> None:
    """Run everything and print the rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mib", type=int, default=2048, help="size of the large database")
    parser.add_argument("--puts", type=int, default=500)
    parser.add_argument("--seconds", type=float, default=10.0, help="load on the busy database")
    wanted = parser.parse_args()
    tools = ("pyrep", "litestream")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pyrep-bench-")))
        (folder / "server").mkdir()
        server = stack.enter_context(_server(folder / "server"))
        measure_puts(server, wanted.puts)
        for tool in tools:
            files, cpu = measure_daemon(server, tool, folder / f"busy-{tool}", wanted.seconds)
            print(
                f"one busy database, {wanted.seconds:g} s: {tool:<10} {files:>5} files  "
                f"{1000 * cpu / max(1, files):5.2f} CPU-ms each, all of the daemon's work"
            )
        small, large = folder / "small.db", folder / "large.db"
        _small_database(small)
        builder = [sys.executable, str(_CORPUS), "mixed", str(large), "--mib", str(wanted.mib)]
        subprocess.run(builder, check=True)
        base = measure_large(server, "pyrep", small, folder / "small")
        runs = {tool: measure_large(server, tool, large, folder / tool) for tool in tools}
        mib = large.stat().st_size / (1 << 20)
        print(f"database of {mib:.0f} MiB")
        for number, name in enumerate(("snapshot", "restore")):
            _row(name, {tool: pair[number] for tool, pair in runs.items()}, mib)
            above = runs["pyrep"][number].mb - base[number].mb
            reached = "reached" if above <= _ABOVE_MB else "MISSED"
            print(f"{name:<10} {above:.0f} MB above a small one, at most {_ABOVE_MB}: {reached}")


if __name__ == "__main__":
    main()
