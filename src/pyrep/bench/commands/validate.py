"""``pyrep-bench validate``: restore databases and compare them with their sources."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pyrep.bench.commands.common import choose, metered
from pyrep.cli.common import db_path, json_flag
from pyrep.cli.flags import Command, Duration, Number, OneOf, fail
from pyrep.cli.output import write_json, write_table

if TYPE_CHECKING:
    from pyrep.bench.journal import Commit
    from pyrep.bench.validate import Check

__all__ = ["command"]

_KINDS = ("quick", "integrity", "checksum", "rows", "full")


@click.command(
    "validate",
    cls=Command,
    short_help="Restore databases and compare them with their sources.",
    example="pyrep-bench validate -source-dir /tmp/tenants -config /etc/pyrep.yml",
)
@click.option("-source-db", metavar="PATH", help="One database.")
@click.option("-source-dir", metavar="DIR", help="A directory of databases.")
@click.option(
    "-match", metavar="GLOB", default="*.db", show_default=True, help="File names below the one."
)
@click.option("-config", "config_path", metavar="PATH", help="The configuration that has them.")
@click.option("-replica-url", metavar="URL", help="The replica of -source-db.")
@click.option(
    "-check-type",
    type=OneOf(*_KINDS),
    metavar="|".join(_KINDS),
    default="quick",
    show_default=True,
    help="SQLite's checks and the numbers of rows, whole files, every row, or all of it.",
)
@click.option("-journal", metavar="FILE", help="Restore to past times of this journal as well.")
@click.option("-samples", type=Number(), default=5, show_default=True, help="Times per database.")
@click.option(
    "-slack",
    type=Duration(),
    default="2s",
    show_default=True,
    help="A commit may take so long to be in a file: sync-interval and lag, and where level 0 is"
    " gone the interval of the level that is left.",
)
@click.option("-seed", type=int, default=1, show_default=True, help="Which times.")
@click.option("-restored-db", metavar="PATH", help="Where to restore to, and leave it there.")
@json_flag
@click.argument("words", nargs=-1)
def command(
    source_db: str | None,
    source_dir: str | None,
    match: str,
    config_path: str | None,
    replica_url: str | None,
    check_type: str,
    journal: str | None,
    samples: int,
    slack: timedelta,
    seed: int,
    restored_db: str | None,
    as_json: bool,
    words: tuple[str, ...],
) -> int:
    """Restore with 'pyrep restore' and compare; the sources must be at rest, all uploaded.

    The exit code is 1 if anything differs.
    """
    if words:
        fail("too many arguments")
    if (config_path is None) == (replica_url is None):
        fail("either -config or -replica-url is required")
    if source_dir and (replica_url or restored_db):
        fail("-replica-url and -restored-db belong to -source-db")
    sources = choose(source_db, source_dir, match)
    if restored_db and sources[0].resolve() == Path(db_path(restored_db)).resolve():
        fail("-restored-db is the source: it would be compared with itself")
    wanted = _Wanted(
        check_type,
        _commits(Path(db_path(journal)), sources) if journal else None,
        samples,
        slack.total_seconds(),
        seed,
    )
    found: list[Check] = []
    with tempfile.TemporaryDirectory(prefix="pyrep-bench-") as folder, metered("{} checks") as show:
        copy = Path(db_path(restored_db)) if restored_db else Path(folder) / "restored.db"
        for source in sources:
            words = ("-config", config_path, str(source)) if config_path else (replica_url or "",)
            for check in _checks(wanted, source, words, copy, Path(folder) / "past.db"):
                found.append(check)
                show(len(found))
    known = sources if wanted.commits is None else wanted.commits
    return _report(found, len(sources), [each for each in sources if each not in known], as_json)


@dataclass(frozen=True, slots=True)
class _Wanted:
    """Hold the flags that say what is checked."""

    kind: str
    commits: Mapping[Path, Sequence[Commit]] | None  # None: the past is not asked for
    samples: int
    slack: float
    seed: int


def _commits(journal: Path, sources: Sequence[Path]) -> dict[Path, list[Commit]]:
    """Return what a journal has of each source that it knows.

    :raises ConfigError: it knows none
    """
    from pyrep.bench.journal import read_journal
    from pyrep.errors import ConfigError

    wanted, found = set(sources), defaultdict(list)
    for commit in read_journal(journal):
        if (path := Path(commit.db)) in wanted:
            found[path].append(commit)
    if not found:
        raise ConfigError(
            f"the journal {journal} has no commit of these databases",
            hint="Name the databases as pyrep-bench load was told them.",
        )
    return dict(found)


def _checks(
    wanted: _Wanted, source: Path, words: Sequence[str], copy: Path, past: Path
) -> Iterator[Check]:
    """Restore one database and compare it, then its past; ``words`` follow ``pyrep restore``."""
    from pyrep.bench.validate import Check, check_copy, check_past, restore_copy
    from pyrep.errors import PyrepError

    try:
        restore_copy(words, copy)
    except PyrepError as error:
        yield Check(str(source), "restore", str(error))
        return
    yield from check_copy(source, copy, wanted.kind)
    if wanted.commits is not None and source in wanted.commits:
        yield from check_past(
            source,
            words,
            wanted.commits[source],
            past,
            samples=wanted.samples,
            slack=wanted.slack,
            seed=wanted.seed,
        )


def _report(found: Sequence[Check], databases: int, unknown: Sequence[Path], as_json: bool) -> int:
    wrong = [check for check in found if check.problem]
    if as_json:
        write_json(
            {
                "databases": databases,
                "checks": len(found),
                "failed": len(wrong),
                "problems": [
                    {"db_path": c.db, "check": c.what, "problem": c.problem} for c in wrong
                ],
                "not_in_journal": [str(path) for path in unknown],
            }
        )
        return 1 if wrong else 0
    if wrong:
        write_table(("database", "check", "problem"), [(c.db, c.what, c.problem) for c in wrong])
    if unknown:
        click.echo(f"of {len(unknown)} databases the journal has no commit: no past was checked")
    click.echo(f"{databases} databases, {len(found)} checks, {len(wrong)} failed")
    return 1 if wrong else 0
