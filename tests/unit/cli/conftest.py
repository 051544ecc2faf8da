"""What holds for every test of the command line: no configuration in the usual places."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _no_configuration(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Keep the machine's own configuration out of the tests."""
    monkeypatch.setenv("PYREP_CONFIG", str(tmp_path / "usual-place.yml"))
