"""``pyrep restore -all``: write every database as its replica has it, and a table of them."""

from __future__ import annotations

import os
import posixpath
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import click

from pyrep.cli.common import (
    db_path,
    default_config,
    log_to_stderr,
    names_replica,
    read_config,
    report_problems,
)
from pyrep.cli.flags import fail
from pyrep.cli.output import Meter, say, size_text, write_json, write_table
from pyrep.cli.restoring import (
    Job,
    Wanted,
    interruptible,
    options,
    plan_document,
    result_document,
    write_state,
)
from pyrep.cli.tenants import Found, Search, below_url, of_config
from pyrep.config.expand import describe_replica, tenant_at
from pyrep.errors import PyrepError, TXNotAvailableError
from pyrep.restore.execute import RestoreOptions, RestoreResult, plan_restore
from pyrep.restore.fleet import FleetItem, FleetResult, restore_all
from pyrep.restore.plan import Plan, time_text
from pyrep.storage.registry import connect
from pyrep.storage.retry import PATIENT

if TYPE_CHECKING:
    from pyrep.config.expand import TenantSpec
    from pyrep.config.model import Config
    from pyrep.storage.base import ReplicaClient

__all__ = ["restore_every"]

_PLANNERS = 8
RESTORED, SKIPPED, FAILED = "restored", "skipped", "failed"


@dataclass(frozen=True, slots=True)
class _Outcome:
    """Say what became of one database; in a dry run it has a plan instead of a result."""

    name: str
    job: Job
    status: str
    scheme: str = ""
    result: RestoreResult | None = None
    plan: Plan | None = None
    reason: str = ""
    error: PyrepError | None = None


def restore_every(wanted: Wanted) -> int:
    """Restore every database of the configuration, or below a URL; return the exit code.

    One that fails stops no other.  The exit code is that of the failures if they share one,
    else 1.
    """
    if wanted.txid is not None:
        fail("cannot specify -txid with -all: TXIDs are counted for each database")
    if not wanted.output:
        fail("-o is required with -all")
    if len(wanted.words) > 1:
        fail("too many arguments")
    began = time.monotonic()
    cancel = threading.Event()
    with interruptible(cancel):
        config, search = _search(wanted, cancel)
        jobs = _jobs(config, search, Path(db_path(wanted.output)), cancel)
        if not jobs and not search.problems:
            return _nothing(wanted)
        if wanted.dry_run:
            outcomes = _plan_jobs(wanted, jobs)
        else:
            outcomes = _restore_jobs(wanted, jobs, cancel)
    _report(wanted, outcomes, search, time.monotonic() - began)
    codes = {outcome.error.exit_code for outcome in outcomes if outcome.error}
    codes |= {problem.error.exit_code for problem in search.problems}
    return codes.pop() if len(codes) == 1 else min(len(codes), 1)


def _search(wanted: Wanted, cancel: threading.Event) -> tuple[Config | None, Search]:
    meter = Meter()

    def show(looks: int, found: int) -> None:
        meter.show(lambda _: f"searching: {looks} folders, {found} replicas")

    try:
        if not wanted.words:
            config = read_config(wanted.config_path, wanted.no_expand_env)
            return config, of_config(config, on_look=show, cancel=cancel)
        if not names_replica(wanted.words[0], wanted.config_path):
            fail("-all restores every database of the configuration or below a replica URL")
        log_to_stderr()
        return default_config(), below_url(wanted.words[0], on_look=show, cancel=cancel)
    finally:
        meter.close()


def _nothing(wanted: Wanted) -> int:
    reason = "no database found, neither in the configuration's directories nor on a replica"
    if wanted.words:
        reason = f"no replica found at or below {wanted.words[0]}"
    if not wanted.if_replica_exists:
        raise TXNotAvailableError(reason, hint="Check the path of the replica.")
    if wanted.as_json:
        _report(wanted, (), Search(()), 0.0)
    say(reason)
    return 0


def _jobs(
    config: Config | None, search: Search, root: Path, cancel: threading.Event
) -> list[tuple[str, Job]]:
    """Give each database its place below ``root``."""
    jobs = []
    for found, place in zip(search.found, _places(search.found), strict=True):
        output = root / place
        there = tenant_at(config, output) if config else None
        managers = ((config, there),) if config and there else ()
        own: TenantSpec | None = found.tenant if there and there == found.tenant else None
        source = describe_replica(found.replica)
        jobs.append((found.name, Job(source, found.replica, output, managers, own, cancel)))
    return jobs


def _places(found: Sequence[Found]) -> list[str]:
    """Return the path of each database below the output folder.

    Where two would have the same, both go to their whole paths.  One whose path is another's
    folder goes into that folder, since no file can have its name.
    """
    count = Counter(one.relpath for one in found)
    places = [one.relpath if count[one.relpath] == 1 else one.name.lstrip("/") for one in found]
    folders = {str(parent) for place in places for parent in PurePosixPath(place).parents}
    return [f"{p}/{posixpath.basename(p)}" if p in folders else p for p in places]


def _plan_jobs(wanted: Wanted, jobs: Sequence[tuple[str, Job]]) -> list[_Outcome]:
    """Plan all, several at a time: a plan is little but waiting for the storage."""
    workers = max(1, min(len(jobs), wanted.parallelism or _PLANNERS))
    with ThreadPoolExecutor(workers, "pyrep-plan") as pool:
        return list(pool.map(lambda named: _plan_one(wanted, *named), jobs))


