"""The same as tests/property/test_stateful.py, with histories that are four times as long."""

from __future__ import annotations

from pathlib import Path

import pytest

from fixtures import effort
from fixtures.stateful_machine import run_histories


@pytest.mark.soak
@pytest.mark.timeout(86400)
def test_long_histories(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    histories = run_histories(tmp_path, effort.times(10), 120)
    with capsys.disabled():
        print(f"\n{histories}")
    assert histories.totals["TXIDs restored"] > histories.totals["runs"]
