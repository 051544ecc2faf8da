"""Parts of the daemon inside the test's process: folder and lock, events, requests, child."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from fixtures.effort import wait_until
from pyrep import daemon, osfs
from pyrep.catalog import Access, Catalog
from pyrep.clock import SystemClock
from pyrep.config.load import from_args, loads
from pyrep.config.model import Config
from pyrep.daemon.child import Child
from pyrep.daemon.events import Event, Events
from pyrep.daemon.folder import StateFolder
from pyrep.errors import ConfigError, PyrepError, StateLockedError

_HOLD = """
import sys
from pathlib import Path
from pyrep.clock import SystemClock
from pyrep.config.load import loads
from pyrep.daemon.folder import StateFolder
config = loads(sys.argv[1], source=Path(sys.argv[2]))
StateFolder(config, SystemClock()).acquire()
print("locked", flush=True)
sys.stdin.read()
"""


def _text(base: Path) -> str:
    return f"state-dir: {base}/state\ndbs: [{{path: {base}/a.db, replica: {{path: {base}/r}}}}]\n"


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return loads(_text(tmp_path), source=tmp_path / "my pyrep.yml")


@pytest.fixture
def holder(tmp_path: Path, config: Config) -> Iterator[subprocess.Popen[str]]:
    """Let another process hold the lock."""
    command = [sys.executable, "-c", _HOLD, _text(tmp_path), str(config.source)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        yield process
        process.kill()


# --- the folder ---


def test_each_configuration_has_a_folder_of_its_own(tmp_path: Path, config: Config) -> None:
    folder = daemon.state_folder(config)
    assert folder.parent == tmp_path / "state"
    assert folder.name.startswith("my_pyrep.yml-")
    assert daemon.state_folder(loads("dbs: []", source=config.source)).name == folder.name
    other = loads(_text(tmp_path), source=tmp_path / "other/my pyrep.yml")
    assert daemon.state_folder(other) != folder
    assert daemon.catalog_path(config) == folder / "catalog.db"


def test_a_single_database_has_one_by_its_path(tmp_path: Path) -> None:
    first = daemon.state_folder(from_args(f"{tmp_path}/ä b.db", ["file:///r"]))
    assert daemon.state_folder(from_args(f"{tmp_path}/ä b.db", ["file:///other"])) == first
    assert daemon.state_folder(from_args(f"{tmp_path}/c.db", ["file:///r"])) != first
    assert first.name.isascii()


def test_the_lock_names_its_holder(holder: subprocess.Popen[str], config: Config) -> None:
    assert daemon.running_pid(config) == holder.pid
    with pytest.raises(StateLockedError, match=rf"\(pid {holder.pid}\)") as caught:
        StateFolder(config, SystemClock()).acquire()
    assert str(daemon.state_folder(config)) in str(caught.value)
    assert caught.value.exit_code == 9
    holder.kill()
    holder.wait()
    assert daemon.running_pid(config) is None
    folder = StateFolder(config, SystemClock())
    folder.acquire()
    folder.release()
    folder.release()
    assert (daemon.state_folder(config) / "lock").read_bytes() == b""


def test_nobody_runs_where_nothing_ever_ran(config: Config) -> None:
    assert daemon.running_pid(config) is None


def test_a_state_directory_that_cannot_be_made_is_a_clear_error(
    tmp_path: Path, config: Config
) -> None:
    (tmp_path / "state").write_text("a file")
    with pytest.raises(PyrepError, match="cannot be used") as caught:
        StateFolder(config, SystemClock()).acquire()
    assert "state-dir" in caught.value.hint


def test_a_lock_file_that_cannot_be_written_is_a_clear_error(config: Config) -> None:
    osfs.arm(osfs.parse_failpoints("folder.write:1:enospc"))
    try:
        with pytest.raises(PyrepError, match="no space left"):
            StateFolder(config, SystemClock()).acquire()
    finally:
        osfs.disarm()


# --- requests ---


def test_without_a_daemon_a_request_is_an_error(config: Config) -> None:
    with pytest.raises(PyrepError, match="no daemon runs"):
        daemon.request(config, "park", "/data/a.db")


def test_a_request_is_answered_and_one_in_vain_ends(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = daemon.catalog_path(config)
    path.parent.mkdir(parents=True)
    monkeypatch.setattr("pyrep.daemon.requests.running_pid", lambda config: os.getpid())
    rung = threading.Event()
    before = signal.signal(signal.SIGUSR1, lambda number, frame: rung.set())
    with closing(Catalog(path)) as catalog:

        def answer(ok: bool) -> None:
            wait_until(lambda: bool(catalog.open_requests()), "the request is there")
            (request,) = catalog.open_requests()
            catalog.answer_request(request.id, ok, f"{request.verb} {request.argument}")
            catalog.flush()

        try:
            for ok in (True, False):
                helper = threading.Thread(target=answer, args=(ok,))
                helper.start()
                if ok:
                    assert daemon.request(config, "park", "/data/a.db") == "park /data/a.db"
                else:
                    with pytest.raises(PyrepError, match=r"park /data/a\.db"):
                        daemon.request(config, "park", "/data/a.db")
                helper.join()
            with pytest.raises(PyrepError, match="did not answer within"):
                daemon.request(config, "park", "/data/b.db", timeout=0.1)
        finally:
            signal.signal(signal.SIGUSR1, before)
    assert rung.is_set()
    with closing(Catalog(path, access=Access.READ)) as reader:
        assert [each.argument for each in reader.open_requests()] == ["/data/b.db"]


# --- events ---


@pytest.fixture
def _handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("_handlers")
def test_a_stop_that_comes_too_late_is_ignored() -> None:
    with closing(Events()) as events:
        with events.signals():
            os.kill(os.getpid(), signal.SIGTERM)
            assert events.get(30.0) == (Event.STOP, signal.SIGTERM)
        for number in (signal.SIGTERM, signal.SIGINT):
            os.kill(os.getpid(), number)  # would end this process
        assert events.stops == 1


@pytest.mark.usefixtures("_handlers")
def test_signals_in_a_row_all_arrive() -> None:
    numbers = [signal.SIGHUP, signal.SIGUSR1, signal.SIGTERM]
    idle = [threading.Thread(target=threading.Event().wait, args=(2.0,)) for _ in range(10)]
    for thread in idle:
        thread.start()
    with closing(Events()) as events, events.signals():
        for _ in range(50):
            sender = subprocess.Popen(
                ["kill", f"-{int(numbers[0])}", str(os.getpid())], stdin=subprocess.DEVNULL
            )
            seen = {events.get(30.0)}
            sender.wait()
            for number in numbers[1:]:
                os.kill(os.getpid(), number)
            while len(seen - {None}) < len(numbers):
                seen.add(events.get(30.0))
        assert events.stops == 50
    for thread in idle:
        thread.join()


def test_handlers_are_put_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with closing(Events()) as events:
        with events.signals():
            assert signal.getsignal(signal.SIGTERM) != before
        assert signal.getsignal(signal.SIGTERM) == before
        assert events.get(0.0) is None


def test_events_of_other_threads_wake_the_main_thread() -> None:
    with closing(Events()) as events:
        helper = threading.Thread(target=events.put, args=(Event.CHILD_ENDED,))
        helper.start()
        assert events.get(30.0) == (Event.CHILD_ENDED, 0)
        helper.join()
    events.put(Event.CHILD_ENDED)  # a late one is no error


# --- the child ---


@pytest.fixture
def events() -> Iterator[Events]:
    with closing(Events()) as events:
        yield events


def _ended(events: Events, command: str) -> Child:
    child = Child(command, events)
    assert events.get(30.0) == (Event.CHILD_ENDED, 0)
    child.kill()
    return child


def test_a_command_is_split_like_a_shell_does(events: Events, tmp_path: Path) -> None:
    out = tmp_path / "a file"
    _ended(events, f"{sys.executable} -c 'import sys; open(sys.argv[1], \"x\")' '{out}'").check()
    assert out.exists()


@pytest.mark.parametrize("command", ["", "   ", "sh -c 'unclosed"])
def test_what_is_no_command_is_a_wrong_configuration(events: Events, command: str) -> None:
    with pytest.raises(ConfigError, match="exec"):
        Child(command, events)


def test_the_exit_status_is_told(events: Events) -> None:
    _ended(events, "true").check()
    with pytest.raises(PyrepError, match="exit status 3"):
        _ended(events, "sh -c 'exit 3'").check()
    with pytest.raises(PyrepError, match="signal: 9"):
        _ended(events, "sh -c 'kill -9 $$'").check()


def test_the_end_by_a_forwarded_signal_is_no_error(events: Events) -> None:
    child = Child("sleep 1000", events)
    child.forward(signal.SIGTERM)
    assert events.get(30.0) == (Event.CHILD_ENDED, 0)
    child.forward(signal.SIGTERM)
    child.kill()
    child.check()
    assert not child.running
