"""The engine killed, or refused by the disk, at each step: nothing is lost or named twice."""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import pytest

from fixtures import effort
from fixtures.app import App
from fixtures.crash import (
    Application,
    Engine,
    EngineError,
    KilledError,
    Objects,
    check_history,
)

pytestmark = pytest.mark.crash

Choice = TypeVar("Choice")

STEPS = ("stage", "state", "table", "file", "stream")
CUTS = ("write", "rename", "link", "fsync_dir", "truncate", "fsync")
KILLS = ("kill", "kill-after", "torn")
WRITES = ("stage.write", "state.write", "table.write", "file.write", "stream.write")


@pytest.fixture
def engine() -> Iterator[Engine]:
    with Engine.program() as engine:
        yield engine


@pytest.fixture
def application(start_app: Callable[..., App], tmp_path: Path) -> Application:
    app = start_app(tmp_path / "unused", open_now=False, busy_timeout_ms=50, page_size=512)
    return Application(app)


class Scenario:
    """Hold one run of the same story: first backup, increments, shrink, diff, new page size."""

    def __init__(self, folder: Path, engine: Engine, application: Application) -> None:
        self.folder = folder
        self.engine = engine
        self.application = application
        self.objects = Objects(folder / "replica")
        self.acknowledged = 0
        self.killed = 0
        self.errors: list[EngineError] = []
        self.damage: Callable[[Path], None] | None = None
        self.further: list[str] = []  # failpoints of the runs after the first
        self.meanwhile: Callable[[], None] | None = None

    def run(self, failpoint: str = "") -> dict[str, int]:
        """Tell the story; return the calls of each step."""
        self.application.create(self.folder / "data" / "tenant.db")
        self.start(failpoint)
        for verbs, write in self.story():
            write()
            for verb in verbs:
                self.do(verb)
        counts = self.engine.exit()
        self.application.app.close()
        return counts

    def start(self, failpoint: str = "") -> None:
        """Start pyrep; the start may be where it is killed."""
        try:
            self.engine.start(self.folder, failpoint)
        except KilledError:
            self._after_kill()

    def do(self, verb: str) -> None:
        """Do one thing; if pyrep dies of it, start it again and let it ship what there is."""
        try:
            durable = self.engine.do(verb)
        except KilledError:
            self._after_kill()
            durable = self._recover(verb)
        except EngineError as error:
            self.errors.append(error)
            self.objects.look()
            self.engine.do("disarm")
            self.engine.do(verb)
            durable = self._recover(verb)
        self.objects.look()
        assert durable >= self.acknowledged
        self.acknowledged = durable

    def _cut_power(self) -> None:
        """Do to the state directory what the power cut is to do."""
        state = self.folder / "data" / ".tenant.db-pyrep"
        if self.damage is None or not state.exists():
            return
        self.damage(state)
        position = state / "state.json"
        if position.exists():
            saved = json.loads(position.read_text())
            position.write_text(json.dumps({**saved, "boot_id": "another boot"}))

    def _after_kill(self) -> None:
        """Look at what is left, let the application go on, start pyrep again."""
        self.killed += 1
        self.objects.look()
        self._cut_power()
        if self.meanwhile is not None:
            self.meanwhile()
        self.start(self.further.pop(0) if self.further else "")

    def _recover(self, verb: str) -> int:
        """Ship what is left; leave the database closed if it should be."""
        try:
            durable = self.engine.do("ship")
            if verb in ("close", "restart"):
                self.engine.do("close")
        except KilledError:
            self._after_kill()
            return self._recover(verb)
        return durable

    def story(self) -> Iterator[tuple[tuple[str, ...], Callable[[], None]]]:
        """Give what pyrep does after each thing that the application does."""
        app = self.application
        yield ("ship",), app.insert
        yield ("ship",), app.insert
        yield ("stage",), lambda: app.insert(20)
        yield ("stage", "upload"), app.insert
        yield ("ship",), lambda: app.write("delete from t where id % 3 > 0")
        yield ("ship",), self.vacuum
        yield ("close", "restart"), app.insert
        yield ("ship",), self.unseen
        yield ("close", "restart"), self.vacuum
        yield ("ship", "close"), self.new_page_size
        yield ("restart", "ship", "close"), app.insert

    def vacuum(self) -> None:
        self.application.insert()
        self.application.app.execute("vacuum")

    def absent(self) -> None:
        """Do what makes a WAL unrecognisable while pyrep is dead."""
        self.application.insert()
        self.application.app.checkpoint("truncate")
        self.application.write("update t set a = randomblob(700) where id % 2 = 0")

    def unseen(self) -> None:
        """Restart the WAL twice while nobody watches: a diff."""
        for _ in range(2):
            self.application.insert()
            self.application.app.checkpoint("truncate")
        self.application.insert()

    def new_page_size(self) -> None:
        app = self.application.app
        for sql in (
            "pragma journal_mode=delete",
            "pragma page_size=1024",
            "vacuum",
            "pragma journal_mode=wal",
        ):
            app.execute(sql)
        self.application.insert()


