"""The ``pyrep-bench`` program."""

from __future__ import annotations

from collections.abc import Sequence

from pyrep.cli.flags import Group
from pyrep.cli.main import run

__all__ = ["bench", "main"]

bench = Group(
    name="pyrep-bench",
    help="Make databases, load them as applications do, and check what a replica gives.",
    modules={
        "load": "pyrep.bench.commands.load",
        "populate": "pyrep.bench.commands.populate",
        "shrink": "pyrep.bench.commands.shrink",
        "tenants": "pyrep.bench.commands.tenants",
        "validate": "pyrep.bench.commands.validate",
    },
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and return the exit code, as ``pyrep`` does."""
    return run(bench, argv)
