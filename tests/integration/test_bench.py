"""``pyrep-bench``: what it makes is what was asked for, and validate sees what is wrong."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from fixtures.effort import wait_until
from fixtures.host import Host
from pyrep.bench.database import row_digest
from pyrep.bench.journal import TABLE, read_journal, rows_of
from pyrep.bench.load import Load
from pyrep.bench.load import run as run_load
from pyrep.bench.main import main
from pyrep.bench.validate import check_copy
from pyrep.errors import DatabaseError


def bench(*words: object) -> tuple[int, str]:
    """Run ``pyrep-bench WORDS``; return its exit code and what it printed."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        code = main([str(word) for word in words])
    return code, out.getvalue()


def document(*words: object, code: int = 0) -> dict[str, object]:
    """Run a command with ``-json``."""
    found, text = bench(*words)
    assert found == code, text
    return dict(json.loads(text[text.index("{") :]))


def test_tenants_are_the_same_for_the_same_seed(tmp_path: Path) -> None:
    for name in ("a", "b"):
        assert bench("tenants", "-dir", tmp_path / name, "-count", "9", "-size", "20KB")[0] == 0
    first = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.db"))
    assert first == sorted(p.relative_to(tmp_path / "b") for p in (tmp_path / "b").rglob("*.db"))
    assert len(first) == 9
    assert len({len(path.parts) for path in first}) > 1
    for path in first:
        one = row_digest(tmp_path / "a" / path)
        assert one == row_digest(tmp_path / "b" / path)
        assert sum(count for count, _ in one.values()) > 0
    assert bench("tenants", "-dir", tmp_path / "a", "-count", "9")[0] == 7


def test_populate_reaches_its_size(tmp_path: Path) -> None:
    path = tmp_path / "one.db"
    words = ["-target-size", "2MB", "-page-size", "1024", "-table-count", "3", "-index-ratio", "1"]
    found = document("populate", "-db", path, *words, "-batch-size", "100", "-json")
    assert 2_000_000 <= int(str(found["size"])) <= 3_000_000
    with contextlib.closing(sqlite3.connect(path)) as db:
        assert db.execute("pragma page_size").fetchone() == (1024,)
        assert db.execute("pragma journal_mode").fetchone() == ("wal",)
        names = [
            name for (name,) in db.execute("select name from sqlite_master where type='index'")
        ]
    assert len(names) == 6
    assert bench("populate", "-db", path)[0] == 7
    assert bench("populate", "-db", tmp_path / "two.db", "-page-size", "1000")[0] == 2


@pytest.mark.parametrize("words", [["50KB"], ["300KB", "-table-count", "4", "-row-size", "3000"]])
def test_a_small_database_is_made_of_small_batches(tmp_path: Path, words: list[str]) -> None:
    found = document("populate", "-db", tmp_path / "one.db", "-target-size", *words, "-json")
    wanted = int(words[0].removesuffix("KB")) * 1000
    assert wanted <= int(str(found["size"])) <= wanted * 1.5


def test_load_writes_what_it_says_and_the_journal_knows_it(tmp_path: Path) -> None:
    bench("tenants", "-dir", tmp_path / "t", "-count", "5", "-size", "10KB")
    words = ["-dir", tmp_path / "t", "-write-rate", "300", "-workers", "2", "-read-ratio", "0.1"]
    words += ["-duration", "1s", "-choice", "zipf", "-journal", tmp_path / "journal", "-json"]
    first, second = document("load", *words), document("load", *words)
    commits = list(read_journal(tmp_path / "journal"))
    assert len(commits) == int(str(first["writes"])) + int(str(second["writes"]))
    assert int(str(first["reads"])) > 0
    assert first["errors"] == 0
    by_path: dict[str, int] = {}
    for path in (tmp_path / "t").rglob("*.db"):
        mine = [each for each in commits if each.db == str(path)]
        by_path[str(path)] = len(mine)
        chains = rows_of(path)
        assert sum(map(len, chains.values())) == len(mine)
        assert all(chains[each.worker][each.number - 1] == each.digest for each in mine)
    assert max(by_path.values()) > 2 * min(by_path.values()), "zipf prefers few"


@pytest.mark.parametrize("rate", ["nan", "inf", "0", "-1"])
def test_a_rate_that_is_none_is_refused(tmp_path: Path, rate: str) -> None:
    bench("populate", "-db", tmp_path / "one.db", "-target-size", "50KB")
    words = ["-db", tmp_path / "one.db", "-duration", "100ms", "-journal", tmp_path / "no" / "j"]
    code, text = bench("load", *words, f"-write-rate={rate}")
    assert (code, "-write-rate must be above 0" in text) == (2, True), text
    code, text = bench("load", *words)
    assert (code, "journal cannot be written" in text) == (2, True), text


