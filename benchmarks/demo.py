"""Show pyrep at work (``make run``): replicate live databases, then restore every one and compare.

Without ``--dir`` a tree of sample tenants is made, each with a live writer process.  With it the
daemon replicates that directory; the databases themselves are only read and compared.  After
``--for`` seconds or Ctrl-C the writers and the daemon are stopped, every tenant is restored
elsewhere, and a table says whether the restored pages and rows are those of the source.

With ``--s3`` (``make run-s3``) the replica is a bucket of a server that is started for the run. Its
levels form on short intervals, the bucket's tree is shown, and Litestream restores from it too.
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
import threading
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from fixtures.app import checkpointed_copy, db_digest, pages_equal, row_counts

if TYPE_CHECKING:
    from demo_bucket import Bucket

_ROOT = Path(__file__).parents[1]
_LOAD = Path(__file__).with_name("load.py")
_SAMPLES = ("db1.db", "team-a/db2.db", "team-b/east/db3.db", "shared/db4.db")
_WRITES_PER_SECOND = 40
_FIRST_ROWS = 4000
_STOP_SECONDS = 120.0
_S3_SECONDS = 8.0
_S3_PATH = "directory-run"
_SHORT_LEVELS = (
    "levels: [{interval: 1s}, {interval: 2s}, {interval: 4s}]\nsnapshot: {interval: 3s}\n"
)


@dataclass
class Tenant:
    """Hold one database of the run and, for a sample, its writer."""

    path: Path
    name: str
    writer: subprocess.Popen[bytes] | None = None
    report: Path | None = None

    def written(self) -> int:
        """Return how many rows the writer has written so far."""
        lines = self.report.read_text().splitlines() if self.report else []
        return int(json.loads(lines[-1])["writes"]) if lines else 0


@dataclass(frozen=True)
class Progress:
    """Hold what ``pyrep status`` says of one tenant, as text."""

    state: str = "-"
    local: str = "-"
    durable: str = "-"
    lag: str = "-"
    error: str = ""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demonstration; return 1 if a restored database differs or the daemon failed."""
    options = _parse(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # also when piped: the progress is live
    stop = threading.Event()

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, on_signal)
    if not options.s3:
        return _run(options, stop)
    from demo_bucket import local_bucket

    with local_bucket() as bucket:
        os.environ.update(bucket.server.environ)
        options.replica = bucket.url(_S3_PATH)
        return _run(options, stop, bucket)


def _run(options: argparse.Namespace, stop: threading.Event, bucket: Bucket | None = None) -> int:
    """Replicate, restore and compare; return 1 if anything was not as it should be."""
    source, work = _places(options.dir, options.work)
    replica = options.replica or str(work / "replica")
    config = _write_config(work, source, replica, more=_SHORT_LEVELS if bucket else "")
    tenants = _given(source) if options.dir else _samples(source)
    print(f"databases   {source}\nreplica     {replica}")
    print(f"daemon      python -m pyrep replicate -config {config}\nlog         {work}/pyrep.log\n")
    daemon = _start_daemon(work, config)
    try:
        _start_writers(tenants if not options.dir else [], work)
        _watch(tenants, daemon, config, stop, options.seconds)
    finally:
        _stop_writers(tenants)
        code = _stop_daemon(daemon)
    print(f"\nthe daemon has stopped with exit code {code}; restoring every tenant")
    faults = _show_problems(work / "pyrep.log")
    if bucket is not None:
        _show_tree(bucket)
    failures = _restore_and_compare(tenants, config, work, replica if bucket else "")
    print(f"\nconfiguration, state and log are kept in {work}")
    return 1 if failures or code or faults else 0


