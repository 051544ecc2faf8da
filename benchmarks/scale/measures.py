"""Measure a fleet that is being replicated: each function gives rows of the table."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fleet import Fleet, Replicator, writing
from lags import lags
from meters import Arrivals, Opens, Usage, cpu_share, quantile

from fixtures.app import checkpointed_copy, db_digest
from rows import Row, verdict

__all__ = ["IDLE_IDS", "Plan", "alone", "busy", "idle", "mixed", "restart", "single"]

IDLE_IDS = ("idle-1000", "idle-3000", "idle-10000")
BUSY = 1000
_PATIENCE_SECONDS = 120.0
_SAMPLE = 100  # tenants of many that one commits to, now and then
_COMMITS_PER_SECOND = 2.0
_COMPARED = 50  # of the databases that were written


@dataclass(frozen=True)
class Plan:
    """Say how much is measured, and which of the rows."""

    folder: Path
    counts: tuple[int, ...]
    seconds: float
    rows: frozenset[str]
    quick: bool = False
    ends: float = math.inf  # monotonic seconds; nothing long begins after it

    @property
    def merge_interval(self) -> str:
        """Return after how long what was stored is merged, where it is merged once."""
        return "1s" if self.quick else "30s"

    def pause(self, seconds: float) -> None:
        """Let things settle; hardly so where only the program itself is tried."""
        time.sleep(seconds / 20 if self.quick else seconds)

    def idle_id(self, count: int) -> str:
        """Return which number to reach this many idle tenants are: by rank, whatever is asked."""
        return dict(zip(sorted(self.counts), IDLE_IDS, strict=False)).get(count, "")

    @property
    def most(self) -> int:
        """Return the largest number of tenants."""
        return max(self.counts)

    @property
    def busy(self) -> int:
        """Return how many write once a second each."""
        return min(self.counts, key=lambda count: abs(count - BUSY))

    def ids(self, count: int) -> list[str]:
        """Return the numbers to reach that a fleet of pyrep's gives."""
        found = [self.idle_id(count)] if "idle" in self.rows else []
        if count == self.most and "start" in self.rows:
            found += ["start", "requests"]
        if count == self.most and "single" in self.rows:
            found.append("latency-many")
        if count == self.busy and "busy" in self.rows:
            found.append("writers")
        return found


# --- idle tenants ---------------------------------------------------------------------------------


def idle(plan: Plan, replicator: Replicator, when: str) -> Row:
    """Measure what idle tenants cost."""
    plan.pause(5.0)  # what the first backup left to do
    before = replicator.usage()
    time.sleep(plan.seconds)
    return _idle_row(plan, replicator, when, before)


def _idle_row(plan: Plan, replicator: Replicator, when: str, before: Usage) -> Row:
    count = replicator.fleet.count
    small = count <= BUSY
    mb, descriptors, threads, cpu = (60, 100, 32, 0.2) if small else (120, 200, 32, 1.0)
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


def restart(plan: Plan, pyrep: Replicator) -> Iterator[Row]:
    """Measure the start with unchanged tenants, and what it and idling touch."""
    pyrep.stop()
    opens, requests = Opens(), Opens()
    if "start" in plan.rows:
        opens.watch(pyrep.fleet.folders())
        requests.watch(_replica_folders(pyrep))
    try:
        began = pyrep.start()
        pyrep.wait_watching()
        seconds = time.monotonic() - began
        plan.pause(5.0)
        opened, asked = opens.take(".db"), requests.take()
        before = pyrep.usage()
        time.sleep(plan.seconds)
        later = requests.take()
    finally:
        opens.close()
        requests.close()
    if "idle" in plan.rows:
        yield _idle_row(plan, pyrep, "after a restart", before)
    if "start" not in plan.rows or pyrep.fleet.count != plan.most:
        return
    yield Row(
        f"start with {pyrep.fleet.count:,} unchanged tenants",
        "<= 5 s to watching, 0 requests, 0 databases opened",
        f"{seconds:.1f} s, {asked} requests, {opened} databases opened",
        verdict(seconds <= 5 and not asked and not opened),
        "start",
        numbers={"seconds": seconds, "requests": asked, "opened": opened},
    )
    name = f"requests of idle tenants in {plan.seconds:.0f} s"
    yield Row(name, "0", f"{later}", verdict(not later), "requests", numbers={"count": later})


def _replica_folders(replicator: Replicator) -> list[Path]:
    """Return the folders whose listing or reading is a request."""
    places = replicator.places()
    return [folder for place in places for folder in (place, place / "ltx", place / "ltx" / "0")]


# --- one commit now and then ----------------------------------------------------------------------


def single(plan: Plan, replicator: Replicator, number: str) -> Row:
    """Measure the lag of one commit while all other tenants are idle."""
    fleet = replicator.fleet
    chosen = random.Random(1).sample(range(fleet.count), min(_SAMPLE, fleet.count))
    flags = [f"--rate={_COMMITS_PER_SECOND}", f"--seconds={2 * plan.seconds}", "--random"]
    names = [fleet.names[n] for n in chosen]
    plan.pause(3.0)  # the last file of each is older than a sync interval
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
        number,
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


def alone(fleet: Fleet, seconds: float) -> list[float]:
    """Return the time of each commit without a replicator, in milliseconds."""
    flags = [f"--rate={fleet.count}", f"--seconds={seconds}"]
    with writing(fleet, fleet.databases, *flags) as writer:
        writer.go()
        return list(writer.finish()["ms"])


def busy(plan: Plan, replicator: Replicator, without: list[float]) -> Row:
    """Measure tenants that all write once a second; ``without``: commits without a replicator."""
    fleet = replicator.fleet
    flags = [f"--rate={fleet.count}", f"--seconds={2 * plan.seconds + (0 if plan.quick else 10)}"]
    with (
        arriving(replicator, fleet.names) as arrivals,
        writing(fleet, fleet.databases, *flags) as writer,
    ):
        since = writer.go()
        plan.pause(10.0)  # until all are attached
        before = replicator.usage()
        time.sleep(1.8 * plan.seconds)
        after = replicator.usage()
        report = writer.finish()
        found, lost = _lags(plan, arrivals, since, report["commits"])
    share = cpu_share(before, after)
    stalls = [quantile(report["ms"], q) - quantile(without, q) for q in (0.99, 1.0)]
    lag99, lag50 = quantile(found, 0.99), quantile(found, 0.5)
    reached = (
        share <= 60 * fleet.count / BUSY
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


def mixed(plan: Plan, pyrep: Replicator) -> Row:
    """Measure a tenth of many writing for ten times as long, while others come and go.

    pyrep is stopped at the end, and databases that were written are restored and compared.
    """
    fleet = pyrep.fleet
    writers = max(1, fleet.count // 10)
    seconds = 10 * plan.seconds
    chosen = random.Random(2).sample(range(fleet.count), writers)
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
    different = _different(pyrep, [*databases[:_COMPARED], *left])
    lag = [quantile(found, q) for q in (0.5, 0.99, 1.0)]
    return Row(
        f"{writers:,} of {fleet.count:,} write each second, {report['churned']} come and go",
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
