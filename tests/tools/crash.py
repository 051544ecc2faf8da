"""Let daemons die at random points, several side by side, and look at what they left.

usage: crash.py POINTS [--seed N] [--workers N] [--folder DIR]
       crash.py --round N [--seed N]

A round of ten points begins with new databases; its number and the seed decide what it does.
A promise that is broken ends its round: its folder is kept and named, with the command that makes
the round again.  The others go on; the exit code is 1 then.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import traceback
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from fixtures.campaign import Report, Round

_POINTS = 10  # of one round


def _run(folder: Path, seed: int, number: int) -> Report:
    """Do one round; say what each point was, and how it failed if it did."""
    here = folder / f"round-{number}"
    own = random.Random(f"{seed}/{number}").getrandbits(63)
    campaign = Round(here, own)
    try:
        with campaign:
            for at in range(_POINTS):
                campaign.point()
                print(f"round {number} of seed {seed}, point {at + 1}: {campaign.last}", flush=True)
            campaign.finish()
    except Exception:
        campaign.report.failures += 1
        print(f"FAILED: round {number} of seed {seed}, after {campaign.last}; its files: {here}")
        print(f"again: {Path(sys.argv[0]).name} --seed {seed} --round {number}")
        print(traceback.format_exc(), flush=True)
    else:
        shutil.rmtree(here)
    return campaign.report


def main() -> int:
    """Run the rounds and print counts and seed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("points", type=int, nargs="?", default=_POINTS)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--round", type=int)
    parser.add_argument("--folder", type=Path)
    wanted = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="pyrep-crash-", dir=wanted.folder))
    numbers = range(-(-wanted.points // _POINTS)) if wanted.round is None else [wanted.round]
    print(f"crash: {len(numbers)} rounds of seed {wanted.seed} in {folder}", flush=True)
    total = Report()
    with ProcessPoolExecutor(wanted.workers, get_context("spawn")) as pool:
        for job in [pool.submit(_run, folder, wanted.seed, number) for number in numbers]:
            total.add(job.result())
    if not total.failures:
        shutil.rmtree(folder)
    print("\n".join(total.lines()))
    return min(total.failures, 1)


if __name__ == "__main__":
    sys.exit(main())