def test_a_load_that_is_too_much_ends_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was due and not done is not made up for after the end; a look at the clock is 10 ms."""
    ticks = itertools.count()
    clock = SimpleNamespace(monotonic=lambda: next(ticks) / 100, time=time.time)
    monkeypatch.setattr("pyrep.bench.load.time", clock)
    bench("populate", "-db", tmp_path / "one.db", "-target-size", "50KB")
    load = Load([tmp_path / "one.db"], rate=1e9, seconds=1.0, payload=16)
    report = run_load(load, threading.Event())
    assert 10 < report.writes <= 100 / 5


@pytest.mark.parametrize("pattern", ["constant", "burst", "random", "wave"])
def test_every_pattern_does_about_the_rate(tmp_path: Path, pattern: str) -> None:
    path = tmp_path / "one.db"
    bench("populate", "-db", path, "-target-size", "50KB")
    words = ["-write-rate", "50", "-duration", "2s", "-read-ratio", "0", "-pattern", pattern]
    found = document("load", "-db", path, *words, "-json")
    assert int(str(found["writes"])) > 20


def test_a_changed_or_lost_row_shows(tmp_path: Path) -> None:
    path = tmp_path / "one.db"
    bench("populate", "-db", path, "-target-size", "50KB")
    bench("load", "-db", path, "-write-rate", "200", "-duration", "500ms", "-read-ratio", "0")
    assert len(rows_of(path)[0]) > 20
    for sql in (
        f"update {TABLE} set data = x'00' where number = 3",
        f"delete from {TABLE} where number = 7",
    ):
        copy = tmp_path / "copy.db"
        with contextlib.closing(sqlite3.connect(path)) as db:
            db.execute("pragma wal_checkpoint(truncate)")
        shutil.copy(path, copy)
        with contextlib.closing(sqlite3.connect(copy)) as db, db:
            db.execute(sql)
        with pytest.raises(DatabaseError, match="does not follow"):
            rows_of(copy)


def test_shrink_deletes_and_gives_back(tmp_path: Path) -> None:
    path = tmp_path / "one.db"
    bench("populate", "-db", path, "-target-size", "1MB")
    bench("load", "-db", path, "-write-rate", "100", "-duration", "200ms", "-read-ratio", "0")
    before, chains = row_digest(path), rows_of(path)
    words = ["-vacuum", "-checkpoint", "-checkpoint-mode", "TRUNCATE", "-json"]
    (found,) = document("shrink", "-db", path, *words)["databases"]  # type: ignore[misc]
    share = found["rows_deleted"] / before["bench_0"][0]
    assert 0.4 < share < 0.6
    assert found["size"] < found["size_before"]
    assert rows_of(path) == chains


def test_a_load_ends_in_order_at_a_signal(tmp_path: Path) -> None:
    path = tmp_path / "one.db"
    bench("populate", "-db", path, "-target-size", "50KB")
    words = ["load", "-db", str(path), "-duration", "1h", "-json", "-journal", str(tmp_path / "j")]
    with subprocess.Popen(
        [sys.executable, "-m", "pyrep.bench", *words], stdout=subprocess.PIPE, text=True
    ) as process:
        wait_until(
            lambda: (tmp_path / "j").exists() and (tmp_path / "j").stat().st_size > 0, "load"
        )
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=30)
        assert process.returncode == 0
        assert json.loads(out)["writes"] == len(list(read_journal(tmp_path / "j")))


def test_the_tools_of_the_readme_work_as_written(tmp_path: Path) -> None:
    """Make tenants, replicate them, load them, stop, validate: now and at past times."""
    with Host(tmp_path, replica={"sync-interval": "100ms"}) as host:
        made = ["-dir", host.data, "-count", "12", "-size", "40KB"]
        assert bench("tenants", *made)[0] == 0
        host.start()
        journal = tmp_path / "journal"
        words = ["-dir", host.data, "-write-rate", "120", "-duration", "4s", "-journal", journal]
        assert bench("load", *words)[0] == 0
        assert host.stop() == 0
        words = ["-source-dir", host.data, "-config", host.config, "-json"]
        past = ["-journal", journal, "-samples", "2", "-slack", "3s"]
        found = document("validate", *words, "-check-type", "full", *past)
        assert found["failed"] == 0
        assert found["databases"] == 12
        assert found["checks"] == 12 * (4 + 2)
        _damage(host, next(host.data.rglob("*.db")))
        found = document("validate", *words, "-check-type", "rows", code=1)
        assert found["failed"] == 1


def _damage(host: Host, source: Path) -> None:
    """Change a source behind the daemon's back: its replica is not equal any more."""
    with contextlib.closing(sqlite3.connect(source)) as db, db:
        db.execute("create table more (a)")