def _plan_one(wanted: Wanted, name: str, job: Job) -> _Outcome:
    """Plan one database, for a dry run."""
    try:
        with closing(connect(job.replica, stop=job.cancel, policy=PATIENT)) as client:
            plan = plan_restore(client, timestamp_ms=wanted.timestamp_ms)
            return _Outcome(name, job, "planned", client.scheme, plan=plan)
    except PyrepError as error:
        return _failure(wanted, name, job, error)


def _restore_jobs(
    wanted: Wanted, jobs: Sequence[tuple[str, Job]], cancel: threading.Event
) -> list[_Outcome]:
    """Restore all; return their outcomes in the order of ``jobs``."""
    outcomes: list[_Outcome | None] = []
    items: list[FleetItem] = []
    with ExitStack() as stack:
        for name, job in jobs:
            outcome, item = _prepare(wanted, name, job)
            outcomes.append(outcome)
            if item is not None:
                stack.enter_context(closing(item.client))
                items.append(item)
        results = iter(_run(wanted, items, cancel))
        return [
            outcome or _outcome(wanted, name, job, next(results))
            for outcome, (name, job) in zip(outcomes, jobs, strict=True)
        ]


def _prepare(wanted: Wanted, name: str, job: Job) -> tuple[_Outcome | None, FleetItem | None]:
    """Return either what became of a database already, or the work to do."""
    if wanted.if_db_not_exists and os.path.lexists(job.output):
        return _Outcome(name, job, SKIPPED, reason="already exists"), None
    try:
        job.check()
        client: ReplicaClient = connect(job.replica, stop=job.cancel, policy=PATIENT)
    except PyrepError as error:
        return _failure(wanted, name, job, error), None
    return None, FleetItem(name, client, job.output, options(wanted, job))


def _run(wanted: Wanted, items: Sequence[FleetItem], cancel: threading.Event) -> list[FleetResult]:
    cores = len(os.sched_getaffinity(0))
    workers = max(1, min(len(items), wanted.parallelism or cores))
    common = RestoreOptions(threads=wanted.parallelism or 0, cancel=cancel)
    meter = Meter()
    try:
        return restore_all(items, common, workers=workers, on_done=_counter(meter, len(items)))
    finally:
        meter.close()


def _counter(meter: Meter, total: int) -> Callable[[FleetResult], None]:
    """Return what shows how many databases are done."""
    lock = threading.Lock()
    done: Counter[str] = Counter()

    def count(result: FleetResult) -> None:
        with lock:
            done[RESTORED if result.result else FAILED] += 1
            finished, failed = done.total(), done[FAILED]
        meter.show(lambda _: f"restoring: {finished} of {total} databases, {failed} failed")

    return count


def _outcome(wanted: Wanted, name: str, job: Job, done: FleetResult) -> _Outcome:
    error = done.error
    if done.result is not None:
        try:
            write_state(job, done.result)
        except PyrepError as exc:
            error = exc
    if error is not None:
        return _failure(wanted, name, job, error)
    return _Outcome(name, job, RESTORED, done.item.client.scheme, done.result)


def _failure(wanted: Wanted, name: str, job: Job, error: PyrepError) -> _Outcome:
    if wanted.if_replica_exists and isinstance(error, TXNotAvailableError):
        return _Outcome(name, job, SKIPPED, reason=str(error))
    return _Outcome(name, job, FAILED, reason=str(error), error=error)


def _report(wanted: Wanted, outcomes: Sequence[_Outcome], search: Search, seconds: float) -> None:
    count = Counter(outcome.status for outcome in outcomes)
    if wanted.as_json:
        write_json(
            {
                "databases": [_document(outcome) for outcome in outcomes],
                "problems": [{"path": str(p.path), "error": str(p.error)} for p in search.problems],
                "not_matched": list(search.strangers),
                "count": dict(count),
                "duration_ms": int(seconds * 1000),
            }
        )
    else:
        columns = ("database", "status", "txid", "time", "size", "path")
        write_table(columns, [_row(outcome) for outcome in outcomes])
        click.echo()
        parts = ", ".join(f"{number} {status}" for status, number in sorted(count.items()))
        click.echo(f"{parts or 'nothing done'} in {seconds:.1f}s")
    for outcome in outcomes:
        if outcome.error is not None:
            named = outcome.reason.startswith(f"{outcome.name}:")
            say(f"Error: {outcome.reason if named else f'{outcome.name}: {outcome.reason}'}")
            if outcome.error.hint:
                say(f"Hint: {outcome.error.hint}")
    for path in search.strangers:
        say(f"Warning: no entry of the configuration matches the replica {path}")
    report_problems(search.problems)


def _row(outcome: _Outcome) -> tuple[str, ...]:
    head = (outcome.name, outcome.status)
    plan = outcome.plan or (outcome.result.plan if outcome.result else None)
    if plan is None:  # what failed is said below the table, once
        last = str(outcome.job.output) if outcome.error else outcome.reason
        return (*head, "-", "-", "-", last)
    size = size_text(outcome.result.size) if outcome.result else "-"
    return (*head, str(plan.max_txid), time_text(plan.timestamp_ms), size, str(outcome.job.output))


def _document(outcome: _Outcome) -> dict[str, object]:
    head: dict[str, object] = {"database": outcome.name, "status": outcome.status}
    if outcome.plan is not None:
        return head | plan_document(outcome.job, outcome.plan, outcome.scheme)
    if outcome.result is not None:
        return head | result_document(outcome.result, outcome.scheme)
    return head | {"db_path": str(outcome.job.output), "error": outcome.reason}
