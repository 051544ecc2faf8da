"""Many tenants in nested directories, a replicator of them, and an application that writes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from meters import Usage, usage
from writer import create

from fixtures.litestream import program

__all__ = ["CannotRunError", "Fleet", "Replicator", "Writer", "writing"]

_PER_FOLDER = 100
_FOLDERS_PER_REGION = 10
_HERE = Path(__file__).parent
# Level 0 stays, since the lags are read from it.
_KEYS = """
l0-retention: 2h
snapshot: {interval: 24h, retention: 720h}
"""


class CannotRunError(Exception):
    """Say why a row could not be measured."""


class Fleet:
    """Own a folder with ``count`` databases and the replicas of them; ``remove`` it at the end."""

    def __init__(self, folder: Path, count: int) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.count = count
        names = [_name(number) for number in range(count)]
        self.databases = [self.data / name for name in names]
        self.names = names
        self._make()

    def _make(self) -> None:
        template = self.folder / "template.db"
        self.data.mkdir(parents=True)
        create(template)
        for database in self.databases:
            database.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(template, database)

    def folders(self) -> list[Path]:
        """Return the directories with databases."""
        return sorted({database.parent for database in self.databases})

    def remove(self) -> None:
        """Delete everything."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _name(number: int) -> str:
    folder, place = divmod(number, _PER_FOLDER)
    return f"region-{folder // _FOLDERS_PER_REGION}/host-{folder}/tenant-{place}.db"


class Replicator:
    """Run pyrep or Litestream over a fleet; each has a replica folder of its own.

    With ``merge_interval`` there is one level: what is stored is merged once, not again after
    minutes and hours.
    """

    def __init__(self, tool: str, fleet: Fleet, *, merge_interval: str = "") -> None:
        self.tool = tool
        self.fleet = fleet
        self.replica = fleet.folder / f"replica-{tool}"
        self.log = fleet.folder / f"{tool}.log"
        self._config = fleet.folder / f"{tool}.yml"
        self._process: subprocess.Popen[bytes] | None = None
        self.configure(merge_interval)

    def configure(self, merge_interval: str = "") -> None:
        """Write the configuration for the next start."""
        state = f"state-dir: {self.fleet.folder}/state\n" if self.tool == "pyrep" else ""
        levels = f"levels: [{{interval: {merge_interval}}}]\n" if merge_interval else ""
        self._config.write_text(
            f"{state}{_KEYS}{levels}dbs:\n"
            f"  - dir: {self.fleet.data}\n    pattern: '*.db'\n    recursive: true\n"
            f"    watch: true\n    replica: {{type: file, path: {self.replica}}}\n"
        )

    @property
    def pid(self) -> int:
        """Return the process id."""
        if self._process is None or self._process.poll() is not None:
            raise CannotRunError(f"{self.tool} ended: {self.text()[-600:]}")
        return self._process.pid

    def start(self) -> float:
        """Start it; return the moment (monotonic seconds)."""
        command = [sys.executable, "-m", "pyrep"] if self.tool == "pyrep" else [str(program())]
        began = time.monotonic()
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [*command, "replicate", "-config", str(self._config)],
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        return began

    def text(self) -> str:
        """Return the log."""
        return self.log.read_text(errors="replace")

    def usage(self) -> Usage:
        """Look at the process."""
        return usage(self.pid)

    def place(self, name: str) -> Path:
        """Return where the files of a tenant go."""
        return self.replica / name

    def places(self) -> list[Path]:
        """Return where the files of all tenants go."""
        return [self.place(name) for name in self.fleet.names]

    def stored(self, level: int = 0) -> int:
        """Return how many tenants have a file of a level on the replica."""
        return sum(_has_files(place / "ltx" / str(level)) for place in self.places())

    def wait(self, condition: Callable[[], bool], what: str, seconds: float) -> None:
        """Wait for something; that the process ends or the time is over is an error."""
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                raise CannotRunError(f"{self.tool}: not in {seconds:.0f} s: {what}")
            _ = self.pid
            time.sleep(0.25)

    def wait_stored(self, seconds: float) -> None:
        """Wait until every tenant has a file on the replica."""
        count = self.fleet.count
        self.wait(lambda: self.stored() >= count, f"{count} tenants stored", seconds)

    def wait_idle(self, seconds: float, *, merged: bool = False) -> None:
        """Wait until pyrep has let go of every database, which Litestream never does.

        ``merged``: and until every tenant has a file at level 1.
        """
        if self.tool == "pyrep":
            self.wait(lambda: self.usage().descriptors < 200, "all tenants parked", seconds)
        if merged:
            count = self.fleet.count
            self.wait(lambda: self.stored(1) >= count, f"{count} tenants merged", seconds)

    def wait_watching(self) -> None:
        """Wait until every tenant was taken in."""
        count = self.fleet.count
        self.wait(lambda: self.text().count("replicating to") >= count, "watching", 300.0)

    def stop(self, seconds: float = 300.0) -> None:
        """Stop it in order."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            code = self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise CannotRunError(f"{self.tool} did not stop in {seconds:.0f} s") from None
        self._process = None
        if code:
            raise CannotRunError(f"{self.tool} ended with {code}: {self.text()[-600:]}")

    def kill(self) -> None:
        """End it by force if it still runs."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._process = None

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run another command of pyrep with the configuration."""
        command = [sys.executable, "-m", "pyrep", words[0], "-config", str(self._config)]
        return subprocess.run([*command, *words[1:]], capture_output=True, text=True, check=False)


def _has_files(folder: Path) -> bool:
    try:
        with os.scandir(folder) as entries:
            return any(entry.name.endswith(".ltx") for entry in entries)
    except FileNotFoundError:
        return False


class Writer:
    """Run ``writer.py`` on databases; ``go`` starts its clock, ``finish`` gives its report."""

    def __init__(self, fleet: Fleet, databases: Sequence[Path], *flags: str) -> None:
        listing = fleet.folder / "writer.list"
        listing.write_text("".join(f"{path}\n" for path in databases))
        self._process = subprocess.Popen(
            [sys.executable, str(_HERE / "writer.py"), str(listing), *flags],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._expect("ready")

    def _expect(self, word: str) -> None:
        line = self._process.stdout.readline() if self._process.stdout else ""
        if line.strip() != word:
            raise CannotRunError(f"the writer ended: {line}")

    def go(self) -> float:
        """Let it write; return the time of day."""
        began = time.time()
        if self._process.stdin is not None:
            self._process.stdin.write("go\n")
            self._process.stdin.flush()
        return began

    @property
    def running(self) -> bool:
        """Return whether it still writes."""
        return self._process.poll() is None

    def finish(self) -> dict[str, Any]:
        """Wait for its end and return its report."""
        out = self._process.stdout.read() if self._process.stdout else ""
        self._process.wait()
        try:
            report = dict(json.loads(out))
        except ValueError:
            raise CannotRunError(f"the writer ended: {out[-300:]}") from None
        if report["errors"]:
            raise CannotRunError(f"the application met errors: {report['errors'][0]}")
        return report

    def kill(self) -> None:
        """End it by force if it still runs."""
        if self.running:
            self._process.kill()
        self._process.communicate()


@contextmanager
def writing(fleet: Fleet, databases: Sequence[Path], *flags: str) -> Iterator[Writer]:
    """Yield a writer that is ready; it is killed if it still runs at the end."""
    writer = Writer(fleet, databases, *flags)
    try:
        yield writer
    finally:
        writer.kill()
