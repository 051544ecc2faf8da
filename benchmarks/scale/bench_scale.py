"""Many tenants on one host: what idle ones cost, and how far behind busy ones are.

Question: does the cost follow what is written, whatever the number of databases?  Real processes
on real databases in nested directories, a file replica, 20,000 descriptors; the application is
one process of its own and its CPU is not counted.  Every row stands with its target and a
verdict; one that could not be measured is a failure and says why.  Litestream stands beside it
where it can run: at 10,000 it would need 60,000 descriptors.

usage: bench_scale.py [--tenants 1000,3000,10000] [--seconds 60] [--rows idle,start,...]
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fleet import CannotRunError, Fleet, Replicator, writing
from lags import lags
from meters import Arrivals, Opens, cpu_share, quantile

from fixtures.app import checkpointed_copy, db_digest
from rows import Report, Row, verdict

_PATIENCE_SECONDS = 120.0
_SAMPLE = 100  # tenants of many that one commits to, now and then
_COMMITS_PER_SECOND = 2.0
_FEW = 10
_BUSY = 1000
_LITESTREAM_MOST = 3000
_DESCRIPTORS = 20_000
_INODES_PER_TENANT = 14
# The numbers to reach that each measurement gives.
_IDS = {
    "idle": ("idle-1000", "idle-3000", "idle-10000"),
    "start": ("start", "requests"),
    "single": ("latency-10", "latency-many"),
    "busy": ("writers",),
}


@dataclass(frozen=True)
class Plan:
    """Say how much is measured."""

    folder: Path
    counts: tuple[int, ...]
    seconds: float
    quick: bool = False

    @property
    def merge_interval(self) -> str:
        """Return after how long what was stored is merged, where it is merged once."""
        return "1s" if self.quick else "30s"

    def pause(self, seconds: float) -> None:
        """Let things settle; hardly so where only the program itself is tried."""
        time.sleep(seconds / 20 if self.quick else seconds)

    def idle_id(self, count: int) -> str:
        """Return which number to reach this many idle tenants are: by rank, whatever is asked."""
        return dict(zip(sorted(self.counts), _IDS["idle"], strict=False)).get(count, "")

    @property
    def most(self) -> int:
        """Return the largest number of tenants."""
        return max(self.counts)


@contextmanager
def fleet_of(plan: Plan, count: int) -> Iterator[Fleet]:
    """Yield a fleet; it is removed at the end."""
    fleet = Fleet(Path(tempfile.mkdtemp(prefix="fleet-", dir=plan.folder)), count)
    try:
        yield fleet
    finally:
        fleet.remove()


@contextmanager
def replicating(tool: str, fleet: Fleet, *, merge_interval: str = "") -> Iterator[Replicator]:
    """Yield a running replicator that has stored every tenant once.

    With ``merge_interval`` it has merged that, and has nothing left to do.
    """
    replicator = Replicator(tool, fleet, merge_interval=merge_interval)
    patience = 60 + fleet.count / 20
    try:
        replicator.start()
        replicator.wait_stored(patience)
        if merge_interval:
            replicator.wait_idle(2 * patience, merged=True)
        yield replicator
    finally:
        replicator.kill()


# --- idle tenants ---------------------------------------------------------------------------------


def idle(plan: Plan) -> Iterator[Row]:
    """Measure what idle tenants cost after their first backup, and after a restart."""
    for count in plan.counts:
        with (
            fleet_of(plan, count) as fleet,
            replicating("pyrep", fleet, merge_interval=plan.merge_interval) as pyrep,
        ):
            yield _idle_row(plan, pyrep, "after the first backup")
            pyrep.stop()
            pyrep.start()
            _wait_watching(pyrep)
            yield _idle_row(plan, pyrep, "after a restart")
        if count <= (plan.counts[0] if plan.quick else _LITESTREAM_MOST):
            with (
                fleet_of(plan, count) as fleet,
                replicating("litestream", fleet, merge_interval=plan.merge_interval) as other,
            ):
                yield _idle_row(plan, other, "litestream")


def _idle_row(plan: Plan, replicator: Replicator, when: str) -> Row:
    count = replicator.fleet.count
    small = count <= 1000
    mb, descriptors, threads, cpu = (60, 100, 32, 0.2) if small else (120, 200, 32, 1.0)
    plan.pause(5.0)  # what the first backup left to do
    before = replicator.usage()
    time.sleep(plan.seconds)
    after = replicator.usage()
    share = cpu_share(before, after)
    reached = (
        after.mb <= mb
        and after.descriptors <= descriptors
        and after.threads <= threads
        and share <= cpu
    )
    return Row(
        f"{count:,} idle tenants, {when}",
        f"<= {mb} MB, {descriptors} descriptors, {threads} threads, {cpu} %",
        f"{after.mb:.0f} MB, {after.descriptors} descriptors, {after.threads} threads, "
        f"{share:.2f} %",
        verdict(None if replicator.tool == "litestream" else reached),
        plan.idle_id(count),
        replicator.tool,
        {
            "mb": after.mb,
            "descriptors": after.descriptors,
            "threads": after.threads,
            "cpu_percent": share,
        },
    )


def _wait_watching(pyrep: Replicator) -> None:
    """Wait until every tenant was taken in."""
    count = pyrep.fleet.count
    pyrep.wait(lambda: pyrep.text().count("replicating to") >= count, "watching", 300.0)


def start(plan: Plan) -> Iterator[Row]:
    """Measure the start with unchanged tenants, and what it and idling touch."""
    count = plan.most
    with (
        fleet_of(plan, count) as fleet,
        replicating("pyrep", fleet, merge_interval=plan.merge_interval) as pyrep,
    ):
        pyrep.stop()
        opens, requests = Opens(), Opens()
        opens.watch(fleet.folders())
        requests.watch(_replica_folders(pyrep))
        began = pyrep.start()
        _wait_watching(pyrep)
        seconds = time.monotonic() - began
        plan.pause(5.0)
        opened, asked = opens.take(".db"), requests.take()
        yield Row(
            f"start with {count:,} unchanged tenants",
            "<= 5 s to watching, 0 requests, 0 databases opened",
            f"{seconds:.1f} s, {asked} requests, {opened} databases opened",
            verdict(seconds <= 5 and not asked and not opened),
            "start",
            numbers={"seconds": seconds, "requests": asked, "opened": opened},
        )
        time.sleep(plan.seconds)
        asked = requests.take()
        name = f"requests of idle tenants in {plan.seconds:.0f} s"
        yield Row(name, "0", f"{asked}", verdict(not asked), "requests", numbers={"count": asked})
        opens.close()
        requests.close()


def _replica_folders(replicator: Replicator) -> list[Path]:
    """Return the folders whose listing or reading is a request."""
    places = replicator.places()
    return [folder for place in places for folder in (place, place / "ltx", place / "ltx" / "0")]


# --- one commit now and then ----------------------------------------------------------------------


def single(plan: Plan) -> Iterator[Row]:
    """Measure the lag of one commit while all other tenants are idle."""
    counts = {"pyrep": (_FEW, plan.most), "litestream": (_FEW, min(500, plan.most))}
    for tool, numbers in counts.items():
        for id, count in zip(_IDS["single"], numbers, strict=True):
            with fleet_of(plan, count) as fleet, replicating(tool, fleet) as replicator:
                replicator.wait_idle(120 + count / 20)
                yield _single_row(plan, replicator, id)


def _single_row(plan: Plan, replicator: Replicator, id: str) -> Row:
    fleet = replicator.fleet
    chosen = random.Random(1).sample(range(fleet.count), min(_SAMPLE, fleet.count))
    flags = [f"--rate={_COMMITS_PER_SECOND}", f"--seconds={2 * plan.seconds}", "--random"]
    names = [fleet.names[n] for n in chosen]
    with (
        arriving(replicator, names) as arrivals,
        writing(fleet, [fleet.databases[n] for n in chosen], *flags) as writer,
    ):
        since = writer.go()
        report = writer.finish()
        found, lost = _lags(plan, arrivals, since, report["commits"])
    p50, p99 = quantile(found, 0.5), quantile(found, 0.99)
    reached = p50 <= 0.02 and p99 <= 0.1 and not lost
    return Row(
        f"{replicator.tool}: commit to stored, one of {fleet.count:,}",
        "p50 <= 20 ms, p99 <= 100 ms",
        f"p50 {1000 * p50:.0f} ms, p99 {1000 * p99:.0f} ms, {len(found)} commits, {lost} missing",
        verdict(None if replicator.tool == "litestream" else reached),
        id,
        replicator.tool,
        {"p50_ms": 1000 * p50, "p99_ms": 1000 * p99, "missing": lost},
    )


@contextmanager
def arriving(replicator: Replicator, names: Sequence[str]) -> Iterator[Arrivals]:
    """Yield what notes the level-0 files of tenants when they appear at the replica."""
    arrivals = Arrivals(replicator.place(name) / "ltx" / "0" for name in names)
    try:
        yield arrivals
    finally:
        arrivals.close()


def _lags(plan: Plan, arrivals: Arrivals, since: float, commits: int) -> tuple[list[float], int]:
    """Return the lag of each commit since then, and how many did not arrive within patience."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        plan.pause(3.0)
        found = lags(dict(arrivals.times), since)
        if len(found) >= commits or time.monotonic() > deadline:
            return found, commits - len(found)


