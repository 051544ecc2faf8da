"""A writer killed at each step of a write leaves no file or a whole one."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import pyrep
from fixtures.ltxbytes import build_ltx
from pyrep.errors import ReplicaExistsError
from pyrep.ids import TXID
from pyrep.ltxfile import FileInfo
from pyrep.storage.file import FileReplicaClient

pytestmark = pytest.mark.crash

INFO = FileInfo(0, TXID(1), TXID(1))
OLD = build_ltx(1, 1, timestamp_ms=5)
NEW = build_ltx(1, 1) + bytes(range(256)) * 8192  # three chunks
WRITER = """
import sys
from pyrep.ids import TXID
from pyrep.storage.file import FileReplicaClient
FileReplicaClient(sys.argv[1]).write_ltx(
    0, TXID(1), TXID(1), sys.stdin.buffer, create_only=sys.argv[2] == "create"
)
"""
# Steps of a write with the calls they make: the level's directory is synced first, then the
# others whose names are new, or new to this process.
COMMON = {"open": 1, "write": 3, "utime": 1, "fsync": 1}
CREATE = {"mkdir": 1, **COMMON, "link": 1, "unlink": 1, "fsync_dir": 4}
REPLACE = {**COMMON, "replace": 1, "fsync_dir": 3}


def points(steps: dict[str, int]) -> list[str]:
    """Return a kill before and after each call, and torn writes."""
    found = []
    for step, count in steps.items():
        actions = ["kill", "kill-after", *(["torn"] if step == "write" else [])]
        found += [f"file.{step}:{n + 1}:{action}" for n in range(count) for action in actions]
    return found


def write_and_die(root: Path, how: str, point: str) -> None:
    env = {
        **os.environ,
        "PYTHONPATH": str(Path(pyrep.__file__).parent.parent),
        "PYREP_ALLOW_FAILPOINTS": "1",
        "PYREP_FAILPOINT": point,
    }
    done = subprocess.run(
        [sys.executable, "-c", WRITER, str(root), how],
        input=NEW,
        env=env,
        capture_output=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()


def stored(root: Path) -> dict[str, bytes]:
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("point", points(CREATE))
def test_a_killed_creator_leaves_nothing_or_all(tmp_path: Path, point: str) -> None:
    root = tmp_path / "replica"
    write_and_die(root, "create", point)
    client = FileReplicaClient(root)
    found = list(client.list_ltx(0))
    assert [client.open_ltx(info).read() for info in found] in ([], [NEW])
    assert [info.timestamp_ms for info in found] in ([], [1_700_000_000_123])
    try:
        client.write_ltx(0, TXID(1), TXID(1), io.BytesIO(NEW), create_only=True)
    except ReplicaExistsError:
        assert found
    else:
        assert not found
    assert stored(root) == {f"ltx/0/{INFO.name}": NEW}


@pytest.mark.parametrize("point", points(REPLACE))
def test_a_killed_replacer_leaves_the_old_or_the_new(tmp_path: Path, point: str) -> None:
    root = tmp_path / "replica"
    FileReplicaClient(root).write_ltx(0, TXID(1), TXID(1), io.BytesIO(OLD))
    write_and_die(root, "replace", point)
    client = FileReplicaClient(root)
    assert client.open_ltx(INFO).read() in (OLD, NEW)
    assert len(list(client.list_ltx(0))) == 1
    client.write_ltx(0, TXID(1), TXID(1), io.BytesIO(NEW))
    assert stored(root) == {f"ltx/0/{INFO.name}": NEW}
