"""Many tenants on one host: what idle ones cost, and how far behind busy ones are.

Question: does the cost follow what is written, whatever the number of databases?  Real processes
on real databases in nested directories, a file replica, 20,000 descriptors; the application is
one process of its own and its CPU is not counted.  Every row stands with its target and a
verdict; one that could not be measured is a failure and says why.  Litestream stands beside it
where it can run: at 10,000 it would need 60,000 descriptors.

A fleet is made and backed up once for all the rows of its size: idle ones come first, from those
after a restart on nothing is measured but what is asked of it.

usage: bench_scale.py [--tenants 1000,3000,10000] [--seconds 30] [--rows idle,start,...]
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import measures
from fleet import CannotRunError, Fleet, Replicator
from measures import Plan

from rows import Report, Row, verdict

_FEW = 10
_LITESTREAM_MOST = 3000
_LITESTREAM_SINGLE = 500
_DESCRIPTORS = 20_000
_INODES_PER_TENANT = 14
_ROWS = ("idle", "start", "single", "busy", "mixed", "fifty")
_QUICK_ROWS = _ROWS[:4]


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
    """Yield a running replicator that has stored every tenant once and has let go of it.

    With ``merge_interval`` it has merged that, too, and has nothing left to do.
    """
    replicator = Replicator(tool, fleet, merge_interval=merge_interval)
    patience = 60 + fleet.count / 20
    try:
        replicator.start()
        replicator.wait_stored(patience)
        replicator.wait_idle(2 * patience, merged=bool(merge_interval))
        yield replicator
    finally:
        replicator.kill()


def of_fleet(plan: Plan, count: int) -> Iterator[Row]:
    """Measure all rows of one size: pyrep's first, then Litestream's on the same databases."""
    wanted = set(plan.rows)
    is_most, is_busy = count == plan.most, count == plan.busy and "busy" in wanted
    beside = count <= (min(plan.counts) if plan.quick else _LITESTREAM_MOST)
    if not (is_busy or "idle" in wanted or (is_most and wanted & {"start", "single", "mixed"})):
        return
    with fleet_of(plan, count) as fleet:
        without = measures.alone(fleet, plan.seconds) if is_busy else []
        with replicating("pyrep", fleet, merge_interval=plan.merge_interval) as pyrep:
            if "idle" in wanted:
                yield measures.idle(plan, pyrep, "after the first backup")
            if "idle" in wanted or (is_most and "start" in wanted):
                yield from measures.restart(plan, pyrep)
            if is_busy or (is_most and wanted & {"single", "mixed"}):
                yield from _written(plan, pyrep, without)
        if beside and (is_busy or "idle" in wanted):
            yield from _beside(plan, fleet, without)


def _written(plan: Plan, pyrep: Replicator, without: list[float]) -> Iterator[Row]:
    """Measure the rows in which databases are written, with all levels as they are by default."""
    pyrep.stop()
    pyrep.configure()
    pyrep.start()
    pyrep.wait_watching()
    if pyrep.fleet.count == plan.most and "single" in plan.rows:
        yield measures.single(plan, pyrep, "latency-many")
    if without:
        yield measures.busy(plan, pyrep, without)
    if pyrep.fleet.count == plan.most and "mixed" in plan.rows:
        yield measures.mixed(plan, pyrep)


def _beside(plan: Plan, fleet: Fleet, without: list[float]) -> Iterator[Row]:
    with replicating("litestream", fleet, merge_interval=plan.merge_interval) as other:
        if "idle" in plan.rows:
            yield measures.idle(plan, other, "litestream")
        if without:
            yield measures.busy(plan, other, without)


def single(plan: Plan) -> Iterator[Row]:
    """Measure one commit among few, and Litestream's among many."""
    many = min(_LITESTREAM_SINGLE, plan.most)
    for tool, count, number in (
        ("pyrep", _FEW, "latency-10"),
        ("litestream", _FEW, "latency-10"),
        ("litestream", many, "latency-many"),
    ):
        with fleet_of(plan, count) as fleet, replicating(tool, fleet) as replicator:
            yield measures.single(plan, replicator, number)


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
            yield _reached(plan, pyrep)
        finally:
            pyrep.kill()


