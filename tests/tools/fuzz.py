"""Feed hostile files to the native core, whatever build of it the interpreter finds.

usage: fuzz.py COUNT [--seed N] [--slow]

``--slow`` is for builds with sanitizers: time and memory are theirs then.  An input that breaks a
rule ends the run with its number; the same seed makes it again.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from fixtures.fuzzing import Fuzzer
from pyrep import _ltx


def main() -> None:
    """Run and print counts and seed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("count", type=int)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--slow", action="store_true")
    wanted = parser.parse_args()
    print(f"fuzz: {wanted.count} inputs of seed {wanted.seed}, core {_ltx.__file__}", flush=True)
    fuzzer = Fuzzer(wanted.seed, slow=wanted.slow)
    try:
        report = fuzzer.run(wanted.count)
    finally:
        fuzzer.close()
    print("\n".join(report.lines()))


if __name__ == "__main__":
    main()
