"""Let ``python -m pyrep.bench`` be ``pyrep-bench``."""

from pyrep.bench.main import main

if __name__ == "__main__":
    raise SystemExit(main())
