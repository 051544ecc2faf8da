"""Litestream refuses what is compressed with zstd: an error, never a wrong database."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from fixtures import litestream
from fixtures.app import App
from fixtures.litestream_turns import both_restore
from fixtures.rig import Rig
from pyrep.config.model import ReplicaConfig
from pyrep.tenant.lineage import listing

pytestmark = [pytest.mark.interop, pytest.mark.usefixtures("litestream")]

StartApp = Callable[..., App]


def test_litestream_refuses_zstd_and_reads_what_is_lz4_again(
    tmp_path: Path, start_app: StartApp
) -> None:
    zstd = ReplicaConfig(compression="zstd", compression_level=3)
    with closing(Rig(tmp_path, replica=zstd)) as rig:
        app = start_app(rig.db, journal_mode="wal", busy_timeout_ms=200)
        app.execute("create table t (id integer primary key, a)")
        for _ in range(3):
            app.execute("insert into t (a) values (randomblob(3000))")
            rig.ship()
        rig.tenant.compact(1, listing(rig.client))
        # A plan of level-0 files alone has no zstd in it, and Litestream prefers higher levels.
        with pytest.raises(litestream.LitestreamError) as caught:
            litestream.restore(litestream.file_url(rig.replica), tmp_path / "refused.db")
        assert "invalid flags" in caught.value.output
        assert not (tmp_path / "refused.db").exists()
        rig.expect_equal()

        rig.settings["replica"] = ReplicaConfig()
        rig.restart()
        app.execute("insert into t (a) values (randomblob(3000))")
        rig.ship()
        assert rig.tenant.snapshot()
        rig.upload()
        both_restore(rig.replica, rig.truth(), exact=True)
