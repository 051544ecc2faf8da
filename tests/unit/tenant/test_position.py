"""The position as text, fingerprints, lineages."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from pyrep.ids import TXID, Salts
from pyrep.tenant.position import Fingerprint, SyncState, boot_id, new_node_id

_STATE = SyncState(
    node_id=77,
    txid=TXID(12),
    durable_txid=TXID(10),
    page_size=4096,
    salts=Salts(1, 2),
    end_offset=4152,
    checksum=(3, 4),
    commit=9,
    db_checksum=5,
    timestamp_ms=6,
    fingerprint=Fingerprint(1, 2, 3, 4, 5),
    boot_id="b",
    fenced="",
    converted=True,
    wal_print=(7, 8, 9),
)


@pytest.mark.parametrize("state", [_STATE, SyncState(1), _STATE.unsealed()])
def test_text_comes_back(state: SyncState) -> None:
    back = SyncState.from_json(state.to_json())
    assert back == state
    assert isinstance(back.salts, Salts)


def test_after_an_unclean_stop_the_checksum_is_none() -> None:
    text = json.loads(_STATE.to_json()) | {"checksum": None}
    assert SyncState.from_json(json.dumps(text)).checksum is None


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"node_id": 0},
        {"node_id": 1 << 64},
        {"txid": -1},
        {"salts": [1]},
        {"fingerprint": {"inode": 1}},
        {"fingerprint": 5},
        {"nobody": 1},
        {"checksum": 7},
    ],
)
def test_other_texts_are_no_positions(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"sync state|int|tuple"):
        SyncState.from_json(json.dumps(json.loads(_STATE.to_json()) | change))


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", "{", "7"])
def test_damaged_texts_are_no_positions(text: str) -> None:
    with pytest.raises(ValueError, match=r"sync state|Expecting"):
        SyncState.from_json(text)


def test_unsealed_drops_the_fingerprint_only() -> None:
    assert _STATE.unsealed().fingerprint is None
    assert _STATE.unsealed().txid == _STATE.txid


def test_an_unproven_position_keeps_its_numbers_and_survives_as_text() -> None:
    state = SyncState.from_json(_STATE.unproven().to_json())
    assert (state.salts, state.end_offset, state.fingerprint) == (Salts(0, 0), 0, None)
    assert (state.txid, state.durable_txid, state.commit) == (12, 10, 9)


def test_a_fingerprint_sees_size_time_and_identity(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"1")
    first = Fingerprint.of(path.stat())
    assert Fingerprint.of(path.stat()) == first
    os.utime(path, ns=(1, 1))
    touched = Fingerprint.of(path.stat())
    assert touched != first
    path.chmod(0o600 if path.stat().st_mode & 0o777 != 0o600 else 0o640)
    assert Fingerprint.of(path.stat()).inode == touched.inode
    other = tmp_path / "b"
    other.write_bytes(b"1")
    os.utime(other, ns=(1, 1))
    assert Fingerprint.of(other.stat()) != touched


def test_lineages_are_random_and_fit_a_signed_number() -> None:
    made = {new_node_id() for _ in range(200)}
    assert len(made) == 200
    assert all(0 < node_id < 1 << 63 for node_id in made)


def test_a_boot_has_one_id() -> None:
    assert boot_id() == boot_id()
    assert len(boot_id()) == 36
