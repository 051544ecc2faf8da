"""Feed hostile configurations, catalogs, state directories, listings and replicas.

usage: fuzz_inputs.py COUNT [--seed N] [NAME...]

COUNT inputs go to each target.  An input that breaks a rule ends the run with its number; the same
seed makes it again.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from fixtures.hostile import feed
from fixtures.hostile_targets import TARGETS


def main() -> None:
    """Run and print counts and seed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("count", type=int)
    parser.add_argument("names", nargs="*", choices=[[], *TARGETS], metavar="NAME")
    parser.add_argument("--seed", type=int, default=1)
    wanted = parser.parse_args()
    logging.disable(logging.CRITICAL)
    for name in wanted.names or TARGETS:
        with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
            target = TARGETS[name](Path(folder), stack)
            report = feed(name, target, wanted.seed, wanted.count)
        print(f"{name}, seed {wanted.seed}:", *report.lines(), sep="\n  ", flush=True)


if __name__ == "__main__":
    main()
