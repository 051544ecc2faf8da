"""``pyrep verify``: prove that replicas can be restored, without the databases."""

from __future__ import annotations

import fnmatch
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pyrep.cli.common import (
    config_flags,
    db_path,
    find_tenant,
    json_flag,
    log_to_stderr,
    names_replica,
    read_config,
    report_problems,
)
from pyrep.cli.flags import Command, Duration, Number, OneOf, Size, fail
from pyrep.cli.output import Meter, printable, say, size_text, write_json, write_table
from pyrep.cli.restoring import interruptible

if TYPE_CHECKING:
    from pyrep.catalog import ProofRow
    from pyrep.cli.tenants import Found
    from pyrep.config.expand import Problem
    from pyrep.config.model import Config
    from pyrep.errors import PyrepError
    from pyrep.storage.base import ReplicaClient
    from pyrep.verify import Finding, VerifyItem, VerifyResult

__all__ = ["command"]

_DAMAGED = 4  # the exit code of LTX errors
_SECONDS = 60.0
_GLOB = frozenset("*?[")


@dataclass(frozen=True, slots=True)
class _Wanted:
    """Hold the flags."""

    integrity_check: str
    scratch: Path | None
    seconds: float
    size: int
    workers: int
    fix_catalog: bool
    as_json: bool


@click.command(
    "verify",
    cls=Command,
    forms=("[flags]", "[flags] DB_PATH|GLOB", "[flags] REPLICA_URL", "-all [flags] REPLICA_URL"),
    short_help="Prove that replicas can be restored.",
    example="pyrep verify -for 10m",
)
@config_flags
@click.option("-all", "every", is_flag=True, help="Verify every replica at and below the URL.")
@click.option(
    "-integrity-check",
    type=OneOf("none", "quick", "full"),
    metavar="none|quick|full",
    default="none",
    show_default=True,
    help="Restore the newest state too, to a scratch file, and let SQLite check it.",
)
@click.option(
    "-scratch",
    metavar="DIR",
    help="Where restored files lie meanwhile; else the system's temporary directory.",
)
@click.option("-for", "patience", type=Duration(), help="Begin no database after this time.")
@click.option("-bytes", "size", type=Size(), help="Begin no database after so many bytes read.")
@click.option(
    "-parallelism", type=Number(), help="Databases side by side; else as many as there are cores."
)
@click.option(
    "-fix-catalog",
    is_flag=True,
    help="Make the catalog say what the storage says, whatever it said before.",
)
@json_flag
@click.argument("words", nargs=-1)
def command(
    config_path: str | None,
    no_expand_env: bool,
    every: bool,
    integrity_check: str,
    scratch: str | None,
    patience: timedelta | None,
    size: int | None,
    parallelism: int | None,
    fix_catalog: bool,
    as_json: bool,
    words: tuple[str, ...],
) -> int:
    """Read what is on the replicas, all of it, and prove that every state leads to the next.

    Without an operand every database of the configuration is verified, those first whose last
    verification is the oldest, as far as -for and -bytes go. A glob is matched against whole
    paths and belongs in quotes. Nothing is changed, and a daemon may run meanwhile.
    """
    if len(words) > 1:
        fail("too many arguments")
    wanted = _Wanted(
        integrity_check,
        Path(scratch) if scratch else None,
        patience.total_seconds() if patience else 0.0,
        size or 0,
        parallelism or 0,
        fix_catalog,
        as_json,
    )
    if words and names_replica(words[0], config_path):
        if fix_catalog:
            fail("-fix-catalog needs a configuration, not a replica URL")
        return _verify_url(wanted, words[0], every)
    if every:
        fail("-all belongs to a replica URL; without one every database is verified anyway")
    config = read_config(config_path, no_expand_env)
    found, problems = _choose(config, words[0] if words else "")
    return _verify_config(config, wanted, found, problems)


# --- which ---


def _verify_url(wanted: _Wanted, url: str, every: bool) -> int:
    from pyrep.cli.tenants import Found, below_url
    from pyrep.errors import TXNotAvailableError
    from pyrep.storage.registry import ReplicaSpec

    log_to_stderr()
    found = list(below_url(url).found) if every else [Found(url, "", ReplicaSpec(url=url))]
    if not found:
        raise TXNotAvailableError(
            f"no replica found at or below {url}", hint="Check the path of the replica."
        )
    return _verify(wanted, found, None, ())