# --- many write -----------------------------------------------------------------------------------


def busy(plan: Plan) -> Iterator[Row]:
    """Measure tenants that all write once a second."""
    count = min(_BUSY, plan.most)
    for tool in ("pyrep", "litestream"):
        with fleet_of(plan, count) as fleet:
            alone = _alone(fleet, plan.seconds)
            with replicating(tool, fleet) as replicator:
                replicator.wait_idle(2 * _PATIENCE_SECONDS)
                yield _busy_row(plan, replicator, alone)


def _alone(fleet: Fleet, seconds: float) -> list[float]:
    """Return the time of each commit without a replicator, in milliseconds."""
    flags = [f"--rate={fleet.count}", f"--seconds={seconds}"]
    with writing(fleet, fleet.databases, *flags) as writer:
        writer.go()
        return list(writer.finish()["ms"])


def _busy_row(plan: Plan, replicator: Replicator, alone: list[float]) -> Row:
    fleet = replicator.fleet
    flags = [f"--rate={fleet.count}", f"--seconds={plan.seconds + (0 if plan.quick else 10)}"]
    with (
        arriving(replicator, fleet.names) as arrivals,
        writing(fleet, fleet.databases, *flags) as writer,
    ):
        since = writer.go()
        plan.pause(10.0)  # until all are attached
        before = replicator.usage()
        time.sleep(0.9 * plan.seconds)
        after = replicator.usage()
        report = writer.finish()
        found, lost = _lags(plan, arrivals, since, report["commits"])
    share = cpu_share(before, after)
    stalls = [quantile(report["ms"], q) - quantile(alone, q) for q in (0.99, 1.0)]
    lag99, lag50 = quantile(found, 0.99), quantile(found, 0.5)
    reached = (
        share <= 60 * fleet.count / _BUSY
        and after.mb <= 200
        and stalls[0] <= 10
        and stalls[1] <= 100
        and lag99 <= 2
        and not lost
    )
    return Row(
        f"{replicator.tool}: {fleet.count:,} tenants, one write a second each",
        "<= 60 %, 200 MB, stall p99 10 ms, max 100 ms, lag p99 2 s",
        f"{share:.0f} %, {after.mb:.0f} MB, stall p99 {stalls[0]:.1f} ms, max {stalls[1]:.0f} ms, "
        f"lag p50 {lag50:.2f} p99 {lag99:.2f} s, {lost} of {report['commits']} missing, "
        f"application {100 * report['cpu'] / report['seconds']:.0f} %",
        verdict(None if replicator.tool == "litestream" else reached),
        "writers",
        replicator.tool,
        {
            "cpu_percent": share,
            "mb": after.mb,
            "stall_p99_ms": stalls[0],
            "stall_max_ms": stalls[1],
            "lag_p50_ms": 1000 * lag50,
            "lag_p99_ms": 1000 * lag99,
            "missing": lost,
        },
    )