def chosen(counts: dict[str, int], most: int) -> list[tuple[str, int]]:
    """Return the first calls of each step, and some of the later ones, evenly spread."""
    points = []
    for op in sorted(counts):
        if op.split(".")[0] in STEPS:
            calls = counts[op]
            first = range(1, min(calls, most) + 1)
            spread = range(1, calls + 1, max(1, calls // most))
            points += [(op, n) for n in sorted({*first, *spread, calls})]
    return points


def every_or_one(choices: Sequence[Choice], number: int) -> list[Choice]:
    """Return all choices in the long form, one of them in turn in the short one."""
    return list(choices) if effort.SCALE > 1 else [choices[number % len(choices)]]


def calls(tmp_path: Path, engine: Engine, application: Application) -> dict[str, int]:
    """Tell the story undisturbed and return how often each step is called."""
    scenario = Scenario(tmp_path / "undisturbed", engine, application)
    counts = scenario.run()
    assert check_history(scenario.folder / "replica", tmp_path, application, 0) == 9
    return counts


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_killed_at_each_step(
    tmp_path: Path, engine: Engine, application: Application, capsys: pytest.CaptureFixture[str]
) -> None:
    began = time.monotonic()
    points = []
    found = chosen(calls(tmp_path, engine, application), effort.times(1))
    for number, (op, n) in enumerate(found):
        actions = every_or_one(("kill", "kill-after"), number)
        actions += ["torn"] if op in WRITES else []
        points += [f"{op}:{n}:{action}" for action in actions]
    missed = []
    for number, point in enumerate(points):
        folder = tmp_path / "run"
        scenario = Scenario(folder, engine, application)
        scenario.meanwhile = scenario.absent if number % 3 == 0 else None
        scenario.run(point)
        if not scenario.killed:
            missed.append(point)
        check_history(folder / "replica", tmp_path, application, scenario.acknowledged)
        shutil.rmtree(folder)
    seconds = time.monotonic() - began
    with capsys.disabled():
        print(f"\n{len(points)} kill points, {len(missed)} not reached, {seconds:.0f} s")
    assert not missed


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_killed_again_and_again(
    tmp_path: Path, engine: Engine, application: Application, capsys: pytest.CaptureFixture[str]
) -> None:
    """Kill pyrep at any step, and then at any of the first steps of its next runs."""
    total = sum(calls(tmp_path, engine, application).values())
    kills = 0
    for number in range(effort.times(12)):
        seed = random.getrandbits(32)
        rng = random.Random(seed)
        folder = tmp_path / "run"
        scenario = Scenario(folder, engine, application)
        scenario.further = [f"*:{rng.randint(1, 60)}:{rng.choice(KILLS)}" for _ in range(3)]
        scenario.meanwhile = scenario.absent if number % 2 else None
        with capsys.disabled():
            print(f"{'' if number else chr(10) + 'seeds'} {seed}", end="")
        scenario.run(f"*:{rng.randint(1, total)}:{rng.choice(KILLS)}")
        check_history(folder / "replica", tmp_path, application, scenario.acknowledged)
        shutil.rmtree(folder)
        kills += scenario.killed
    with capsys.disabled():
        print(f"\n{kills} kills")
    assert kills >= effort.times(12)


class StreamScenario(Scenario):
    """Hold a run in which no file of all pages fits into the spool."""

    def start(self, failpoint: str = "") -> None:
        """Start pyrep with a small spool; the start may be where it is killed."""
        try:
            self.engine.start(self.folder, failpoint, spool_limit=16 << 10)
        except KilledError:
            self._after_kill()

    def story(self) -> Iterator[tuple[tuple[str, ...], Callable[[], None]]]:
        """Give a first snapshot, a change, a new page size, and another change."""
        app = self.application
        yield ("stage", "upload"), lambda: app.insert(40)
        yield ("ship", "close"), app.insert
        yield ("restart", "ship", "close"), self.new_page_size
        yield ("restart", "ship", "close"), app.insert


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_killed_at_each_step_of_a_stream(
    tmp_path: Path, engine: Engine, application: Application, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing of a stream is on the replica before its end, and no number names two contents."""
    undisturbed = StreamScenario(tmp_path / "undisturbed", engine, application)
    counts = undisturbed.run()
    assert counts["stream.write"] > 20
    assert check_history(undisturbed.folder / "replica", tmp_path, application, 0) == 4
    points = [(op, n) for op, n in chosen(counts, effort.times(3)) if op.split(".")[0] != "stage"]
    killed, missed = 0, []
    for number, (op, n) in enumerate(points):
        folder = tmp_path / "run"
        scenario = StreamScenario(folder, engine, application)
        scenario.meanwhile = application.insert if number % 2 else None
        scenario.run(f"{op}:{n}:{KILLS[number % len(KILLS)] if op in WRITES else 'kill'}")
        check_history(folder / "replica", tmp_path, application, scenario.acknowledged)
        shutil.rmtree(folder)
        killed += scenario.killed
        missed += [] if scenario.killed else [op]
    with capsys.disabled():
        print(f"\n{killed} kills at {len(points)} points of a stream")
    # In how many pieces the bytes go through the spool depends on who is faster.
    assert set(missed) <= {"stream.write", "file.write"}
    assert killed > len(points) // 2


def test_killed_between_a_level_9_file_and_its_level_0_twin(
    tmp_path: Path, engine: Engine, application: Application
) -> None:
    """The twin is uploaded by the next run, so that level 0 has no hole."""
    scenario = Scenario(tmp_path / "run", engine, application)
    application.create(tmp_path / "run" / "data" / "tenant.db")
    scenario.start("file.link:2:kill-after")
    scenario.do("ship")
    scenario.do("close")
    scenario.new_page_size()
    scenario.do("ship")
    assert scenario.killed == 1
    assert "ltx/9/0000000000000001-0000000000000002.ltx" in scenario.objects.seen
    assert "ltx/0/0000000000000002-0000000000000002.ltx" in scenario.objects.seen
    assert check_history(scenario.objects.replica, tmp_path, application, 2) == 2


def _unsynced(state: Path) -> list[Path]:
    """Return the staged files whose bytes may be lost: what has a second name was synced."""
    return [path for path in sorted(state.glob("*.ltx")) if path.stat().st_nlink == 1]


def lose_staged(state: Path) -> None:
    """Lose what was never synced: the staged files."""
    for path in state.glob("*.ltx"):
        path.unlink()


def empty_staged(state: Path) -> None:
    """Keep the names of the staged files and lose their bytes."""
    for path in _unsynced(state):
        path.write_bytes(b"")


def tear_newest(state: Path) -> None:
    """Lose the end of the newest staged file."""
    for path in _unsynced(state)[-1:]:
        path.write_bytes(path.read_bytes()[:200])


def spoil_table(state: Path) -> None:
    """Lose some of the table's pages."""
    table = state / "pages"
    if table.exists():
        data = bytearray(table.read_bytes())
        data[64:128] = bytes(64)
        table.write_bytes(data)


DAMAGES = (lose_staged, empty_staged, tear_newest, spoil_table)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_power_cut_at_each_step(
    tmp_path: Path, engine: Engine, application: Application, capsys: pytest.CaptureFixture[str]
) -> None:
    """Kill pyrep, lose what it had not synced, and go on in another boot."""
    began = time.monotonic()
    counts = calls(tmp_path, engine, application)
    points = [(op, n) for op, n in chosen(counts, effort.times(1)) if op.split(".")[1] in CUTS]
    done = 0
    for number, (op, n) in enumerate(points):
        for damage in every_or_one(DAMAGES, number):
            folder = tmp_path / "run"
            scenario = Scenario(folder, engine, application)
            scenario.damage = damage
            scenario.run(f"{op}:{n}:kill-after")
            assert scenario.killed
            check_history(folder / "replica", tmp_path, application, scenario.acknowledged)
            shutil.rmtree(folder)
            done += 1
    seconds = time.monotonic() - began
    with capsys.disabled():
        print(f"\n{done} power cuts, {seconds:.0f} s")


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_disk_errors_at_each_step(
    tmp_path: Path, engine: Engine, application: Application, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each is reported with the name of what it concerns, and the next attempt goes on."""
    began = time.monotonic()
    points = []
    found = chosen(calls(tmp_path, engine, application), effort.times(1))
    for number, (op, n) in enumerate(found):
        points += [f"{op}:{n}:{action}" for action in every_or_one(("eio", "enospc"), number)]
    for point in points:
        folder = tmp_path / "run"
        scenario = Scenario(folder, engine, application)
        scenario.run(point)
        texts = [str(error) for error in scenario.errors] + engine.notes
        assert texts, f"{point}: nobody was told"
        assert all(error.clear for error in scenario.errors), f"{point}: {texts}"
        assert all("tenant.db" in text or str(folder) in text for text in texts), texts
        check_history(folder / "replica", tmp_path, application, scenario.acknowledged)
        shutil.rmtree(folder)
    seconds = time.monotonic() - began
    with capsys.disabled():
        print(f"\n{len(points)} disk errors, {seconds:.0f} s")