def test_a_past_that_never_was_is_found(tmp_path: Path) -> None:
    """A journal that tells of later commits than the replica has."""
    with Host(tmp_path) as host:
        path = host.data / "one.db"
        bench("populate", "-db", path, "-target-size", "50KB")
        host.start()
        host.wait_shipped("one.db")
        assert host.stop() == 0
        journal = tmp_path / "journal"
        bench("load", "-db", path, "-write-rate", "50", "-duration", "500ms", "-read-ratio", "0",
              "-journal", journal)  # fmt: skip
        moved = [json.loads(line) for line in journal.read_text().splitlines()]
        with journal.open("w") as file:
            for each in moved:
                file.write(json.dumps(each | {"done": time.time(), "begun": time.time()}) + "\n")
        words = ["-source-db", path, "-replica-url", f"file://{host.replica}/one.db", "-json"]
        found = document("validate", *words, "-journal", journal, "-slack", "1us", code=1)
        (*_, problem) = found["problems"]  # type: ignore[misc]
        assert re.search(r"0 rows, \d+ were committed by then", problem["problem"])


@pytest.fixture
def stored(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """Return a database at rest and the URL of its replica, which has all of it."""
    with Host(tmp_path) as host:
        path = host.data / "one.db"
        bench("populate", "-db", path, "-target-size", "50KB")
        host.start()
        host.wait_shipped("one.db")
        assert host.stop() == 0
        yield path, f"file://{host.replica}/one.db"


@pytest.mark.parametrize("kind", ["quick", "integrity", "checksum", "rows"])
def test_a_replica_that_lacks_the_newest_rows_passes_no_check(
    stored: tuple[Path, str], kind: str
) -> None:
    path, url = stored
    words = ["-source-db", path, "-replica-url", url, "-check-type", kind, "-json"]
    assert document("validate", *words)["failed"] == 0
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.execute("insert into bench_0 select null, data, 'x', 1, 1.0, 1 from bench_0 limit 1")
    assert document("validate", *words, code=1)["failed"] == 1


def test_rows_tell_a_lost_index_and_text_that_is_no_utf_8(stored: tuple[Path, str]) -> None:
    path, _ = stored
    copy = path.with_name("copy.db")
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("update bench_0 set text_field = cast(x'ff41' as text) where id = 1")
        db.execute("pragma wal_checkpoint(truncate)")
    shutil.copy(path, copy)
    assert [check.problem for check in check_copy(path, copy, "rows")] == [""]
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.execute("create index later on bench_0 (text_field)")
    (check,) = check_copy(path, copy, "rows")
    assert check.problem == "the schemas differ"


def test_a_source_is_never_restored_over(stored: tuple[Path, str]) -> None:
    """It would be compared with itself then, and what was not replicated would be gone."""
    path, url = stored
    link = path.with_name("link.db")
    link.symlink_to(path)
    before = path.read_bytes()
    for output in (path, link):
        words = ["-source-db", path, "-replica-url", url, "-restored-db", output]
        code, text = bench("validate", *words)
        assert code == 2, text
        assert "-restored-db is the source" in text
    assert path.read_bytes() == before


def test_databases_that_no_commit_is_of_are_said_not_to_be_checked(tmp_path: Path) -> None:
    """A load of few of many writes to some of them only; that is no fault of a replica."""
    with Host(tmp_path) as host:
        for name in ("one.db", "two.db"):
            bench("populate", "-db", host.data / name, "-target-size", "50KB")
        journal = tmp_path / "journal"
        words = ["-write-rate", "50", "-duration", "300ms", "-read-ratio", "0"]
        bench("load", "-db", host.data / "one.db", *words, "-journal", journal)
        bench("load", "-db", tmp_path / "data" / "two.db", *words)
        host.start()
        host.wait_shipped("one.db", "two.db")
        assert host.stop() == 0
        words = ["-source-dir", str(host.data), "-config", str(host.config), "-json"]
        found = document("validate", *words, "-journal", journal, "-samples", "1", "-slack", "60s")
        assert found["not_in_journal"] == [str(host.data / "two.db")]
        assert found["checks"] == 3
        journal.write_text("")
        code, text = bench("validate", *words, "-journal", journal)
        assert code == 2
        assert "has no commit of these databases" in text


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["load"], "either -db or -dir is required"),
        (["load", "-db", "/nowhere.db"], "database does not exist"),
        (["tenants"], "-dir is required"),
        (["populate"], "-db is required"),
        (["shrink", "-dir", "/nowhere"], "no file below /nowhere"),
        (["validate", "-source-db", "x"], "either -config or -replica-url"),
        (["load", "-rate", "1"], "flag provided but not defined: -rate"),
    ],
)
def test_wrong_words_are_one_line(words: list[str], text: str) -> None:
    code, out = bench(*words)
    assert code in (2, 3)
    assert text in out
    assert "Traceback" not in out