def mixed(plan: Plan) -> Iterator[Row]:
    """Measure a tenth of many writing for five times as long, while others come and go."""
    count = plan.most
    writers = count // 10
    seconds = 5 * plan.seconds
    with fleet_of(plan, count) as fleet, replicating("pyrep", fleet) as pyrep:
        pyrep.wait_idle(120 + count / 20)
        chosen = random.Random(2).sample(range(count), writers)
        databases = [fleet.databases[n] for n in chosen]
        churn = fleet.data / "churn"
        churn.mkdir()
        flags = [f"--rate={writers}", f"--seconds={seconds}", f"--churn={churn}"]
        names = [fleet.names[n] for n in chosen]
        with (
            arriving(pyrep, names) as arrivals,
            writing(fleet, databases, *flags) as writer,
        ):
            since = writer.go()
            before = pyrep.usage()
            time.sleep(seconds - 2)
            after = pyrep.usage()
            report = writer.finish()
            found, lost = _lags(plan, arrivals, since, report["commits"])
        left = [Path(path) for path in report["left"]]
        pyrep.stop()
        different = _different(pyrep, [*databases[:50], *left])
        lag = [quantile(found, q) for q in (0.5, 0.99, 1.0)]
        yield Row(
            f"{writers:,} of {count:,} write each second, {report['churned']} come and go",
            "lag p99 <= 2 s, nothing lost",
            f"lag p50 {lag[0]:.2f} p99 {lag[1]:.2f} max {lag[2]:.2f} s, "
            f"{cpu_share(before, after):.0f} %, {after.mb:.0f} MB, {lost} of {report['commits']} "
            f"commits missing, {different} restores differ",
            verdict(lag[1] <= 2 and not lost and not different),
        )


