"""Log lines in three formats, and the rules against floods."""

from __future__ import annotations

import io
import json
import logging
import re
import sys
from collections.abc import Iterator

import pytest

from pyrep.ids import TXID
from pyrep.log import TRACE, LoggingConfig, OncePer, RateLimiter, parse_level, setup

log = logging.getLogger("pyrep.some.module")


class Terminal(io.StringIO):
    """Be a stream that says it is a terminal."""

    def isatty(self) -> bool:
        """Say yes."""
        return True


@pytest.fixture(autouse=True)
def _restore_logging() -> Iterator[None]:
    root, package = logging.getLogger(), logging.getLogger("pyrep")
    handlers, level = list(root.handlers), package.level
    yield
    root.handlers[:] = handlers
    package.setLevel(level)


def lines(stream: io.StringIO) -> list[str]:
    return stream.getvalue().splitlines()


def start(stream: io.StringIO, **keys: object) -> None:
    setup(LoggingConfig(**keys), environ={}, stream=stream)  # type: ignore[arg-type]


def test_text_lines_are_key_value_pairs() -> None:
    stream = io.StringIO()
    start(stream)
    log.info("found databases in directory", extra={"db": "/d/a b.db", "txid": TXID(255)})
    assert re.fullmatch(
        r"time=\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z level=INFO "
        r'msg="found databases in directory" db="/d/a b.db" txid=00000000000000ff',
        lines(stream)[0],
    )


def test_json_lines_hold_numbers_and_texts() -> None:
    stream = io.StringIO()
    start(stream, type="json")
    extra = {"txid": TXID(1), "count": 4, "ratio": 0.5, "gone": None, "ok": True, "x": {1}}
    log.warning("odd %s", "thing", extra={**extra, "nan": float("nan")})
    record = json.loads(lines(stream)[0])
    assert record.pop("time").endswith("Z")
    assert record == {
        "level": "WARN",
        "msg": "odd thing",
        "txid": "0000000000000001",
        "count": 4,
        "ratio": 0.5,
        "gone": None,
        "ok": True,
        "x": "{1}",
        "nan": "nan",
    }


@pytest.mark.parametrize("kind", ["text", "json", "pretty"])
def test_one_record_is_one_line_whatever_a_name_holds(kind: str) -> None:
    stream = io.StringIO()
    start(stream, type=kind)
    log.info("bad\nname", extra={"db": 'a\nlevel=ERROR "b\x1b[31m\udcff.db', "empty": ""})
    (line,) = lines(stream)
    assert "\x1b" not in line
    assert "\\udcff" in line
    line.encode("utf-8")


def test_the_level_of_ltx_files_does_not_hide_the_severity() -> None:
    stream = io.StringIO()
    start(stream, type="json")
    log.error("no", extra={"level": 9})
    record = json.loads(lines(stream)[0])
    assert (record["level"], record["ltx_level"]) == ("ERROR", 9)


def test_pretty_lines_have_colour_on_a_terminal_only() -> None:
    plain, terminal = io.StringIO(), Terminal()
    for stream in (plain, terminal):
        start(stream, type="pretty")
        log.warning("hello there", extra={"op": "sync"})
    assert re.fullmatch(r"\d\d:\d\d:\d\d WRN hello there op=sync", lines(plain)[0])
    assert "\x1b[93mWRN\x1b[0m hello there" in lines(terminal)[0]


@pytest.mark.parametrize("kind", ["text", "json", "pretty"])
def test_the_source_is_named_on_demand(kind: str) -> None:
    stream = io.StringIO()
    start(stream, type=kind, source=True)
    log.info("x")
    assert re.search(r"unit/test_log\.py:\d+", lines(stream)[0])


def test_a_traceback_stays_on_the_line() -> None:
    stream = io.StringIO()
    start(stream)
    try:
        raise OSError("disk is gone")
    except OSError:
        log.exception("failed", extra={"error": "disk is gone"})
    (line,) = lines(stream)
    assert 'error="disk is gone" traceback="Traceback' in line


