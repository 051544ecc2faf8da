"""The same work with pyrep and with Litestream in turn: how long, how much, how far behind.

Question: what does replication cost the application and the machine, and how fresh is the replica?
Each program gets the same databases in nested directories, a file replica and the same load
from processes of their own.  When the load is over the program is stopped, restores every database
itself, and each restore is compared with its source before a row is printed.  Ratios count.

- field: four databases under the load of a few users (reads, writes of 1 KB, two connections each)
- transaction: one transaction of many megabytes; the time from its commit to the replica
- commits: many small commits to one database; lag of each, CPU of the daemon for each
- idle: the same databases when nobody writes; what is asked of the replica

usage: bench_tools.py [--seconds 12] [--mib 128] [--settle 35] [--only field,idle] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fleet import CannotRunError, Fleet, Replicator, writing
from lags import lags
from meters import Arrivals, Opens, cpu_share, quantile

from fixtures.app import db_digest
from fixtures.litestream import program
from rows import Report, Row, verdict

_TENANTS = 4
_LOAD = Path(__file__).parents[1] / "load.py"
_PATIENCE_SECONDS = 90.0
_FIRST_ROWS = 4000  # about 5 MB
_COMMITS_PER_SECOND = 100
_DAY = 86400
# One transaction; its last row carries its time, and the moment of its commit is printed.
_TRANSACTION = """
import json, random, sqlite3, sys, time
sys.path.insert(0, sys.argv[3])
from writer import MARK, ROW, connect
database, rng = connect(sys.argv[1]), random.Random(5)
insert = "insert into row (data) values (?)"
database.execute("begin immediate")
for _ in range(int(float(sys.argv[2]) * 1024 / 16)):
    database.execute(insert, (rng.randbytes(8192) + b"order shipped; " * 546,))
