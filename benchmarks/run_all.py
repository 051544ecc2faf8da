"""Run the benchmarks one after another and put their rows into one table.

    python benchmarks/run_all.py [--only core,snapshot] [--output docs] [--quick]

Every number to reach has a line with target, measured and verdict at the end; a benchmark that
fails, takes too long or leaves a row out is a failing line with its reason.  With ``--output`` the
page ``benchmarks.md``, its charts and the raw numbers are written there when all have run; a run
that is interrupted writes nothing.  ``--quick`` takes sizes that say nothing about speed, to try
whether everything works.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from document import Result, table, write
from machine import ROOT, describe
from rows import MEASURES, Row, read_json

_HERE = Path(__file__).parent
_REASON_CHARACTERS = 300
_TIDY_SECONDS = 20.0


@dataclass(frozen=True)
class Bench:
    """Name a program with ``--json``, what makes it quick, and how long it may take."""

    script: str
    quick: Sequence[str]
    minutes: float


BENCHES = {
    "core": Bench("micro/bench_core.py", ["--megabytes=1", "--rounds=1"], 5),
    "snapshot": Bench("compare/bench_snapshot.py", ["--mib=1", "--rounds=1"], 10),
    "tools": Bench(
        "compare/bench_tools.py", ["--seconds=0.5", "--mib=1", "--settle=0", "--only=commits"], 10
    ),
    "scale": Bench("scale/bench_scale.py", ["--tenants=3,4,5", "--seconds=1", "--quick"], 40),
}


def run(name: str, *, quick: bool, folder: Path) -> tuple[list[Row], dict[str, Any]]:
    """Run one benchmark; return its rows, a failing one for each that is missing, and the rest.

    One that breaks off when no row is missing is a failing row of its own.
    """
    bench, out, errors = BENCHES[name], folder / f"{name}.json", folder / f"{name}.err"
    command = [sys.executable, str(_HERE / bench.script), "--json", str(out)]
    why = _run(command + list(bench.quick if quick else ()), bench.minutes * 60, errors)
    try:
        rows, raw, finished = read_json(out)
    except (OSError, ValueError) as error:
        rows, raw, finished = [], {}, False
        why = why or f"it left no rows: {error}"
    measured = {row.id for row in rows if row.tool == "pyrep"}
    missing = [
        Row(
            measure.what,
            measure.target,
            why or "the benchmark has no such row",
            "failed",
            measure.id,
        )
        for measure in MEASURES
        if measure.bench == name and measure.id not in measured
    ]
    if not finished and not missing:
        missing = [Row(name, "", why or "it did not come to its end", "failed")]
        print(missing[0], flush=True)
    return rows + missing, raw


def _run(command: Sequence[str], seconds: float, errors: Path) -> str:
    """Run a program, its lines shown as they come; return why it failed, or nothing.

    It leads a group of its own, so that what it has started ends with it.
    """
    paths = [ROOT / "tests", _HERE, _HERE / "scale"]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    environ = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, paths)),
        "PATH": path,
        "TMPDIR": str(errors.parent),  # so nothing is left of a benchmark that had to be killed
    }
    with errors.open("wb") as file:
        process = subprocess.Popen(command, stderr=file, env=environ, start_new_session=True)
    try:
        code = process.wait(seconds)
    except subprocess.TimeoutExpired:
        return f"it took longer than {seconds / 60:.0f} minutes"
    finally:
        _end(process)
    text = errors.read_text(errors="replace").strip()
    if code in (0, 1) and "Traceback" not in text:  # 1: a target was missed
        sys.stderr.write(f"{text}\n" if text else "")
        return text[-_REASON_CHARACTERS:]
    return f"exit {code}: {text[-_REASON_CHARACTERS:] or 'it said nothing'}"


def _end(process: subprocess.Popen[bytes]) -> None:
    """Make an end of a program, which may tidy up, and of what it started."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_TIDY_SECONDS)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def show(rows: Sequence[Row], benches: Sequence[str]) -> None:
    """Print one line for every number to reach that these benchmarks measure."""
    print("\n== numbers to reach")
    for what, target, measured, theirs, verdict in table(rows):
        beside = f"   (litestream: {theirs})" if theirs else ""
        print(f"{verdict:<8} {what}: {measured}   [target {target}]{beside}")
    left = [measure.what for measure in MEASURES if measure.bench not in benches]
    if left:
        print(f"left out by --only: {', '.join(left)}")


def main() -> int:
    """Run what is wanted; return 1 if a target was missed or a row could not run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default=",".join(BENCHES), help="names, by commas")
    parser.add_argument("--output", type=Path, help="folder of documents to write into")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does everything work?")
    options = parser.parse_args()
    names = options.only.split(",")
    if unknown := set(names) - set(BENCHES):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(BENCHES)}")
    if options.output and set(names) != set(BENCHES):
        parser.error("--output is for all benchmarks: a page without some rows would mislead")
    machine, began = describe(), time.monotonic()
    rows: list[Row] = []
    raw: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="pyrep-bench-all-") as folder:
        for name in names:
            print(f"== {name}", flush=True)
            found, raw[name] = run(name, quick=options.quick, folder=Path(folder))
            rows += found
    show(rows, names)
    if options.output:
        command = "make bench-all" if not options.quick else "benchmarks/run_all.py --quick"
        day = time.strftime("%Y-%m-%d", time.gmtime())
        minutes = (time.monotonic() - began) / 60
        write(Result(rows, raw, machine, command, day, minutes), options.output)
        print(f"written: {options.output / 'benchmarks.md'}")
    return int(any(row.verdict in {"missed", "failed"} for row in rows))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("interrupted: nothing was written")
