"""First snapshot of one database and its restore, whole processes, pyrep beside Litestream.

Question: how long, how much CPU and how much memory until a large database is on a file replica,
and until it is back?  Each round copies the same seeded database twice and lets both programs
replicate it once and restore it, one after the other; results are compared with the source before
their time counts.  Ratios of one round count; absolute figures move with the machine.

usage: bench_snapshot.py [--mib 1024] [--rounds 2] [--json FILE]
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from fixtures.app import pages_equal
from fixtures.litestream import program
from rows import Report, Row, verdict

_CORPUS = Path(__file__).parents[1] / "corpus.py"
_PIECE = 1 << 20
_MOST_MB = 128


@dataclass(frozen=True)
class Run:
    """Hold what one process took: wall and CPU seconds, peak resident MB.

    ``bare_seconds`` is what writing and syncing as many bytes as it wrote takes without any work.
    """

    seconds: float
    cpu: float
    mb: float
    bare_seconds: float = 0.0


def measure(arguments: list[str], log: Path) -> Run:
    """Run a program to its end and return what it took; its output goes to ``log``."""
    os.sync()  # what was prepared is not to be written back on this program's time
    environment = {k: v for k, v in os.environ.items() if k != "AWS_CA_BUNDLE"}
    began = time.monotonic()
    with log.open("ab") as out:
        process = subprocess.Popen(arguments, stdout=out, stderr=out, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.monotonic() - began
    if process.returncode:
        sys.exit(f"{' '.join(arguments)} failed:\n{log.read_text()[-2000:]}")
    return Run(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def one_round(tool: str, source: Path, folder: Path) -> tuple[Run, Run]:
    """Replicate a copy of ``source`` once and restore it; return both runs."""
    folder.mkdir()
    database, output, log = folder / "app.db", folder / "out.db", folder / "log"
    shutil.copyfile(source, database)
    url = f"file://{folder}/replica"
    state = f"state-dir: {folder}/state\n" if tool == "pyrep" else ""
    config = folder / "config.yml"
    config.write_text(f"{state}dbs:\n  - path: {database}\n    replica:\n      url: {url}\n")
    command = [sys.executable, "-m", "pyrep"] if tool == "pyrep" else [str(program())]
    snapshot = measure([*command, "replicate", "-config", str(config), "-once"], log)
    restore = measure([*command, "restore", "-o", str(output), url], log)
    truth = source if tool == "pyrep" else database
    if not pages_equal(truth, output):
        sys.exit(f"{tool}: the restore differs from the database; nothing is measured")
    stored = sum(file.stat().st_size for file in (folder / "replica").rglob("*.ltx"))
    shutil.rmtree(folder / "replica")
    output.unlink()
    bare = [bare_write(folder / "bare", size) for size in (stored, source.stat().st_size)]
    shutil.rmtree(folder)
    return replace(snapshot, bare_seconds=bare[0]), replace(restore, bare_seconds=bare[1])


def bare_write(path: Path, size: int) -> float:
    """Return how long it takes to write and sync a file of so many bytes, and do nothing else."""
    os.sync()
    piece = random.Random(1).randbytes(_PIECE)
    began = time.monotonic()
    with path.open("wb", buffering=0) as file:
        for at in range(0, size, _PIECE):
            file.write(piece[: size - at])
        os.fsync(file.fileno())
    seconds = time.monotonic() - began
    path.unlink()
    return seconds


def rows(id: str, name: str, ours: list[Run], theirs: list[Run], wanted: int) -> list[Row]:
    """Return the row of each program; ours says whether the ratio and the memory are reached."""
    ratio = statistics.median(b.seconds / a.seconds for a, b in zip(ours, theirs, strict=True))
    less = statistics.median(b.cpu / a.cpu for a, b in zip(ours, theirs, strict=True))
    reached = ratio >= wanted and max(run.mb for run in ours) <= _MOST_MB
    texts = {
        "pyrep": f"{ratio:.1f} times faster, {less:.1f} times less CPU: {_text(ours)}",
        "litestream": _text(theirs),
    }
    return [
        Row(
            name if tool == "pyrep" else f"{tool}: {name}",
            f"{wanted} times faster, <= {_MOST_MB} MB",
            texts[tool],
            verdict(reached if tool == "pyrep" else None),
            id,
            tool,
            _numbers(runs),
        )
        for tool, runs in (("pyrep", ours), ("litestream", theirs))
    ]


def _numbers(runs: list[Run]) -> dict[str, float]:
    return {
        "seconds": statistics.median(run.seconds for run in runs),
        "cpu_seconds": statistics.median(run.cpu for run in runs),
        "mb": max(run.mb for run in runs),
        "bare_seconds": statistics.median(run.bare_seconds for run in runs),
    }


def _text(runs: list[Run]) -> str:
    numbers = _numbers(runs)
    return (
        f"{numbers['seconds']:.2f} s, {numbers['cpu_seconds']:.2f} CPU-s, {numbers['mb']:.0f} MB "
        f"(bare writing and syncing: {numbers['bare_seconds']:.2f} s)"
    )


def main() -> int:
    """Run the rounds and print the two rows of the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mib", type=float, default=1024, help="size of the database")
    parser.add_argument("--rounds", type=int, default=2)
    Report.add_option(parser)
    wanted = parser.parse_args()
    report = Report(wanted.json)
    with tempfile.TemporaryDirectory(prefix="pyrep-bench-") as scratch:
        folder = Path(scratch)
        source = folder / "source.db"
        # In a process of its own: a child's peak memory counts from its parent's at the fork.
        builder = [sys.executable, str(_CORPUS), "mixed", str(source), "--mib", str(wanted.mib)]
        made = subprocess.run(builder, check=True, capture_output=True, text=True).stdout.strip()
        print(f"{made}, {wanted.rounds} rounds, medians", flush=True)
        results: dict[str, list[tuple[Run, Run]]] = {"pyrep": [], "litestream": []}
        # The first round is a warm-up: it gets the page cache its memory, for both.
        for number in range(wanted.rounds + 1):
            for tool, runs in results.items():
                runs.append(one_round(tool, source, folder / f"{tool}-{number}"))
        report.raw = {
            "corpus": made,
            "runs": {
                tool: [[asdict(run) for run in pair] for pair in runs]
                for tool, runs in results.items()
            },
        }
    for at, (id, name, target) in enumerate(
        [("snapshot", "first snapshot", 5), ("restore", "restore", 8)]
    ):
        ours, theirs = ([pair[at] for pair in runs[1:]] for runs in results.values())
        for row in rows(id, name, ours, theirs, target):
            report.add(row)
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