at = time.time()
database.execute(insert, (ROW.pack(MARK, 0, 1, at),))
database.execute("commit")
print(json.dumps({"row": at, "commit": time.time()}))
"""


@dataclass(frozen=True)
class Plan:
    """Say how much is measured."""

    folder: Path
    seconds: float
    mib: float
    settle: float


Scenario = Callable[[Plan, Replicator], dict[str, float]]


@contextmanager
def running(plan: Plan, tool: str, count: int, *, filled: bool) -> Iterator[Replicator]:
    """Yield a program that has stored each of so many databases once."""
    fleet = Fleet(Path(tempfile.mkdtemp(prefix=f"{tool}-", dir=plan.folder)), count)
    replicator = Replicator(tool, fleet, merge_interval="30s")
    try:
        for database in fleet.databases if filled else ():
            load(database, f"--fill={_FIRST_ROWS}", "--duration=0.01").communicate()
        replicator.start()
        replicator.wait_stored(_PATIENCE_SECONDS)
        yield replicator
    finally:
        replicator.kill()
        fleet.remove()


def load(database: Path, *flags: str) -> subprocess.Popen[str]:
    """Start load.py on a database."""
    command = [sys.executable, str(_LOAD), str(database), *flags]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def peak_mb(replicator: Replicator) -> float:
    """Return the largest memory that a program held so far, in MB (10**6 bytes)."""
    status = Path(f"/proc/{replicator.pid}/status").read_text()
    (kib,) = (line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))
    return int(kib) * 1024 / 1e6


def check(replicator: Replicator) -> float:
    """Stop the program, let it restore every database, compare; return the seconds of restoring.

    :raises CannotRunError: a restore differs
    """
    replicator.stop()
    fleet, seconds = replicator.fleet, 0.0
    command = [sys.executable, "-m", "pyrep"] if replicator.tool == "pyrep" else [str(program())]
    for name, database in zip(fleet.names, fleet.databases, strict=True):
        output = fleet.folder / "restored.db"
        url = f"file://{replicator.place(name)}"
        began = time.monotonic()
        done = subprocess.run(
            [*command, "restore", "-o", str(output), url],
            capture_output=True,
            text=True,
            check=False,
        )
        seconds += time.monotonic() - began
        if done.returncode or db_digest(output) != db_digest(database):
            raise CannotRunError(f"the restore of {name} is not the database {done.stderr[-400:]}")
        output.unlink()
    return seconds


# --- scenarios ------------------------------------------------------------------------------------


def field(plan: Plan, replicator: Replicator) -> dict[str, float]:
    """Load every database as a few users do."""
    flags = ["--rate=40", "--workers=2", "--payload=1024", "--read-ratio=0.1", "--seed=3"]
    before = replicator.usage()
    users = [
        load(database, *flags, f"--duration={plan.seconds}")
        for database in replicator.fleet.databases
    ]
    reports = [json.loads(user.communicate()[0]) for user in users]
    after = replicator.usage()
    if any(report["errors"] for report in reports):
        raise CannotRunError(f"the application met errors: {reports}")
    return {
        "cpu_percent": cpu_share(before, after),
        "mb": peak_mb(replicator),
        "commit_p99_ms": max(report["commit_ms"]["p99"] for report in reports),
        "restore_seconds": check(replicator),
    }


def transaction(plan: Plan, replicator: Replicator) -> dict[str, float]:
    """Commit one large transaction and wait until the replica has it."""
    (database,), (name,) = replicator.fleet.databases, replicator.fleet.names
    scale = str(Path(__file__).parents[1] / "scale")
    arrivals = Arrivals([replicator.place(name) / "ltx" / "0"])
    try:
        before = replicator.usage()
        command = [sys.executable, "-c", _TRANSACTION, str(database), str(plan.mib), scale]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        times = json.loads(done.stdout)
        (lag,) = _wait_lags(arrivals, times["row"], 1)
    finally:
        arrivals.close()
    return {
        "stored_seconds": max(0.0, times["row"] + lag - times["commit"]),
        "cpu_seconds": replicator.usage().cpu - before.cpu,
        "mb": peak_mb(replicator),
        "restore_seconds": check(replicator),
    }


def commits(plan: Plan, replicator: Replicator) -> dict[str, float]:
    """Commit many small transactions to one database."""
    fleet = replicator.fleet
    flags = [f"--rate={_COMMITS_PER_SECOND}", f"--seconds={plan.seconds}"]
    arrivals = Arrivals([replicator.place(fleet.names[0]) / "ltx" / "0"])
    try:
        with writing(fleet, fleet.databases, *flags) as writer:
            before = replicator.usage()
            since = writer.go()
            report = writer.finish()
            found = _wait_lags(arrivals, since, report["commits"])
            cpu = replicator.usage().cpu - before.cpu
    finally:
        arrivals.close()
    check(replicator)
    return {
        "lag_p50_ms": 1000 * quantile(found, 0.5),
        "lag_p99_ms": 1000 * quantile(found, 0.99),
        "cpu_ms_per_commit": 1000 * cpu / report["commits"],
        "commit_p99_ms": quantile(report["ms"], 0.99),
    }


def _wait_lags(arrivals: Arrivals, since: float, count: int) -> list[float]:
    """Return the lags of ``count`` rows that were written since then.

    :raises CannotRunError: some are not at the replica in time
    """
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while len(found := lags(dict(arrivals.times), since)) < count:
        if time.monotonic() > deadline:
            raise CannotRunError(f"{count - len(found)} of {count} commits never reached level 0")
        time.sleep(0.5)
    return found


def idle(plan: Plan, replicator: Replicator) -> dict[str, float]:
    """Count what is asked of the replica, and the CPU, while nobody writes."""
    time.sleep(plan.settle)  # until what is stored is merged
    places = replicator.places()
    requests = Opens()
    requests.watch(f for place in places for f in (place, place / "ltx", place / "ltx" / "0"))
    before = replicator.usage()
    time.sleep(2 * plan.seconds)
    after = replicator.usage()
    # Opening a folder that is watched is an event of its own and one of its parent's: the latter.
    count = sum(bool(opened) for _, opened in requests.events())
    requests.close()
    check(replicator)
    return {
        "requests_per_tenant_and_day": count * _DAY / (after.at - before.at) / len(places),
        "cpu_percent": cpu_share(before, after),
    }


SCENARIOS: dict[str, tuple[str, int, bool, Scenario]] = {
    "field": (f"{_TENANTS} databases under load", _TENANTS, True, field),
    "transaction": ("one large transaction", 1, False, transaction),
    "commits": (f"{_COMMITS_PER_SECOND} small commits a second", 1, False, commits),
    "idle": (f"{_TENANTS} idle databases", _TENANTS, False, idle),
}


# --- rows -----------------------------------------------------------------------------------------


def measured(plan: Plan, name: str) -> Iterator[Row]:
    """Run one scenario with both programs; yield the row of each, or of its failure."""
    title, count, filled, scenario = SCENARIOS[name]
    results: dict[str, dict[str, float]] = {}
    for tool in ("pyrep", "litestream"):
        try:
            with running(plan, tool, count, filled=filled) as replicator:
                results[tool] = scenario(plan, replicator)
        except (CannotRunError, OSError, subprocess.CalledProcessError) as error:
            yield Row(f"{tool}: {title}", "", f"could not run: {error}", "failed", name, tool)
            continue
        text = ", ".join(f"{_words(key)} {value:.2f}" for key, value in results[tool].items())
        yield Row(f"{tool}: {title}", "", text, verdict(None), name, tool, results[tool])
    if len(results) == 2:
        yield Row(f"litestream / pyrep: {title}", "", _ratios(**results), verdict(None))


def _words(key: str) -> str:
    return key.replace("_percent", " %").replace("_", " ")


def _ratios(pyrep: dict[str, float], litestream: dict[str, float]) -> str:
    """Say how many times as much the other program took."""
    return ", ".join(
        f"{_words(key)} {litestream[key] / ours:.1f}x" if ours else f"{_words(key)} (pyrep: 0)"
        for key, ours in pyrep.items()
    )


def versions() -> str:
    """Return what both programs say that they are."""
    lines = []
    for tool in ([sys.executable, "-m", "pyrep"], [str(program())]):
        done = subprocess.run([*tool, "version"], capture_output=True, text=True, check=True)
        lines.append(done.stdout.strip().splitlines()[0])
    return f"pyrep {lines[0]}, Litestream {lines[1]}"


def main() -> int:
    """Run the scenarios and print their rows; return 1 if one could not run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=12.0, help="length of each load")
    parser.add_argument("--mib", type=float, default=128.0, help="size of the large transaction")
    parser.add_argument("--settle", type=float, default=35.0, help="wait before the idle row")
    parser.add_argument("--only", default=",".join(SCENARIOS))
    Report.add_option(parser)
    options = parser.parse_args()
    report = Report(options.json, {"versions": versions()})
    print(report.raw["versions"])
    with tempfile.TemporaryDirectory(prefix="pyrep-compare-") as scratch:
        plan = Plan(Path(scratch), options.seconds, options.mib, options.settle)
        for name in options.only.split(","):
            for row in measured(plan, name):
                report.add(row)
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
