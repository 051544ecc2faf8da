"""The quick start of README.md, run as it stands."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from fixtures.app import checkpointed_copy, db_digest, integrity, pages_equal
from fixtures.sources import ROOT


def _block(words: str = "runs this block") -> str:
    found = re.search(
        rf"test_readme\.py {words} -->\n```sh\n(.*?)^```",
        (ROOT / "README.md").read_text(),
        re.MULTILINE | re.DOTALL,
    )
    assert found is not None
    return found[1]


def test_quick_start_restores_what_it_replicated(tmp_path: Path) -> None:
    programs = Path(sys.executable).parent
    done = subprocess.run(
        ["bash", "-eu", "-c", _block()],
        cwd=tmp_path,
        env={**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("db1.db", "team-a/db2.db"):
        source, restored = tmp_path / "tenants" / name, tmp_path / "restored" / name
        copy = checkpointed_copy(source, tmp_path / "copy.db")
        assert pages_equal(copy, restored)
        assert db_digest(source) == db_digest(restored)
        assert integrity(restored) == ["ok"]


def test_the_load_tools_work_as_written(tmp_path: Path) -> None:
    """In the folder of the quick start, whose configuration they use."""
    config = re.search(r"<<'END'\n(.*?)^END$", _block(), re.MULTILINE | re.DOTALL)
    assert config is not None
    (tmp_path / "pyrep.yml").write_text(config[1])
    programs = Path(sys.executable).parent
    done = subprocess.run(
        ["bash", "-eu", "-m", "-c", _block("runs this block too")],
        cwd=tmp_path,
        env={**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "40 ok" in done.stdout
    assert "40 databases, 200 checks, 0 failed" in done.stdout


def test_quick_start_is_short() -> None:
    assert len(_block().splitlines()) <= 24
