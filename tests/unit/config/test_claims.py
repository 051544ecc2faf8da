"""No two tenants share a file, an inode, a replica path or a state directory."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from pyrep.config.claims import Claims, claim_all
from pyrep.config.expand import Problem, TenantSpec, expand
from pyrep.config.load import loads


def claim(text: str, *, stat: bool = False) -> tuple[list[TenantSpec], list[Problem]]:
    def inode_of(tenant: TenantSpec) -> tuple[int, int] | None:
        status = os.stat(tenant.db_path) if stat else None
        return (status.st_dev, status.st_ino) if status else None

    return claim_all(Claims(), expand(loads(text, environ={})).tenants, inode_of)


def conflict(text: str, *, stat: bool = False) -> str:
    """Return the one conflict of two tenants; the first one keeps its place."""
    accepted, problems = claim(text, stat=stat)
    assert len(accepted) == 1
    (problem,) = problems
    assert problem.index == 2
    assert problem.error.hint
    assert problem.error.exit_code == 2
    return str(problem.error)


def test_two_directories_that_claim_one_file(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/a.db").touch()
    text = f"""
dbs:
  - {{dir: {tmp_path}, pattern: "*.db", recursive: true, replica: {{path: /one}}}}
  - {{dir: {tmp_path}/sub, pattern: "a*", replica: {{path: /two}}}}
"""
    assert conflict(text) == (
        f"database {tmp_path}/sub/a.db is claimed by two entries: "
        f"#1 dbs[{tmp_path}] and #2 dbs[{tmp_path}/sub]"
    )


def test_one_file_named_twice(tmp_path: Path) -> None:
    (tmp_path / "a.db").touch()
    (tmp_path / "b.db").symlink_to("a.db")
    text = f"""
dbs:
  - {{path: {tmp_path}/a.db, replica: {{path: /one}}}}
  - {{path: {tmp_path}/b.db, replica: {{path: /two}}}}
"""
    assert "is claimed by two entries" in conflict(text)


def test_two_names_of_one_inode(tmp_path: Path) -> None:
    (tmp_path / "a.db").touch()
    os.link(tmp_path / "a.db", tmp_path / "b.db")
    text = f"""
dbs:
  - {{path: {tmp_path}/a.db, replica: {{path: /one}}}}
  - {{dir: {tmp_path}, pattern: "b*", replica: {{path: /two}}}}
"""
    assert conflict(text, stat=True) == (
        f"databases '{tmp_path}/a.db' (entry #1) and '{tmp_path}/b.db' (entry #2) "
        "are two names of one file"
    )


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("{path: /r}", "{path: /r}"),
        ("{path: /r}", "{path: /r/../r/}"),
        ("{path: /r x}", "{url: 'file:///r%20x'}"),
        ("{url: 'file:///r'}", "{url: 'file:///%72/'}"),
        ("{type: s3, bucket: b, path: p}", "{type: s3, bucket: b, path: /p/}"),
        ("{type: s3, bucket: b, path: 'p q'}", "{url: 's3://b/p%20q'}"),
        ("{url: 'gs://b/p'}", "{url: 'gs://b/p/'}"),
        ("{url: 'sftp://u:a@h/p'}", "{url: 'sftp://u:b@h/p'}"),
        ("{url: 'abs://x@c/p'}", "{url: 'abs://c/p'}"),
        ("{url: 's3://b/p?endpoint=e'}", "{url: 's3://b/p?endpoint=e'}"),
        ("{type: nats, bucket: b}", "{type: nats, bucket: b}"),
    ],
)
def test_a_shared_replica_path(first: str, second: str) -> None:
    text = f"dbs: [{{path: /a.db, replica: {first}}}, {{path: /b.db, replica: {second}}}]"
    assert conflict(text).startswith(
        "databases '/a.db' (entry #1) and '/b.db' (entry #2) would share the replica path "
    )


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("{path: /r}", "{path: /r/s}"),
        ("{path: /r}", "{path: /R}"),
        ("{type: s3, bucket: b, path: p}", "{type: s3, bucket: c, path: p}"),
        ("{type: s3, bucket: b, endpoint: x}", "{type: s3, bucket: b, endpoint: y}"),
        ("{url: 's3://b/p?endpoint=x'}", "{url: 's3://b/p?endpoint=y'}"),
        ("{url: 's3://b/p'}", "{url: 'gs://b/p'}"),
        ("{url: 'sftp://u@h/p'}", "{url: 'sftp://u@i/p'}"),
    ],
)
def test_replica_paths_that_are_not_shared(first: str, second: str) -> None:
    text = f"dbs: [{{path: /a.db, replica: {first}}}, {{path: /b.db, replica: {second}}}]"
    accepted, problems = claim(text)
    assert (len(accepted), problems) == (2, [])


def test_a_replica_path_shared_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    text = f"""
dbs:
  - {{path: /a.db, replica: {{path: {tmp_path}/real/x}}}}
  - {{path: /b.db, replica: {{path: {tmp_path}/link/x}}}}
