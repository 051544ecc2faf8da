"""Run the command line: ``python -m pyrep``."""

from __future__ import annotations

import sys

from pyrep.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