def _reached(plan: Plan, pyrep: Replicator) -> Row:
    """Back all of them up for as long as there is time, restart, and say what that takes."""
    count, stored = pyrep.fleet.count, 0
    began = pyrep.start()
    limit = max(60.0, plan.ends - began - 4 * plan.seconds)
    try:
        pyrep.wait_stored(limit)
        pyrep.wait_idle(max(30.0, began + limit - time.monotonic()))
        stored = count
    except CannotRunError:
        stored = pyrep.stored()
        _ = pyrep.pid  # it ended: that is the reason
    first, peak = time.monotonic() - began, pyrep.usage().mb
    done = f"first backup of {stored:,} in {first:.0f} s ({peak:.0f} MB)"
    if stored < count:
        return Row(f"{count:,} tenants", "it runs", f"time ended it: {done}", verdict(False))
    pyrep.stop()
    began = pyrep.start()
    pyrep.wait_watching()
    again = time.monotonic() - began
    row = measures.idle(plan, pyrep, "after a restart")
    return Row(
        f"{count:,} tenants",
        "it runs",
        f"{done}, start {again:.1f} s, then idle {row.measured}; nothing ended it",
        verdict(True),
        numbers={"first_seconds": first, "start_seconds": again, **row.numbers},
    )


# --- all ------------------------------------------------------------------------------------------


def measured(name: str, missing: list[str], measure: Callable[[], Iterator[Row]]) -> Iterator[Row]:
    """Yield the rows of one measurement; a failure is a row for each number that is missing."""
    try:
        for row in measure():
            if row.id in missing and row.tool == "pyrep":
                missing.remove(row.id)
            yield row
    except (CannotRunError, OSError) as error:
        for number in missing or [""]:
            yield Row(name, "", f"could not run: {error}", "failed", number)


def all_rows(plan: Plan) -> Iterator[Row]:
    """Yield every row that is asked for."""
    if "single" in plan.rows:
        yield from measured("one of few", ["latency-10"], partial(single, plan))
    for count in plan.counts:
        name = f"{count:,} tenants"
        yield from measured(name, plan.ids(count), partial(of_fleet, plan, count))
    if "fifty" in plan.rows:
        yield from measured("how many", [], partial(fifty, plan))


def main() -> int:
    """Print the rows; return 1 if one was missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tenants", default="1000,3000,10000", help="numbers of idle tenants")
    parser.add_argument("--seconds", type=float, default=30.0, help="how long each row is measured")
    parser.add_argument("--minutes", type=float, default=38.0, help="what takes longer is ended")
    parser.add_argument("--rows", help=f"some of {','.join(_ROWS)}")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--quick", action="store_true", help="only see whether everything works")
    Report.add_option(parser)
    options = parser.parse_args()
    counts = tuple(int(number) for number in options.tenants.split(","))
    names = options.rows.split(",") if options.rows else _QUICK_ROWS if options.quick else _ROWS
    unknown = set(names) - set(_ROWS)
    if unknown:
        parser.error(f"no such rows: {', '.join(sorted(unknown))}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (_DESCRIPTORS, _DESCRIPTORS))  # for the children
    report = Report(options.json, {"tenants": counts, "seconds": options.seconds})
    ends = time.monotonic() + 60 * options.minutes
    with tempfile.TemporaryDirectory(prefix="pyrep-scale-", dir=options.folder) as scratch:
        rows = frozenset(names)
        plan = Plan(Path(scratch), counts, options.seconds, rows, options.quick, ends)
        for row in all_rows(plan):
            report.add(row)
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
