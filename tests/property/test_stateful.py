"""Whatever happens to a database and to pyrep: every restore is a state that there was.

A failure tells its story and names a seed: ``PYREP_STATEFUL_SEED=N`` repeats that batch alone,
``PYREP_STATEFUL_SHRINK=1`` looks for a shorter story.  Kills and writes in the middle of a request
are races, so a story may need several attempts.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from fixtures import effort
from fixtures.stateful_machine import run_histories


@pytest.mark.property
@pytest.mark.slow
@pytest.mark.timeout(1500 * effort.SCALE)
def test_any_history(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    histories = run_histories(tmp_path, effort.times(60), 30)
    with capsys.disabled():
        print(f"\n{histories}")
    assert histories.totals["TXIDs restored"] > histories.totals["runs"]