"""
    assert f"would share the replica path {tmp_path}/link/x" in conflict(text)


def test_same_names_of_two_directories_need_two_bases(tmp_path: Path) -> None:
    for name in ("one/a.db", "two/a.db", "two/b.db"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    text = f"""
dbs:
  - {{dir: {tmp_path}/one, pattern: "*.db", replica: {{path: /r}}}}
  - {{dir: {tmp_path}/two, pattern: "*.db", replica: {{path: /r}}}}
"""
    accepted, problems = claim(text)
    assert [tenant.name for tenant in accepted] == [f"{tmp_path}/one/a.db", f"{tmp_path}/two/b.db"]
    assert [problem.path for problem in problems] == [tmp_path / "two/a.db"]


def test_a_shared_state_directory() -> None:
    text = """
dbs:
  - {path: /a.db, meta-path: /m, replica: {path: /ra}}
  - {path: /b.db, meta-path: /m, replica: {path: /rb}}
"""
    assert conflict(text) == (
        "databases '/a.db' (entry #1) and '/b.db' (entry #2) "
        "would share the state directory /m/pyrep"
    )


@pytest.mark.parametrize("order", [1, -1])
def test_a_replica_path_that_is_a_database(order: int) -> None:
    entries = ["{path: /a.db, replica: {path: /r}}", "{path: /b.db, replica: {path: /a.db}}"]
    message = conflict(f"dbs: [{', '.join(entries[::order])}]")
    number = 2 if order == 1 else 1
    assert message == (
        f"the replica path of database '/b.db' (entry #{number}) is the database '/a.db' itself"
    )


def test_a_replica_path_that_is_the_database_itself() -> None:
    accepted, problems = claim("dbs: [{path: /a.db, replica: {path: /a.db}}]")
    assert accepted == []
    assert "(entry #1) is the database '/a.db' itself" in str(problems[0].error)


def test_claims_can_be_given_up() -> None:
    text = "dbs: [{path: /a.db, replica: {path: /r}}, {path: /b.db, replica: {path: /r}}]"
    first, second = expand(loads(text)).tenants
    claims = Claims()
    claims.add(first, (1, 2))
    assert claims.owner(Path("/a.db")) == first
    claims.discard(second)
    assert claim_all(claims, [second])[0] == []
    assert claims.owner(Path("/b.db")) is None
    claims.discard(first)
    claims.discard(first)
    assert claims.owner(Path("/a.db")) is None
    claims.add(second, (1, 2))
    assert claims.owner(Path("/b.db")) == second


def test_a_refused_tenant_does_not_free_the_owners_claims() -> None:
    text = "dbs: [{path: /a.db, replica: {path: /r}}, {path: /a.db, replica: {path: /s}}]"
    first, second = expand(loads(text)).tenants
    claims = Claims()
    assert claim_all(claims, [first, second])[0] == [first]
    claims.discard(second)
    assert claims.owner(Path("/a.db")) == first


def test_ten_thousand_tenants_claim_in_a_second(tmp_path: Path) -> None:
    for number in range(10_000):
        (tmp_path / f"{number}.db").touch()
    config = loads(f"dbs: [{{dir: {tmp_path}, pattern: '*.db', replica: {{path: /r}}}}]")
    tenants = expand(config).tenants
    start = time.process_time()
    accepted, problems = claim_all(Claims(), tenants)
    assert time.process_time() - start < 1
    assert (len(accepted), problems) == (10_000, [])
