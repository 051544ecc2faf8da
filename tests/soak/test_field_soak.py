"""The field scenario, many times in a row on one machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from fixtures.field import field_run


@pytest.mark.soak
@pytest.mark.interop
@pytest.mark.parametrize("turn", range(10))
def test_field_scenario_again(tmp_path: Path, turn: int) -> None:
    field_run(tmp_path, seed=210 + 10 * turn)
