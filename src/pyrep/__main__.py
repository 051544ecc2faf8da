"""Run the command line: ``pyrep`` and ``python -m pyrep``."""

from __future__ import annotations

import sys

__all__ = ["main"]

_INTERRUPTED = 130


def main() -> int:
    """Load and run the command line; Ctrl-C while it is still being loaded is no traceback."""
    try:
        from pyrep.cli.main import main as run
    except KeyboardInterrupt:
        sys.stderr.write("Error: interrupted\n")
        return _INTERRUPTED
    return run()


if __name__ == "__main__":
    sys.exit(main())
