"""The harness itself: what tests/conftest.py promises about leaks, skips, environment and seeds."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

_TESTS = Path(__file__).parents[1]

_SAMPLE = """
import os, subprocess, threading
import pytest
from fixtures import effort
from hypothesis import given, strategies as st

kept = []

def test_good(): pass

def test_thread():
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait, args=(60,), name="stray", daemon=True)
    thread.start()

def test_descriptor(): kept.append(os.open("/etc/passwd", os.O_RDONLY))

def test_process(): kept.append(subprocess.Popen(["sleep", "60"]))

def test_missing_program(): effort.program("no-such-program", "install it")

def test_missing_package(): pytest.importorskip("no_such_package")

def test_other_skip(): pytest.skip("the kernel is too old")

@pytest.mark.soak
def test_hours(): pass

def test_environment(tmp_path):
    assert "PYREP_OUTSIDE" not in os.environ
    assert "LITESTREAM_CONFIG" not in os.environ
    assert os.environ["STATE_DIRECTORY"].startswith(str(tmp_path))

@given(st.integers())
def test_generated(number): assert number < 1000

@pytest.fixture(scope="session", autouse=True)
def _end_of_session():
    yield
    for process in kept:
        if isinstance(process, subprocess.Popen):
            process.kill()
            process.wait()
"""


def _run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *flags: str, **variables: str) -> str:
    """Run the sample under a copy of the conftest and return what pytest printed."""
    folder = tmp_path / "sample"
    folder.mkdir()
    shutil.copyfile(_TESTS / "conftest.py", folder / "conftest.py")
    (folder / "test_sample.py").write_text(_SAMPLE)
    (folder / "pytest.ini").write_text(
        f"[pytest]\npythonpath = {_TESTS}\nmarkers =\n    soak\n    large\ntimeout = 60\n"
    )
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-rA", "--tb=short", "--basetemp", tmp_path / "t", *flags],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.stdout + done.stderr


def _outcomes(output: str) -> dict[str, str]:
    """Return the worst outcome of each test: ERROR (at its teardown), FAILED, SKIPPED, PASSED."""
    found: dict[str, str] = {}
    for outcome in ("PASSED", "FAILED", "ERROR"):
        for name in re.findall(rf"^{outcome} test_sample\.py::(\w+)", output, re.MULTILINE):
            found[name] = outcome
    return found


def test_leaks_fail_and_skips_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = _run(
        tmp_path, monkeypatch, PYREP_OUTSIDE="1", LITESTREAM_CONFIG="/nowhere", PYREP_SOAK="0"
    )
    assert _outcomes(output) == {
        "test_good": "PASSED",
        "test_environment": "PASSED",
        "test_thread": "ERROR",
        "test_descriptor": "ERROR",
        "test_process": "ERROR",
        "test_generated": "FAILED",
    }
    assert "left behind: thread stray" in output
    assert re.search(r"left behind: descriptor \d+ of /etc/passwd", output)
    assert re.search(r"left behind: process \d+ sleep", output)
    assert "not run: 1 test: missing: program no-such-program (install it)" in output
    assert "not run: 1 test: the kernel is too old" in output
    assert "not run: 1 test: takes hours (make soak)" in output
    assert "reproduce_failure" in output


def test_nothing_may_be_missing_when_all_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = _run(tmp_path, monkeypatch, PYREP_ALL="1")
    outcomes = _outcomes(output)
    assert outcomes["test_missing_program"] == "FAILED"
    assert outcomes["test_missing_package"] == "FAILED"
    assert "not run: 1 test: the kernel is too old" in output


def test_one_seed_repeats_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = tmp_path / "1", tmp_path / "2"
    blobs = []
    for folder in (first, second):
        folder.mkdir()
        output = _run(folder, monkeypatch, "--randomly-seed=4711")
        assert "--randomly-seed=4711" in output
        order = re.findall(r"^(?:PASSED|FAILED) test_sample\.py::\w+", output, re.MULTILINE)
        blobs.append((order, re.findall(r"reproduce_failure\(.*\)", output)))
    assert blobs[0] == blobs[1]
    assert blobs[0][1]


def test_the_two_halves_are_all_there_is() -> None:
    """A folder of tests that neither half names would never be run."""
    spec = importlib.util.spec_from_file_location("run_tests", _TESTS / "tools/run_tests.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    folders = {path.relative_to(_TESTS).parts[0] for path in _TESTS.glob("*/**/test_*.py")}
    assert folders == {name for half in module.HALVES for name in half}
    assert not list(_TESTS.glob("test_*.py"))
