"""Run the whole suite as two pytest processes side by side: ``python tests/tools/run_tests.py``.

Many tests wait for servers, intervals and processes, so two of them at a time use two cores
better.  The first half is shown while it runs, the other when both have ended, and last comes one
line for each thing that was not run.  Arguments go to both; the exit code is that of the worse.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

__all__ = ["HALVES", "main"]

_TESTS = Path(__file__).parents[1]
HALVES = (
    ("integration", "servers", "soak"),
    ("conformance", "crash", "fuzz", "interop", "property", "unit"),
)
_NO_TESTS = 5  # pytest's exit code when arguments chose none of a half


def main(arguments: Sequence[str]) -> int:
    """Run both halves; return 0 if all passed."""
    with tempfile.TemporaryFile("w+") as quiet:
        second = _start(HALVES[1], arguments, stdout=quiet, stderr=subprocess.STDOUT)
        first = _start(HALVES[0], arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        reasons = _show(first)
        codes = [first.wait(), second.wait()]
        quiet.seek(0)
        print(f"\nthe other half: {', '.join(HALVES[1])}", flush=True)
        for line in quiet:
            print(line, end="")
            reasons += [line] if line.startswith("not run: ") else []
    print("\nof both halves:")
    print("".join(reasons) or "everything was run\n", end="")
    failed = [code for code in codes if code not in (0, _NO_TESTS)]
    return max(failed, default=0)


def _start(
    folders: Sequence[str], arguments: Sequence[str], **streams: object
) -> subprocess.Popen[str]:
    words = [str(_TESTS / name) for name in folders]
    return subprocess.Popen(  # type: ignore[call-overload,no-any-return]
        [sys.executable, "-m", "pytest", *arguments, *words], text=True, **streams
    )


def _show(process: subprocess.Popen[str]) -> list[str]:
    """Print what a process prints; return its lines about what was not run."""
    reasons = []
    for line in process.stdout or ():
        print(line, end="", flush=True)
        if line.startswith("not run: "):
            reasons.append(line)
    return reasons


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