@pytest.mark.parametrize(
    ("arg", "env", "configured", "expected"),
    [
        (None, "", "WARN", logging.WARNING),
        (None, "debug", "ERROR", logging.DEBUG),
        ("trace", "ERROR", "INFO", TRACE),
        (None, "", "warning", logging.WARNING),
    ],
)
def test_option_beats_environment_beats_file(
    arg: str | None, env: str, configured: str, expected: int
) -> None:
    setup(LoggingConfig(level=configured), level=arg, environ={"LOG_LEVEL": env})
    assert logging.getLogger("pyrep").level == expected


def test_an_unknown_log_level_in_the_environment_gives_a_warning() -> None:
    stream = io.StringIO()
    setup(LoggingConfig(), environ={"LOG_LEVEL": "loud"}, stream=stream)
    assert 'msg="ignoring LOG_LEVEL" error="unknown log level \'loud\'' in lines(stream)[0]
    assert logging.getLogger("pyrep").level == logging.INFO


def test_trace_is_below_debug() -> None:
    stream = io.StringIO()
    start(stream, level="TRACE")
    log.log(TRACE, "deep")
    start(stream, level="DEBUG")
    log.log(TRACE, "silent")
    (line,) = lines(stream)
    assert "level=TRACE msg=deep" in line


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown log level 'loud'"):
        parse_level("loud")
    with pytest.raises(ValueError, match="unknown log type 'xml'"):
        setup(LoggingConfig(type="xml"), environ={})
    with pytest.raises(ValueError, match="unknown log level"):
        setup(LoggingConfig(), level="loud", environ={})


def test_a_second_setup_replaces_the_first() -> None:
    first, second = io.StringIO(), io.StringIO()
    start(first)
    start(second)
    log.info("once")
    assert lines(first) == []
    assert len(lines(second)) == 1


def test_other_libraries_are_heard_from_warnings_on() -> None:
    stream = io.StringIO()
    start(stream, level="TRACE")
    other = logging.getLogger("other.library")
    other.info("chatter")
    other.warning("trouble")
    assert [line.partition("msg=")[2] for line in lines(stream)] == ["trouble"]


@pytest.mark.parametrize("to_stderr", [False, True])
def test_lines_go_to_stdout_or_stderr(to_stderr: bool, capsys: pytest.CaptureFixture[str]) -> None:
    handler = setup(LoggingConfig(stderr=to_stderr), environ={})
    log.info("here")
    assert handler in logging.getLogger().handlers
    captured = capsys.readouterr()
    assert "msg=here" in (captured.err if to_stderr else captured.out)
    assert "msg=here" not in (captured.out if to_stderr else captured.err)
    assert sys.stdout is not sys.stderr


def test_repeated_failures_are_said_once_per_interval() -> None:
    now = [100.0]
    limiter = RateLimiter(30.0, now=lambda: now[0])
    assert limiter.failed("a") == 1
    assert limiter.failed("b") == 1
    now[0] = 129.9
    assert [limiter.failed("a"), limiter.failed("a")] == [0, 0]
    now[0] = 130.0
    assert limiter.failed("a") == 3
    now[0] = 131.0
    assert limiter.failed("a") == 0


def test_a_recovery_is_said_once() -> None:
    limiter = RateLimiter(now=lambda: 0.0)
    assert not limiter.recovered("a")
    limiter.failed("a")
    assert limiter.recovered("a")
    assert not limiter.recovered("a")
    assert limiter.failed("a") == 1


def test_a_cause_passes_once_per_subject() -> None:
    once = OncePer()
    assert once.first("db1", "diff: wal was truncated")
    assert not once.first("db1", "diff: wal was truncated")
    assert once.first("db1", "diff: file replaced")
    assert once.first("db2", "diff: wal was truncated")
    once.forget("db1", "diff: file replaced")
    assert once.first("db1", "diff: file replaced")
    assert not once.first("db1", "diff: wal was truncated")
    once.forget("db1")
    assert once.first("db1", "diff: wal was truncated")
    once.forget("db9", "never seen")
    assert once.first("db9", "never seen")