def _show_tree(bucket: Bucket) -> None:
    from demo_bucket import tree

    print(f"\nthe bucket, as {bucket.program} lists it\n")
    for line in tree(bucket, _S3_PATH):
        print(line)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="show pyrep at work")
    parser.add_argument("--dir", type=Path, help="a directory of live databases")
    parser.add_argument("--replica", help="where the replica goes: a path or a URL")
    parser.add_argument("--for", dest="seconds", type=float, help="stop after so many seconds")
    parser.add_argument("--work", type=Path, help="where configuration, state and log are kept")
    parser.add_argument("--s3", action="store_true", help="replicate to a local S3 server")
    options = parser.parse_args(argv)
    if options.s3:
        if options.replica:
            parser.error("--s3 starts a server of its own: leave out --replica")
        options.seconds = options.seconds or _S3_SECONDS
    if options.dir and not options.dir.is_dir():
        parser.error(f"{options.dir} is no directory")
    if options.replica and "://" not in options.replica:
        options.replica = str(Path(options.replica).resolve())
    return options


def _places(given: Path | None, work: Path | None) -> tuple[Path, Path]:
    """Return the directory of databases and the working directory.

    For a given directory the working directory is always the same, so that the next run knows
    what the last one shipped; for samples it is new.
    """
    if given is not None:
        name = f"run-{zlib.crc32(str(given.resolve()).encode()):08x}"
        work = work or _ROOT / "build" / name
    elif work is None:
        work = Path(tempfile.mkdtemp(prefix="pyrep-run-"))
    work = work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    return (given.resolve() if given else work / "tenants"), work


def _write_config(work: Path, source: Path, replica: str, more: str = "") -> Path:
    """Write the daemon's configuration: state and staged files stay in the working directory."""
    key = "url" if "://" in replica else "path"
    config = work / "pyrep.yml"
    config.write_text(
        f"state-dir: {json.dumps(str(work / 'state'))}\n"
        f"{more}"
        "dbs:\n"
        f"  - dir: {json.dumps(str(source))}\n"
        '    pattern: "*.db"\n'
        "    recursive: true\n"
        "    watch: true\n"
        f"    meta-dir: {json.dumps(str(work / 'meta'))}\n"
        "    replica:\n"
        f"      {key}: {json.dumps(replica)}\n"
    )
    return config


def _samples(source: Path) -> list[Tenant]:
    """Create the sample databases, about 5 MB each."""
    for name in _SAMPLES:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        flags = [f"--fill={_FIRST_ROWS}", "--duration=0.01"]
        command = [sys.executable, str(_LOAD), str(source / name), *flags]
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return [Tenant(source / name, name) for name in _SAMPLES]


def _given(source: Path) -> list[Tenant]:
    """Return the SQLite databases below a directory that match the pattern."""
    found = [path for path in sorted(source.rglob("*.db")) if _is_database(path)]
    return [Tenant(path, str(path.relative_to(source))) for path in found]