def _choose(config: Config, word: str) -> tuple[list[Found], Sequence[Problem]]:
    """Return the databases that a word names (none: all), and what is wrong with others."""
    from pyrep.cli.tenants import Found, of_config
    from pyrep.errors import ConfigError

    if word and not _GLOB & set(word):
        tenant = find_tenant(config, word)
        return [Found(tenant.name, "", tenant.replica, tenant)], ()
    search = of_config(config)
    if not word:
        return list(search.found), search.problems
    pattern = db_path(word)
    found = [each for each in search.found if fnmatch.fnmatchcase(each.name, pattern)]
    if not found:
        raise ConfigError(f"no database of the configuration matches {pattern}")
    return found, ()


def _verify_config(
    config: Config, wanted: _Wanted, found: list[Found], problems: Sequence[Problem]
) -> int:
    """Verify databases of a configuration and remember it, those of the oldest look first.

    Not those of the oldest proof: one that stays damaged would be read again and again, and with
    a budget nothing else.
    """
    from pyrep.cli.running import proofs

    known = proofs(config)
    never = datetime.fromtimestamp(0, UTC)

    def last(each: Found) -> datetime:
        row = known.get(each.name)
        return row.verified_at if row else never

    return _verify(wanted, sorted(found, key=last), config, problems, known)


# --- doing it ---


def _verify(
    wanted: _Wanted,
    found: Sequence[Found],
    config: Config | None,
    problems: Sequence[Problem],
    known: dict[str, ProofRow] | None = None,
) -> int:
    from pyrep.verify import Budget, VerifyOptions, verify_all

    cancel = threading.Event()
    options = VerifyOptions(
        integrity_check=wanted.integrity_check, scratch=wanted.scratch, cancel=cancel
    )
    meter = Meter()
    show = _shower(meter, len(found))
    unsaved: list[PyrepError] = []

    def done(result: VerifyResult) -> None:
        unsaved.extend(_remember(config, result) if config is not None else ())
        show(result)

    items = [_item(config, each, cancel) for each in found]
    with interruptible(cancel):
        try:
            results = verify_all(
                items,
                options,
                budget=Budget(wanted.seconds, wanted.size),
                workers=wanted.workers,
                on_done=done,
            )
        finally:
            meter.close()
        if wanted.fix_catalog and config is not None:
            unsaved.extend(_fix(config, found, cancel))
    code = _report(wanted, results, problems, known or {})
    return code or (unsaved[0].exit_code if unsaved else 0)


def _item(config: Config | None, found: Found, cancel: threading.Event) -> VerifyItem:
    from pyrep.cli.running import known_files
    from pyrep.storage.registry import connect
    from pyrep.storage.retry import PATIENT
    from pyrep.verify import Known, VerifyItem

    def client() -> ReplicaClient:
        return connect(found.replica, stop=cancel, policy=PATIENT)

    def known() -> Known:
        return known_files(config, found.name) if config is not None else Known()

    return VerifyItem(found.name, client, known)


def _shower(meter: Meter, total: int) -> Callable[[VerifyResult], None]:
    """Return what shows how many databases are done."""
    lock = threading.Lock()
    count: Counter[str] = Counter()

    def show(result: VerifyResult) -> None:
        with lock:
            count[_word(result)] += 1
            done, sound = count.total(), count["ok"]
        meter.show(lambda _: f"verifying: {done} of {total} databases, {sound} sound")

    return show


def _remember(config: Config, result: VerifyResult) -> list[PyrepError]:
    """Write into the catalog what a verification came to; return why it could not be written."""
    from pyrep.catalog import ProofRow
    from pyrep.cli.running import save_proof
    from pyrep.errors import PyrepError
    from pyrep.ids import TXID

    found, now = result.found, datetime.now(UTC)
    if found is None:
        return []  # the storage was not reached: nothing is known of the replica
    error = next((str(finding) for finding in found.findings if _is_error(finding)), "")
    proven = now if found.ok and found.txid else None
    row = ProofRow(result.item.name, found.txid if proven else TXID(0), proven, now, error)
    try:
        save_proof(config, row)
    except PyrepError as problem:
        say(f"Error: {result.item.name}: this verification is not remembered: {problem}")
        return [problem]
    return []


