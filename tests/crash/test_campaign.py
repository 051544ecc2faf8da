"""The short form of ``make crash``: daemons killed at random points, and what they left."""

from __future__ import annotations

import hashlib
import random
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from fixtures.campaign import Round

pytestmark = pytest.mark.crash

_POINTS = 7


@pytest.mark.slow
@pytest.mark.parametrize("turn", range(4))
def test_a_round_of_random_crashes(
    tmp_path: Path, turn: int, capsys: pytest.CaptureFixture[str]
) -> None:
    seed = random.getrandbits(32)
    with capsys.disabled():
        print("", f"seed {seed}", sep="\n")
    with Round(tmp_path / "round", seed) as campaign:
        for _ in range(_POINTS):
            campaign.point()
        campaign.finish()
    with capsys.disabled():
        print(*campaign.report.lines(), sep="\n")
    assert campaign.report.points >= _POINTS
    assert campaign.report.kills.total() >= _POINTS // 2
    assert campaign.report.restores > _POINTS


@pytest.mark.parametrize(
    ("point", "step"),
    [
        ("*:3:kill", ""),
        ("storage.write_ltx:1:kill-after", "storage.write_ltx"),
        ("stage.write:1:torn", "stage.write"),
        ("storage.write_ltx:1:eio", "storage.write_ltx"),
    ],
)
def test_a_failpoint_is_reached(
    tmp_path: Path, point: str, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lives that only the clock ended would look like crashes too."""
    with Round(tmp_path / "round", 1) as campaign:
        monkeypatch.setattr(campaign, "_points", lambda: point)
        campaign._writer.say("go")
        for _ in range(10):  # how far a life comes depends on the machine
            campaign._crash()
            hits = campaign.report.errors + campaign.report.kills
            del hits["(time)"]
            if hits:
                break
    assert [op for op in hits if step in ("", op)], hits


def _lose_a_file(campaign: Round) -> None:
    next(iter((campaign.folder / "replica").rglob("0/*.ltx"))).unlink()


def _swap_two_files(campaign: Round) -> None:
    first, second, *_ = sorted((campaign.folder / "replica" / "a.db" / "ltx" / "0").iterdir())
    data = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(data)


def _claim_too_much(campaign: Round) -> None:
    (path,) = (campaign.folder / "state").rglob("catalog.db")
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("update tenants set durable_txid = 'ffff'")


def _forget_a_state(campaign: Round) -> None:
    journal = campaign.folder / "journal"
    wrong = hashlib.sha256(b"").hexdigest()
    lines = [f"{line.rpartition(' ')[0]} {wrong}" for line in journal.read_text().splitlines()]
    journal.write_text("".join(f"{line}\n" for line in lines))
    for tenant in campaign._tenants.values():
        tenant.journal.clear()


@pytest.mark.parametrize("harm", [_lose_a_file, _swap_two_files, _claim_too_much, _forget_a_state])
def test_the_campaign_sees_what_is_wrong(tmp_path: Path, harm: Callable[[Round], None]) -> None:
    """A promise that is broken behind its back does not pass."""
    with Round(tmp_path / "round", 1, prunes=False) as campaign:
        campaign.point()
        harm(campaign)
        with pytest.raises(AssertionError):
            campaign._look()
