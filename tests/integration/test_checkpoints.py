"""Checkpoints of ours under the commits of another SQLite library: nothing lost, stall and lag."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from fixtures.checkpoints import checkpoint_run

_CHECKPOINTS = 5000
_ON_DISK = 200
_MEMORY = Path("/dev/shm")


@pytest.fixture
def quick_folder(tmp_path: Path) -> Iterator[Path]:
    """Yield a folder in memory where there is one: each checkpoint syncs two files to the disk,
    which would take most of the time and change nothing of what is proven.
    """
    if not os.access(_MEMORY, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(prefix="pyrep-test-", dir=_MEMORY) as folder:
        yield Path(folder)


@pytest.mark.slow
def test_nothing_is_lost_through_thousands_of_checkpoints(
    quick_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = checkpoint_run(quick_folder, _CHECKPOINTS)
    with capsys.disabled():
        print(f"\nin memory: {report}")
    assert report.checkpoints >= _CHECKPOINTS
    assert report.restarts > _CHECKPOINTS / 100, "the application hardly restarted the WAL"


def test_checkpoints_on_a_disk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = checkpoint_run(tmp_path, _ON_DISK)
    with capsys.disabled():
        print(f"\non disk: {report}")
    assert report.checkpoints >= _ON_DISK
