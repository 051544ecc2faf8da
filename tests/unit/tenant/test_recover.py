"""Which staged files go on from the replica's newest state."""

from __future__ import annotations

from array import array
from pathlib import Path
from typing import cast

import pytest

from pyrep._ltx import Header
from pyrep.ids import TXID
from pyrep.ltxfile import FileInfo
from pyrep.tenant.pages import StagedPages
from pyrep.tenant.position import SyncState
from pyrep.tenant.recover import StagedFile, _following, recover
from pyrep.tenant.statedir import StateDir


def _staged(txid: int, pre: int, post: int) -> StagedFile:
    pages = StagedPages(
        TXID(txid), 512, 1, array("I", [1]), array("Q", [post]), False, pre, post, 0, 100
    )
    info = FileInfo(0, TXID(txid), TXID(txid), 100, 0)
    return StagedFile(info, cast(Header, None), pages)


@pytest.mark.parametrize(
    ("links", "checksum", "follow"),
    [
        ([(2, 11, 12), (3, 12, 13)], 11, [2, 3]),
        ([(2, 11, 12), (3, 99, 13)], 11, [2]),  # left of a run that gave it up
        ([(2, 99, 12), (3, 12, 13)], 11, []),
        ([(2, 0, 12), (3, 12, 13)], 11, [2, 3]),  # all pages: it follows anything
        ([(2, 11, 12)], 0, [2]),  # what the replica's state is, is not known
        ([(3, 12, 13)], 11, []),
    ],
)
def test_only_what_goes_on_from_the_state_before_it_follows(
    links: list[tuple[int, int, int]], checksum: int, follow: list[int]
) -> None:
    files = {TXID(txid): _staged(txid, pre, post) for txid, pre, post in links}
    found = _following(files, TXID(1), checksum)
    assert [file.info.max_txid for file in found] == follow


def test_a_replica_may_name_any_txid(tmp_path: Path) -> None:
    """No work is done for each TXID up to it."""
    (tmp_path / "state").mkdir()
    found = recover(StateDir(tmp_path / "state"), SyncState(7), TXID(1 << 63), [], TXID(0))
    assert found.state.durable_txid == 1 << 63
    assert found.diff_cause
