"""``pyrep doctor`` finds what a storage cannot do, and leaves nothing behind."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import pytest

from fixtures.cli import pyrep
from pyrep.doctor import CHECKS, Finding, examine, scratch_spec
from pyrep.errors import ReplicaExistsError, ReplicaPermanentError, ReplicaTemporaryError
from pyrep.ids import TXID
from pyrep.ltxfile import FileInfo
from pyrep.storage.memory import MemoryReplicaClient, MemoryStorage
from pyrep.storage.registry import ReplicaSpec

NAME = ".pyrep-doctor-x"
ALL = [title for title, _ in CHECKS] + ["clean up"]


class Overwriting(MemoryReplicaClient):
    """Know no create-only writes at all."""

    def write_ltx(
        self, level: int, min_txid: TXID, max_txid: TXID, source: BinaryIO, **_: bool
    ) -> FileInfo:
        return super().write_ltx(level, min_txid, max_txid, source)


class Racing(Overwriting):
    """Look before writing, and then overwrite what others wrote meanwhile."""

    def write_ltx(
        self,
        level: int,
        min_txid: TXID,
        max_txid: TXID,
        source: BinaryIO,
        *,
        create_only: bool = False,
    ) -> FileInfo:
        if create_only and min_txid < 100 and any(self.list_ltx(level, min_txid)):
            raise ReplicaExistsError("there")
        return super().write_ltx(level, min_txid, max_txid, source)


class ByTheSecond(MemoryReplicaClient):
    """Round times."""

    def list_ltx(
        self, level: int, seek: TXID = TXID(0), *, exact_times: bool = False
    ) -> Iterator[FileInfo]:
        for info in super().list_ltx(level, seek, exact_times=exact_times):
            yield replace(info, timestamp_ms=self.rounded(info.timestamp_ms))

    def rounded(self, time_ms: int) -> int:
        return time_ms // 1000 * 1000


class OfUpload(ByTheSecond):
    """Forget times."""

    def rounded(self, time_ms: int) -> int:
        return 1_790_000_000_000


class ByPrefix(MemoryReplicaClient):
    """Take the TXID to list from for a prefix."""

    def list_ltx(
        self, level: int, seek: TXID = TXID(0), *, exact_times: bool = False
    ) -> Iterator[FileInfo]:
        found = super().list_ltx(level, exact_times=exact_times)
        return (info for info in found if not seek or info.min_txid == seek)


def found(client: MemoryReplicaClient) -> dict[str, Finding]:
    return {finding.check: finding for finding in examine(client, NAME)}


def troubles(client: MemoryReplicaClient) -> dict[str, str]:
    return {name: one.result for name, one in found(client).items() if one.result != "ok"}


def test_a_good_storage_passes_all_checks() -> None:
    storage = MemoryStorage()
    findings = found(MemoryReplicaClient(storage, NAME))
    assert list(findings) == ALL
    assert {finding.result for finding in findings.values()} == {"ok"}
    assert storage.objects == {}


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        (Overwriting, {"create only": "failed", "create race": "limited"}),
        (Racing, {"create race": "limited"}),
        (ByTheSecond, {"times": "limited"}),
        (OfUpload, {"times": "failed"}),
        (ByPrefix, {"list": "failed"}),
    ],
)
def test_what_a_storage_cannot_do_is_found(
    kind: Callable[[MemoryStorage, str], MemoryReplicaClient], wanted: dict[str, str]
) -> None:
    storage = MemoryStorage()
    assert troubles(kind(storage, NAME)) == wanted
    assert storage.objects == {}


def test_nothing_else_is_touched() -> None:
    storage = MemoryStorage()
    storage.objects = {"a/ltx/0/x": (b"1", 1), f"{NAME}2/ltx/0/y": (b"2", 2)}
    before = dict(storage.objects)
    list(examine(MemoryReplicaClient(storage, f"a/{NAME}"), NAME))
    assert storage.objects == before


@pytest.mark.parametrize(
    ("op", "checks"), [("list", ["reach", "clean up"]), ("write", ["reach", "write", "clean up"])]
)
def test_a_storage_that_refuses_ends_it(op: str, checks: list[str]) -> None:
    def faults(name: str, info: FileInfo | None) -> None:
        if name == op:
            raise ReplicaPermanentError("not allowed", hint="Ask for more rights.")

    findings = found(MemoryReplicaClient(path=NAME, faults=faults))
    assert list(findings) == checks
    failed = findings[checks[-2]]
    assert (failed.result, failed.detail) == ("failed", "not allowed")
    assert failed.hint == "Ask for more rights."


def test_what_is_left_is_said() -> None:
    def faults(name: str, info: FileInfo | None) -> None:
        if name in ("delete", "delete_all"):
            raise ReplicaTemporaryError("no deletions today")

    findings = found(MemoryReplicaClient(path=NAME, faults=faults))
    assert findings["clean up"].result == "failed"
    assert "no deletions today" in findings["clean up"].detail


def test_it_cleans_up_when_it_is_interrupted() -> None:
    storage = MemoryStorage()
    checks = examine(MemoryReplicaClient(storage, NAME), NAME)
    assert [next(checks).check for _ in range(3)] == ALL[:3]
    assert storage.objects
    checks.close()  # type: ignore[attr-defined]
    assert storage.objects == {}


def test_a_client_of_another_place_is_refused() -> None:
    storage = MemoryStorage()
    with pytest.raises(ReplicaPermanentError, match="no place for a scratch path"):
        list(examine(MemoryReplicaClient(storage, "tenant"), NAME))


def test_the_scratch_path_lies_below_the_replica() -> None:
    spec, name = scratch_spec(ReplicaSpec("s3", "a/b", options={"bucket": "x"}))
    assert (spec.path, spec.type) == (f"a/b/{name}", "s3")
    spec, other = scratch_spec(ReplicaSpec(url="s3://bucket/a%20b?endpoint=http://h:1"))
    assert spec.url == f"s3://bucket/a%20b/{other}?endpoint=http://h:1"
    assert name != other


def test_the_command_prints_a_table_or_json(tmp_path: Path) -> None:
    replica = tmp_path / "replica"
    replica.mkdir()
    (replica / "kept").write_text("x")
    done = pyrep("doctor", replica.as_uri())
    assert (done.code, done.error) == (0, "")
    assert [line.split("  ")[0] for line in done.out.splitlines()[1:]] == ALL
    done = pyrep("doctor", "-json", replica.as_uri())
    assert [check["check"] for check in done.json["checks"]] == ALL
    assert (done.json["failed"], {c["result"] for c in done.json["checks"]}) == (0, {"ok"})
    assert [path.name for path in replica.iterdir()] == ["kept"]


def test_the_command_takes_a_configured_database(tmp_path: Path) -> None:
    replica = tmp_path / "replica"
    config = tmp_path / "pyrep.yml"
    entry = {"path": str(tmp_path / "x.db"), "replica": {"path": str(replica)}}
    config.write_text(json.dumps({"dbs": [entry]}))
    done = pyrep("doctor", "-json", "-config", config, tmp_path / "x.db")
    assert (done.code, done.json["failed"]) == (0, 0)
    assert done.json["url"].startswith(f"{replica.as_uri()}/.pyrep-doctor-")
    assert list(replica.iterdir()) == []


def test_the_command_fails_if_a_check_does(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    done = pyrep("doctor", (tmp_path / "file").as_uri())
    assert done.code == 5
    assert "failed" in done.out