def _is_database(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return not path.is_symlink() and file.read(16) == b"SQLite format 3\0"
    except OSError as error:
        print(f"{path}: {error.strerror}", file=sys.stderr)
        return False


def _start_daemon(work: Path, config: Path) -> subprocess.Popen[bytes]:
    with (work / "pyrep.log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "pyrep", "replicate", "-config", str(config)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for us: the daemon is stopped after the writers
        )


def _start_writers(tenants: Sequence[Tenant], work: Path) -> None:
    (work / "writers").mkdir(exist_ok=True)
    for number, tenant in enumerate(tenants):
        tenant.report = work / "writers" / f"{number}.jsonl"
        flags = [f"--rate={_WRITES_PER_SECOND}", "--workers=2", "--read-ratio=0.1", "--progress"]
        with tenant.report.open("wb") as report:
            tenant.writer = subprocess.Popen(
                [sys.executable, str(_LOAD), str(tenant.path), *flags],
                stdin=subprocess.DEVNULL,
                stdout=report,
                start_new_session=True,
            )


def _stop_writers(tenants: Sequence[Tenant]) -> None:
    writers = [(tenant, tenant.writer) for tenant in tenants if tenant.writer is not None]
    for _, writer in writers:
        writer.terminate()
    for tenant, writer in writers:
        writer.wait()
        report = json.loads(tenant.report.read_text().splitlines()[-1]) if tenant.report else {}
        if report.get("errors"):
            print(f"{tenant.name}: {report['errors']} failed writes, {report['first_error']}")


def _stop_daemon(daemon: subprocess.Popen[bytes]) -> int:
    """Stop the daemon as a service manager does and return its exit code."""
    if daemon.poll() is None:
        daemon.terminate()
    try:
        return daemon.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        print(f"the daemon did not stop within {_STOP_SECONDS:g} s and is killed", file=sys.stderr)
        daemon.kill()
        return daemon.wait()


def _watch(
    tenants: Sequence[Tenant],
    daemon: subprocess.Popen[bytes],
    config: Path,
    stop: threading.Event,
    seconds: float | None,
) -> None:
    """Show the progress once a second until it is time to stop or the daemon has ended."""
    passed = 0
    height = 0
    end = "Ctrl-C" if seconds is None else f"Ctrl-C or after {seconds:g} s"
    print(f"{len(tenants)} tenants; ends with {end}\n")
    while not stop.wait(1.0) and daemon.poll() is None:
        passed += 1
        if seconds is not None and passed >= seconds:
            return
        progress = _status(config)
        if sys.stdout.isatty():
            lines = list(_table(tenants, progress, passed))
            sys.stdout.write(f"\x1b[{height}A\x1b[J" if height else "")
            print("\n".join(lines))
            height = len(lines)
        else:
            print(_summary(tenants, progress, passed))


def _status(config: Path) -> dict[str, Progress]:
    """Ask ``pyrep status`` and return its answer by database path; nothing if there is none yet."""
    done = _pyrep("status", "-config", str(config), "--json")
    if done.returncode:
        return {}
    return {path: progress for path, progress in _parse_status(json.loads(done.stdout))}


def _parse_status(answer: Any) -> Iterator[tuple[str, Progress]]:
    """Yield database path and progress of each entry, whatever version of the answer it is."""
    entries = answer
    if isinstance(answer, dict):
        entries = next((value for value in answer.values() if isinstance(value, list)), [])
    for entry in entries:
        yield (
            str(_first(entry, "path", "database", "db")),
            Progress(
                str(_first(entry, "state", "status")),
                _short_txid(_first(entry, "local_txid", "local")),
                _short_txid(_first(entry, "durable_txid", "replica_txid", "durable")),
                _lag(entry),
                str(_first(entry, "error", "last_error", default="")),
            ),
        )


def _first(entry: dict[str, Any], *names: str, default: object = "-") -> object:
    found = (entry[name] for name in names if entry.get(name) not in (None, ""))
    return next(found, default)


def _lag(entry: dict[str, Any]) -> str:
    seconds = _first(entry, "lag_seconds", "lag")
    if seconds == "-" and isinstance(entry.get("lag_ms"), int | float):
        seconds = entry["lag_ms"] / 1000
    return f"{seconds:.2f} s" if isinstance(seconds, int | float) else str(seconds)


def _short_txid(value: object) -> str:
    """Return a TXID without its leading zeros."""
    return str(value).lstrip("0") or "0"


def _table(tenants: Sequence[Tenant], progress: dict[str, Progress], passed: int) -> Iterator[str]:
    titles = f"{'rows':>8}  {'local':>8}  {'durable':>8}  {'lag':>8}  state"
    yield f"{passed:>4} s  {'tenant':<24}{titles}"
    for tenant in tenants:
        seen = progress.get(str(tenant.path), Progress())
        rows = tenant.written() if tenant.report else "-"
        yield (
            f"        {tenant.name:<24}{rows:>8}  {seen.local:>8}  {seen.durable:>8}"
            f"  {seen.lag:>8}  {seen.state} {seen.error}".rstrip()
        )


def _summary(tenants: Sequence[Tenant], progress: dict[str, Progress], passed: int) -> str:
    seen = [progress.get(str(tenant.path), Progress()) for tenant in tenants]
    pairs = ", ".join(f"{p.durable}/{p.local}" for p in seen)
    rows = sum(tenant.written() for tenant in tenants)
    return f"{passed:>4} s  {rows} rows written; durable/local txid of each tenant: {pairs}"


def _show_problems(log: Path) -> int:
    """Print the warnings and errors of the daemon's log and return how many there are."""
    lines = log.read_text(errors="replace").splitlines()
    found = [line for line in lines if "level=WARN" in line or "level=ERROR" in line]
    for line in found or (lines if not any("replicating to" in line for line in lines) else []):
        print(f"log: {line}")
    return len(found)


def _restore_and_compare(tenants: Sequence[Tenant], config: Path, work: Path, url: str = "") -> int:
    """Restore every tenant elsewhere, print the comparison and return how many are not equal.

    With a ``url`` nothing else is needed to find them, and Litestream restores each too.
    """
    progress = _status(config)
    judge = shutil.which("litestream") if url else None
    with tempfile.TemporaryDirectory(prefix="restored-", dir=work) as folder:
        out = Path(folder) / "out"
        where = (url,) if url else ("-config", str(config))
        done = _pyrep("restore", "-all", "-o", str(out), *where)
        if done.returncode:
            print(f"restore failed with exit code {done.returncode}: {done.stderr.strip()}")
        print(f"\n{'tenant':<32}{'rows':>10}{'TXID':>10}  identical", end="")
        print("  by Litestream" if judge else "")
        failures = 0
        for number, tenant in enumerate(tenants):
            copy = Path(folder) / f"copy-{number}.db"
            rows, verdict = _compare(tenant, out / tenant.name, copy)
            verdicts = [verdict]
            if judge:
                theirs = _litestream_restore(judge, tenant, url, Path(folder) / f"{number}.db")
                verdicts.append(_compare(tenant, theirs, copy)[1])
            failures += any(text.startswith("no") for text in verdicts)
            txid = progress.get(str(tenant.path), Progress()).durable
            texts = "  ".join(f"{text:<9}" for text in verdicts).rstrip()
            print(f"{tenant.name:<32}{rows:>10}{txid:>10}  {texts}")
        return failures


def _litestream_restore(program: str, tenant: Tenant, url: str, output: Path) -> Path:
    """Let the original Litestream restore a tenant from the same place."""
    place, _, query = url.partition("?")
    where = f"{place}/{quote(tenant.name)}?{query}"
    # It cannot make use of every certificate bundle, and the server here needs none.
    environ = {name: text for name, text in os.environ.items() if name != "AWS_CA_BUNDLE"}
    command = [program, "restore", "-o", str(output), where]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"{tenant.name}: litestream failed: {done.stderr.strip()}")
    return output


def _compare(tenant: Tenant, restored: Path, copy: Path) -> tuple[int, str]:
    """Return the rows of the restored database and whether it is the source's copy."""
    if not restored.exists():
        return 0, "no: not restored"
    rows = sum(row_counts(restored).values())
    before = _signature(tenant.path)
    checkpointed_copy(tenant.path, copy)
    pages = pages_equal(copy, restored)
    if pages and db_digest(copy) == db_digest(restored):
        return rows, "yes"
    if _in_use(tenant.path) or _signature(tenant.path) != before:
        return rows, "unknown: the source is in use and has moved on"
    return rows, "no: rows differ" if pages else "no: pages differ"


def _signature(path: Path) -> list[tuple[int, int]]:
    files = [path, path.with_name(path.name + "-wal")]
    return [(f.stat().st_size, f.stat().st_mtime_ns) for f in files if f.exists()]


def _in_use(path: Path) -> bool:
    """Say whether another process, as far as we may see, has the database open."""
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if os.readlink(link) == str(path):
                return True
        except OSError:  # the process has ended, or is not ours to look at
            continue
    return False


def _pyrep(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pyrep", *arguments], capture_output=True, text=True, check=False
    )


if __name__ == "__main__":
    sys.exit(main())
