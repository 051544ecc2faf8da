"""Databases that are deleted while they are written: one calm line each, and no alarm."""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from pathlib import Path

import pytest

from fixtures.app import App
from fixtures.host import Host

_ROUNDS = 3
_AT_ONCE = 4


def _delete_file(folder: Path) -> None:
    for suffix in ("-wal", "", "-shm"):
        (folder / f"a.db{suffix}").unlink()


def _delete_folder(folder: Path) -> None:
    _delete_file(folder)
    while folder.exists():  # something may be written below it at the moment
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize("delete", [_delete_file, _delete_folder])
def test_deleting_an_active_database_is_one_calm_line(tmp_path: Path, delete: object) -> None:
    assert callable(delete)
    names = [f"{number}/a.db" for number in range(_AT_ONCE)]
    with Host(tmp_path, replica={"sync_interval": "50ms"}) as host:
        host.start()
        for turn in range(_ROUNDS):
            _write_and_delete(host, names, delete)
            gone = (turn + 1) * _AT_ONCE
            host.wait_for(
                lambda gone=gone: len(host.lines("database is no longer replicated")) >= gone,
                "all were let go of",
            )
        host.wait_for(
            lambda: {row["status"] for row in host.status().values()} == {"absent"},
            "all have left",
        )
        assert host.stop() == 0
        alarms = {(line["msg"], line.get("error", "")) for line in host.problems()}
    calm = "a database that went was not stored to its end"
    assert [alarm for alarm in alarms if alarm[0] != calm] == []
    for name in names:
        said = [line["msg"] for line in host.about(name, problems=False)]
        assert said.count("database is no longer replicated") == _ROUNDS
        assert said.count("database is gone") <= _ROUNDS


def _write_and_delete(host: Host, names: list[str], delete: object) -> None:
    assert callable(delete)
    with ExitStack() as stack:
        apps = []
        for name in names:
            (host.data / name).parent.mkdir(exist_ok=True)
            apps.append(stack.enter_context(App(host.data / name, busy_timeout_ms=5000)))
        for app in apps:
            app.execute("create table t (a)")
        for _ in range(20):
            for app in apps:
                app.execute("insert into t values (randomblob(3000))")
        for name in names:
            delete((host.data / name).parent)
