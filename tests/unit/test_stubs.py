"""The stubs of the native modules say what the modules have."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from fixtures import effort

ROOT = Path(__file__).parents[2]


def test_stubs_match_the_native_modules(tmp_path: Path) -> None:
    effort.package("mypy", "install the lint group")
    modules = ["pyrep._checksum", "pyrep._wal", "pyrep._ltx"]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "mypy.stubtest"),
            *modules,
            *("--allowlist", str(ROOT / "tests" / "stubtest.allowlist")),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