def _fix(config: Config, found: Sequence[Found], cancel: threading.Event) -> list[PyrepError]:
    """Let the catalog say what the storage lists; return why it could not of some."""
    from pyrep.cli.running import ask, relist, running_pid
    from pyrep.errors import PyrepError
    from pyrep.restore.source import list_files
    from pyrep.storage.registry import connect
    from pyrep.storage.retry import PATIENT

    failed: list[PyrepError] = []
    for each in found:
        try:
            if running_pid(config) is not None:  # asked each time: one that starts knows more
                say(ask(config, "relist", each.name, _SECONDS))
                continue
            with closing(connect(each.replica, stop=cancel, policy=PATIENT)) as client:
                listing = list_files(client)
            if not relist(config, each.name, listing):
                say("there is no catalog yet: nothing to mend")
                break
            say(f"the catalog has {len(listing)} files of {each.name} now")
        except PyrepError as error:
            say(f"Error: {each.name}: the catalog is as before: {error}")
            failed.append(error)
    return failed


# --- what it came to ---


def _is_error(finding: Finding) -> bool:
    from pyrep.verify import Severity

    return finding.severity is Severity.ERROR


def _word(result: VerifyResult) -> str:
    if result.error is not None:
        return "failed"
    if result.found is None:
        return "not begun"
    if not result.found.ok:
        return "damaged"
    return "warning" if result.found.findings else "ok"


def _report(
    wanted: _Wanted,
    results: Sequence[VerifyResult],
    problems: Sequence[Problem],
    known: dict[str, ProofRow],
) -> int:
    if wanted.as_json:
        write_json(
            {
                "databases": [_document(each, known.get(each.item.name)) for each in results],
                "problems": [{"path": str(p.path), "error": str(p.error)} for p in problems],
                "count": dict(Counter(map(_word, results))),
            }
        )
    else:
        _print(results, known)
    report_problems(problems)
    codes = {each.error.exit_code for each in results if each.error is not None}
    codes |= {_DAMAGED for each in results if each.found is not None and not each.found.ok}
    codes |= {problem.error.exit_code for problem in problems}
    return codes.pop() if len(codes) == 1 else min(len(codes), 1)


def _print(results: Sequence[VerifyResult], known: dict[str, ProofRow]) -> None:
    columns = ("database", "status", "txid", "time", "files", "size", "proven before")
    write_table(columns, [_row(each, known.get(each.item.name)) for each in results])
    click.echo()
    count = Counter(map(_word, results))
    click.echo(", ".join(f"{number} {word}" for word, number in sorted(count.items())))
    for each in results:
        if each.error is not None:
            say(f"Error: {_named(each, str(each.error))}")
            _hint(each.error)
        for finding in each.found.findings if each.found else ():
            kind = "Error" if _is_error(finding) else "Warning"
            click.echo(printable(f"{kind}: {_named(each, str(finding))}"))


def _named(result: VerifyResult, text: str) -> str:
    return text if text.startswith(result.item.name) else f"{result.item.name}: {text}"


def _hint(error: PyrepError) -> None:
    if error.hint:
        say(f"Hint: {error.hint}")


def _row(result: VerifyResult, before: ProofRow | None) -> tuple[object, ...]:
    from pyrep.restore.plan import time_text

    last = _time(before.proven_at) if before and before.proven_at else "-"
    found = result.found
    if found is None:
        return (result.item.name, _word(result), "-", "-", "-", "-", last)
    txid, when = (str(found.txid), time_text(found.timestamp_ms)) if found.txid else ("-", "-")
    size = size_text(found.bytes)
    return (result.item.name, _word(result), txid, when, found.files, size, last)


def _time(moment: datetime) -> str:
    return moment.isoformat(timespec="seconds").replace("+00:00", "Z")


def _document(result: VerifyResult, before: ProofRow | None) -> dict[str, object]:
    from pyrep.restore.plan import time_text

    head: dict[str, object] = {
        "database": result.item.name,
        "status": _word(result),
        "proven_before": _time(before.proven_at) if before and before.proven_at else None,
    }
    if result.error is not None:
        return head | {"error": str(result.error)}
    found = result.found
    if found is None:
        return head
    return head | {
        "txid": str(found.txid),
        "timestamp": time_text(found.timestamp_ms) if found.txid else None,
        "files": found.files,
        "bytes": found.bytes,
        "checksum": f"{found.checksum:016x}",
        "proven": found.proven,
        "findings": [
            {"kind": f.kind, "severity": f.severity.value, "file": f.file, "text": f.text}
            for f in found.findings
        ],
    }
