"""Whatever goes wrong becomes one clear error and an exit code."""

from __future__ import annotations

import errno
import io
import shlex
import subprocess
import sys
from collections.abc import Callable
from typing import NoReturn

import pytest

from fixtures.cli import Terminal, pyrep
from pyrep import errors
from pyrep.cli import version
from pyrep.cli.output import Terminated

Fail = Callable[[BaseException], None]


@pytest.fixture
def fail(monkeypatch: pytest.MonkeyPatch) -> Fail:
    """Return a function that lets ``pyrep version`` raise an error."""

    def install(error: BaseException) -> None:
        def broken(**_: object) -> NoReturn:
            raise error

        monkeypatch.setattr(version.command, "callback", broken)

    return install


def test_each_error_class_has_its_exit_code(fail: Fail) -> None:
    for name in errors.__all__:
        error = getattr(errors, name)("the thing is broken")
        fail(error)
        done = pyrep("version")
        assert (done.code, done.err) == (error.exit_code, "Error: the thing is broken\n")


def test_a_hint_follows(fail: Fail) -> None:
    fail(errors.PyrepError("no space", hint="Make some."))
    assert pyrep("version").err == "Error: no space\nHint: Make some.\n"


def test_an_error_is_one_line_whatever_a_name_holds(fail: Fail) -> None:
    fail(errors.DatabaseError("/a\nb\x1b[31m\udcff é: is broken"))
    assert pyrep("version").err == "Error: /a\\nb\\x1b[31m\\udcff é: is broken\n"


def test_an_unexpected_error_is_one_line_without_traceback(fail: Fail) -> None:
    fail(ZeroDivisionError("what a surprise"))
    done = pyrep("version")
    assert done.code == 1
    assert done.err.splitlines()[0] == "Error: unexpected ZeroDivisionError: what a surprise"
    assert "PYREP_DEBUG=1" in done.err
    assert "Traceback" not in done.err


def test_an_error_of_the_system_names_its_file(fail: Fail) -> None:
    fail(OSError(errno.ENOSPC, "No space left on device", "/x/y"))
    assert pyrep("version").error == "/x/y: No space left on device"


def test_the_traceback_is_there_for_who_asks(fail: Fail, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYREP_DEBUG", "1")
    fail(ZeroDivisionError("what a surprise"))
    done = pyrep("version")
    assert "Traceback" in done.err
    assert done.err.splitlines()[-1] == "Error: unexpected ZeroDivisionError: what a surprise"


def test_a_low_log_level_shows_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOG_LEVEL", "debug")
    done = pyrep("ltx", "ftp://host/path")
    assert "Traceback" in done.err
    assert done.code == 2


@pytest.mark.parametrize(
    ("error", "code"), [(KeyboardInterrupt(), 130), (Terminated(), 143)], ids=["INT", "TERM"]
)
def test_an_interruption_is_no_failure(fail: Fail, error: BaseException, code: int) -> None:
    fail(error)
    done = pyrep("version")
    assert (done.code, done.err) == (code, "Error: interrupted\n")


def test_a_reader_that_goes_away_is_no_error() -> None:
    class Closed(Terminal):
        def write(self, _text: str) -> int:
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    done = pyrep("version", out=Closed())
    assert (done.code, done.err) == (141, "")


def test_a_real_pipe_without_reader_is_quiet() -> None:
    command = [sys.executable, "-m", "pyrep", "version", "-verbose"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    with process.stderr:
        assert process.stderr.read() == b""
    assert process.wait() == 141


def test_output_that_cannot_be_written_is_an_error() -> None:
    with open("/dev/full", "wb") as full:
        command = [sys.executable, "-m", "pyrep", "version"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr.splitlines()[0]) == (1, b"Error: No space left on device")
    assert b"Traceback" not in done.stderr


def test_closed_output_is_no_error() -> None:
    command = f"{shlex.quote(sys.executable)} -m pyrep version >&-"
    done = subprocess.run(["/bin/sh", "-c", command], stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


def test_the_version_is_printed() -> None:
    from pyrep import __version__

    assert pyrep("version").out == f"{__version__}\n"
    names = [line.split(":")[0] for line in pyrep("version", "-verbose").out.splitlines()]
    assert names == ["Version", "Python", "APSW", "OS/Arch"]


def test_a_stream_that_knows_few_letters_is_served() -> None:
    command = [sys.executable, "-m", "pyrep", "ltx", "file:///nowhere/\N{GREEK SMALL LETTER PI}?"]
    done = subprocess.run(
        command, capture_output=True, env={"PYTHONIOENCODING": "latin-1"}, check=False
    )
    assert done.returncode == 2
    assert b"\\u03c0" in done.stderr


def test_output_goes_nowhere_else(capfd: pytest.CaptureFixture[str]) -> None:
    pyrep("nonsense", out=io.StringIO())
    assert capfd.readouterr() == ("", "")