def _different(pyrep: Replicator, databases: list[Path]) -> int:
    """Restore databases and count those that differ from their sources."""
    output, copy = pyrep.fleet.folder / "out.db", pyrep.fleet.folder / "copy.db"
    different = 0
    for database in databases:
        done = pyrep.command("restore", "-o", str(output), str(database))
        same = done.returncode == 0
        same = same and db_digest(output) == db_digest(checkpointed_copy(database, copy))
        different += not same
        output.unlink(missing_ok=True)
        copy.unlink(missing_ok=True)
    return different


# --- how far it goes ------------------------------------------------------------------------------


def fifty(plan: Plan) -> Iterator[Row]:
    """Try five times as many as are asked for, and say which limit ends it."""
    count = 5 * plan.most
    free = os.statvfs(plan.folder).f_favail
    if free < count * _INODES_PER_TENANT:
        raise CannotRunError(f"needs {count * _INODES_PER_TENANT:,} free inodes, {free:,} are free")
    with fleet_of(plan, count) as fleet:
        pyrep = Replicator("pyrep", fleet)
        try:
            began = pyrep.start()
            pyrep.wait_stored(60 + count / 20)
            first = time.monotonic() - began
            pyrep.wait_idle(120 + count / 20)
            pyrep.stop()
            began = pyrep.start()
            _wait_watching(pyrep)
            again = time.monotonic() - began
            time.sleep(5.0)
            before = pyrep.usage()
            time.sleep(plan.seconds)
            after = pyrep.usage()
        finally:
            pyrep.kill()
    yield Row(
        f"{count:,} tenants",
        "it runs",
        f"first backup of all {first:.0f} s, start {again:.1f} s, {after.mb:.0f} MB, "
        f"{after.descriptors} descriptors, {cpu_share(before, after):.2f} %",
        verdict(True),
    )


ROWS: dict[str, Callable[[Plan], Iterator[Row]]] = {
    "idle": idle,
    "start": start,
    "single": single,
    "busy": busy,
    "mixed": mixed,
    "fifty": fifty,
}


def measured(name: str, plan: Plan) -> Iterator[Row]:
    """Yield the rows of one measurement; a failure is a row for each number that is missing."""
    missing = list(_IDS.get(name, ()))
    try:
        for row in ROWS[name](plan):
            if row.id in missing and row.tool == "pyrep":
                missing.remove(row.id)
            yield row
    except (CannotRunError, OSError) as error:
        for id in missing or [""]:
            yield Row(name, "", f"could not run: {error}", "failed", id)


def main() -> int:
    """Print the rows; return 1 if one was missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tenants", default="1000,3000,10000", help="numbers of idle tenants")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long each row is measured")
    parser.add_argument("--rows", help=f"some of {','.join(ROWS)}")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--quick", action="store_true", help="only see whether everything works")
    Report.add_option(parser)
    options = parser.parse_args()
    counts = tuple(int(number) for number in options.tenants.split(","))
    resource.setrlimit(resource.RLIMIT_NOFILE, (_DESCRIPTORS, _DESCRIPTORS))  # for the children
    report = Report(options.json, {"tenants": counts, "seconds": options.seconds})
    names = options.rows or ",".join(_IDS if options.quick else ROWS)
    with tempfile.TemporaryDirectory(prefix="pyrep-scale-", dir=options.folder) as scratch:
        plan = Plan(Path(scratch), counts, options.seconds, options.quick)
        for name in names.split(","):
            for row in measured(name, plan):
                report.add(row)
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
