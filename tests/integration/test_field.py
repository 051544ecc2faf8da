"""The field scenario with the real daemon, stopped in the middle of load."""

from __future__ import annotations

from pathlib import Path

import pytest

from fixtures.field import field_run


@pytest.mark.slow
@pytest.mark.interop
@pytest.mark.parametrize(("seconds", "seed"), [(8.0, 100), (8.0, 124), (8.0, 156)])
def test_field_scenario(
    tmp_path: Path, seconds: float, seed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    reports = field_run(tmp_path, seed=seed, seconds=seconds)
    with capsys.disabled():
        rates = ", ".join(f"{name} {report['rate']:g}" for name, report in reports.items())
        worst = max(report["commit_ms"]["max"] for report in reports.values())
        print(f"\nwrites/s: {rates}; slowest commit {worst:g} ms")
