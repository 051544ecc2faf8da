"""Checkpoints of ours under the commits of another SQLite library, for a long time."""

from __future__ import annotations

from pathlib import Path

import pytest

from fixtures.checkpoints import checkpoint_run

_CHECKPOINTS = 100_000


@pytest.mark.soak
def test_nothing_is_lost_through_a_hundred_thousand_checkpoints(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = checkpoint_run(tmp_path, _CHECKPOINTS)
    with capsys.disabled():
        print(f"\n{report}")
    assert report.checkpoints >= _CHECKPOINTS
