"""Directories become tenants, each with a replica path and a state directory of its own."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pyrep.config.expand import (
    Expansion,
    TenantSpec,
    describe_replica,
    expand,
    scan,
    tenant_at,
    tenant_for,
)
from pyrep.config.limits import DB_NAME_BYTES, NAME_BYTES
from pyrep.config.load import loads
from pyrep.config.model import Config
from pyrep.errors import ConfigError
from pyrep.restore.target import TempFile
from pyrep.storage.registry import parse_url

ODD_NAMES = [
    "with space.db",
    "müller.db",
    "mu\u0308ller.db",
    "日本語.db",
    "emoji \U0001f600.db",
    "hash#tag.db",
    "50%.db",
    "%41.db",
    "what?.db",
    "a&b=c+d;e,f:g@h!i~j.db",
    'it\'s "quoted".db',
    "back\\slash.db",
    "-dash.db",
    ".hidden.db",
    "tab\there.db",
    "new\nline.db",
    "sub dir #1/100% of?.db",
]


def touch(root: Path, *names: str) -> None:
    for name in names:
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()


def quoted(path: Path | str) -> str:
    return "'" + str(path).replace("'", "''") + "'"


def directory(root: Path, replica: str, **keys: str) -> Config:
    settings = {"pattern": "'*.db'", "recursive": "true"} | keys
    lines = "".join(f"\n    {key.replace('_', '-')}: {value}" for key, value in settings.items())
    text = f"dbs:\n  - dir: {quoted(root)}{lines}\n    replica: {replica}"
    return loads(text, environ={}, expand_env=False)


def by_relpath(expansion: Expansion) -> dict[str | None, TenantSpec]:
    assert expansion.problems == ()
    return {tenant.relpath: tenant for tenant in expansion.tenants}


def place(tenant: TenantSpec) -> str:
    """Return where a file replica really lies, whichever way it is configured."""
    if tenant.replica.url:
        assert tenant.replica.path == ""
        return parse_url(tenant.replica.url).path
    return tenant.replica.path


def as_path(base: str) -> str:
    return f"{{path: {quoted(base)}}}"


def as_url(base: str) -> str:
    return f"{{url: {quoted('file://' + base)}}}"


FORMS = pytest.mark.parametrize("form", [as_path, as_url])


@FORMS
def test_every_tenant_has_its_own_path(tmp_path: Path, form: Callable[[str], str]) -> None:
    names = ["a.db", "b.db", "team/a.db", "team/east/a.db", "other/a.db"]
    touch(tmp_path, *names, "readme.txt", "team/a.db.bak")
    tenants = by_relpath(expand(directory(tmp_path, form("/backup/prod"))))
    assert sorted(map(str, tenants)) == sorted(names)
    for name in names:
        assert place(tenants[name]) == f"/backup/prod/{name}"
        assert tenants[name].db_path == tmp_path / name
        assert tenants[name].name == str(tmp_path / name)
        assert tenants[name].index == 1


@FORMS
def test_odd_names_reach_the_storage_as_they_are(
    tmp_path: Path, form: Callable[[str], str]
) -> None:
    touch(tmp_path, *ODD_NAMES)
    tenants = by_relpath(expand(directory(tmp_path, form("/backup"))))
    assert sorted(place(tenant) for tenant in tenants.values()) == sorted(
        f"/backup/{name}" for name in ODD_NAMES
    )


@FORMS
@pytest.mark.parametrize("name", [b"caf\xe9.db", b"caf\xe9/a.db"])
def test_a_path_that_is_not_utf8_is_refused_alone(
    tmp_path: Path, form: Callable[[str], str], name: bytes
) -> None:
    bad = tmp_path / os.fsdecode(name)
    bad.parent.mkdir(exist_ok=True)
    bad.touch()
    touch(tmp_path, "b.db")
    expansion = expand(directory(tmp_path, form("/backup")))
    assert [tenant.relpath for tenant in expansion.tenants] == ["b.db"]
    (problem,) = expansion.problems
    assert problem.path == bad
    assert "its name is not UTF-8, which SQLite needs" in str(problem.error)
    assert problem.error.hint.startswith("Rename")


def test_the_longest_name_leaves_room_for_what_a_restore_adds(tmp_path: Path) -> None:
    name = f"{'n' * (DB_NAME_BYTES - 3)}.db"
    touch(tmp_path, name)
    (tenant,) = expand(directory(tmp_path, "{path: /r}")).tenants
    assert tenant.relpath == name
    with TempFile(tmp_path / name) as temp:
        assert len(temp.path.name) == NAME_BYTES


@pytest.mark.parametrize("name", [*ODD_NAMES, "plain.db"])
@pytest.mark.parametrize(
    ("head", "query"),
    [("sftp://user:pw@host:22", ""), ("s3://bucket", "?region=b%2F&partSize=9000000")],
)
def test_a_url_keeps_user_host_and_query(tmp_path: Path, name: str, head: str, query: str) -> None:
    touch(tmp_path, name)
    replica = f"{{url: '{head}/base%20dir//x/{query}'}}"
    expansion = expand(directory(tmp_path, replica))
    if any(ord(char) < 32 for char in name):
        assert "control character" in str(expansion.problems[0].error)
        return
    (tenant,) = expansion.tenants
    url = tenant.replica.url or ""
    assert url.startswith(f"{head}/base%20dir/x/")
    assert url.endswith(query)
    assert url.count("?") == query.count("?")
    assert "#" not in url


@FORMS
def test_an_empty_base_works(
    tmp_path: Path, form: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "cwd"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    touch(tmp_path / "d", "a.db", "b/a.db")
    empty = "/" if form is as_url else ""
    tenants = by_relpath(expand(directory(tmp_path / "d", form(empty))))
    base = "" if form is as_url else str(elsewhere)
    assert place(tenants["a.db"]) == f"{base}/a.db"
    assert place(tenants["b/a.db"]) == f"{base}/b/a.db"


@pytest.mark.parametrize(
    ("replica", "path", "url"),
    [
        ("{type: s3, bucket: b}", "a.db", None),
        ("{type: s3, bucket: b, path: ''}", "a.db", None),
        ("{type: s3, bucket: b, path: p/q/}", "p/q/a.db", None),
        ("{type: gs, bucket: b, path: p//q}", "p/q/a.db", None),
        ("{url: 's3://b'}", "", "s3://b/a.db"),
        ("{url: 's3://b/'}", "", "s3://b/a.db"),
        ("{url: 's3://b?region=r'}", "", "s3://b/a.db?region=r"),
        ("{url: 's3://b/p/'}", "", "s3://b/p/a.db"),
        ("{url: 'file:///'}", "", "file:///a.db"),
        (
            "{url: 's3://arn:aws:s3:us-east-1:123:accesspoint/ap/k'}",
            "",
            "s3://arn:aws:s3:us-east-1:123:accesspoint/ap/k/a.db",
        ),
        ("{url: 'webdavs://h/d%C3%A9j%C3%A0'}", "", "webdavs://h/d%C3%A9j%C3%A0/a.db"),
    ],
)
def test_bases_of_other_types(tmp_path: Path, replica: str, path: str, url: str | None) -> None:
    touch(tmp_path, "a.db")
    (tenant,) = expand(directory(tmp_path, replica)).tenants
    assert (tenant.replica.path, tenant.replica.url) == (path, url)


@FORMS
def test_a_replicas_list_of_one_is_the_same(tmp_path: Path, form: Callable[[str], str]) -> None:
    touch(tmp_path, "a.db", "b/a.db", *ODD_NAMES)
    single = directory(tmp_path, form("/backup"))
    text = f"{{dir: {quoted(tmp_path)}, pattern: '*.db', recursive: true"
    listed = loads(f"dbs: [{text}, replicas: [{form('/backup')}]}}]", environ={})
    assert expand(listed).tenants == expand(single).tenants
    assert len(expand(listed).tenants) == len(ODD_NAMES) + 2


def test_options_and_settings_are_shared(tmp_path: Path) -> None:
    touch(tmp_path, "a.db", "b.db")
    config = directory(tmp_path, "{type: s3, bucket: b, region: r}", busy_timeout="3s")
    first, second = expand(config).tenants
    assert first.replica.options == {"bucket": "b", "region": "r"}
    assert first.settings is second.settings is config.dbs[0]


def test_the_key_of_a_single_database_is_as_configured(tmp_path: Path) -> None:
    text = """
dbs:
  - {path: /x.db, replica: {type: s3, bucket: b, path: /odd//path/}}
  - {path: /y.db, replica: {url: "s3://b//p/?region=x"}}
  - {path: /z.db, replica: {type: s3, bucket: b}}
"""
    tenants = expand(loads(text)).tenants
    assert [tenant.replica.path for tenant in tenants] == ["/odd//path/", "", ""]
    assert tenants[1].replica.url == "s3://b//p/?region=x"
    assert {tenant.relpath for tenant in tenants} == {None}


def test_a_single_database_is_resolved_but_keeps_its_name(tmp_path: Path) -> None:
    touch(tmp_path, "real/x.db")
    (tmp_path / "link.db").symlink_to("real/x.db")
    (tenant,) = expand(loads(f"dbs: [{{path: {tmp_path}/link.db, replica: {{path: /r}}}}]")).tenants
    assert tenant.db_path == tmp_path / "real/x.db"
    assert tenant.name == f"{tmp_path}/link.db"
    assert tenant.state_path == tmp_path / "real/.x.db-pyrep"


def test_an_explicit_path_wins_over_discovery(tmp_path: Path) -> None:
    touch(tmp_path, "a.db", "b.db")
    (tmp_path / "alias").symlink_to("a.db")
    config = loads(
        f"""
dbs:
  - {{dir: {tmp_path}, pattern: "*.db", replica: {{path: /all}}}}
  - {{path: {tmp_path}/alias, replica: {{path: /own}}}}
"""
    )
    expansion = expand(config)
    assert [(t.db_path.name, place(t), t.index) for t in expansion.tenants] == [
        ("b.db", "/all/b.db", 1),
        ("a.db", "/own", 2),
    ]
    assert expansion.problems == ()


@pytest.mark.parametrize(
    ("keys", "state"),
    [
        ({}, "{root}/t/.a.db-pyrep"),
        ({"meta_path": "/meta"}, "/meta/t/.a.db-pyrep"),
        ({"meta_dir": "/meta"}, "/meta/t/a.db-pyrep"),
    ],
)
def test_state_directories_of_a_directory(tmp_path: Path, keys: dict[str, str], state: str) -> None:
    touch(tmp_path, "t/a.db")
    (tenant,) = expand(directory(tmp_path, as_path("/r"), **keys)).tenants
    assert str(tenant.state_path) == state.format(root=tmp_path)


def test_state_directory_of_a_single_database() -> None:
    entries = "{path: /d/a.db, replica: {path: /r}}, {path: /b, meta-path: /m, replica: {path: /s}}"
    first, second = expand(loads(f"dbs: [{entries}]")).tenants
    assert str(first.state_path) == "/d/.a.db-pyrep"
    assert str(second.state_path) == "/m/pyrep"


def test_what_is_never_taken(tmp_path: Path) -> None:
    touch(tmp_path, "a.db", "a.db-wal", "a.db-shm", "a.db-journal", "x/b.db")
    touch(tmp_path, ".a.db-pyrep/c.db", "x/.b.db-litestream/ltx/d.db", "state/catalog.db")
    os.mkfifo(tmp_path / "pipe.db")
    (tmp_path / "folder.db").mkdir()
    config = loads(
        f"state-dir: {tmp_path}/state\ndbs: [{{dir: {tmp_path}, pattern: '*', recursive: true, "
        "replica: {path: /r}}]"
    )
    assert [str(path.relative_to(tmp_path)) for path in scan(config.dbs[0])] == ["a.db", "x/b.db"]


def test_state_directories_inside_the_tree_are_never_scanned(tmp_path: Path) -> None:
    touch(tmp_path, "a.db", "b-pyrep/b.db", "meta/t/a.db-pyrep/x.db", "meta/own.db", "m/pyrep/x.db")
    touch(tmp_path, "m/c.db")
    text = f"""
dbs:
  - {{dir: {tmp_path}, pattern: "*.db", recursive: true, replica: {{path: /r}}}}
  - {{dir: /other, pattern: "*.db", meta-dir: {tmp_path}/meta, replica: {{path: /s}}}}
  - {{path: /single.db, meta-path: {tmp_path}/m, replica: {{path: /t}}}}
"""
    config = loads(text)
    found = [str(path.relative_to(tmp_path)) for path in scan(config.dbs[0])]
    assert found == ["a.db", "b-pyrep/b.db", "m/c.db", "meta/own.db"]
    for name in found:
        assert tenant_at(config, tmp_path / name) is not None
    for name in ("meta/t/a.db-pyrep/x.db", "m/pyrep/x.db"):
        assert tenant_at(config, tmp_path / name) is None


def test_links_are_named_and_not_followed(tmp_path: Path) -> None:
    touch(tmp_path, "real/a.db", "outside/b.db")
    root = tmp_path / "real"
    (root / "link.db").symlink_to("a.db")
    (root / "other.txt").symlink_to("a.db")
    (root / "dangling.db").symlink_to("nowhere")
    (root / "loop.db").symlink_to("loop.db")
    (root / "folder.db").symlink_to(tmp_path / "outside")
    (root / "folder").symlink_to(tmp_path / "outside")
    expansion = expand(directory(root, as_path("/r")))
    assert [tenant.relpath for tenant in expansion.tenants] == ["a.db"]
    assert expansion.links == (root / "link.db",)
    assert expansion.problems == ()


def test_the_directory_itself_may_be_a_link(tmp_path: Path) -> None:
    touch(tmp_path, "real/t/a.db")
    (tmp_path / "current").symlink_to("real")
    (tenant,) = expand(directory(tmp_path / "current", as_path("/r"))).tenants
    assert tenant.db_path == tmp_path / "real/t/a.db"
    assert tenant.name == f"{tmp_path}/current/t/a.db"
    assert place(tenant) == "/r/t/a.db"


def test_the_root_directory_can_be_scanned(tmp_path: Path) -> None:
    config = directory(Path("/"), as_path("/r"), recursive="false", pattern="'no-such-name'")
    assert list(scan(config.dbs[0])) == []
    tenant = tenant_for(config.dbs[0], "/no-such-name")
    assert (tenant.relpath, place(tenant)) == ("no-such-name", "/r/no-such-name")


def test_one_level_only_unless_recursive(tmp_path: Path) -> None:
    touch(tmp_path, "a.db", "t/b.db")
    config = directory(tmp_path, as_path("/r"), recursive="false")
    assert [path.name for path in scan(config.dbs[0])] == ["a.db"]


def test_a_missing_directory_does_not_stop_the_others(tmp_path: Path) -> None:
    touch(tmp_path, "d/a.db")
    text = f"""
dbs:
  - {{dir: {tmp_path}/gone, pattern: "*.db", replica: {{path: /r1}}}}
  - {{dir: {tmp_path}/d/a.db, pattern: "*.db", replica: {{path: /r2}}}}
  - {{dir: {tmp_path}/d, pattern: "*.db", replica: {{path: /r3}}}}
"""
    expansion = expand(loads(text))
    assert [tenant.relpath for tenant in expansion.tenants] == ["a.db"]
    assert [str(problem.error) for problem in expansion.problems] == [
        f"database config #1: cannot scan directory {tmp_path}/gone: does not exist",
        f"database config #2: cannot scan directory {tmp_path}/d/a.db: Not a directory",
    ]
    assert expansion.problems[0].path == tmp_path / "gone"


def test_an_unreadable_folder_does_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, "a/x.db", "b/x.db", "c/x.db")
    real_scandir = os.scandir

    def scandir(path: str) -> object:
        if path.endswith("/b"):
            raise PermissionError(13, "Permission denied", path)
        if path.endswith("/c"):
            raise FileNotFoundError(2, "No such file or directory", path)
        return real_scandir(path)

    config = directory(tmp_path, as_path("/r"))
    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", scandir)
        expansion = expand(config)
    assert [tenant.relpath for tenant in expansion.tenants] == ["a/x.db"]
    (problem,) = expansion.problems
    assert str(problem.error) == (
        f"database config #1: cannot scan directory {tmp_path}/b: Permission denied"
    )


@pytest.mark.parametrize(
    ("replica", "name", "message"),
    [
        ("{type: s3, bucket: b}", b"a\x01.db", "control character, a s3 replica"),
        ("{type: s3, bucket: b}", "a\x85.db".encode(), "control character, a s3 replica"),
        ("{url: 'gs://b/p'}", b"caf\xe9.db", "its name is not UTF-8, which SQLite needs"),
        (
            f"{{type: s3, bucket: b, path: {'p' * 970}}}",
            b"too-long.db",
            "a replica path of 982 bytes is too long, a s3 replica allows a path of 980 bytes",
        ),
        (
            f"{{url: 'oss://b/{'p/' * 485}'}}",
            b"too-long.db",
            "a replica path of 981 bytes is too long, a oss replica allows a path of 979 bytes",
        ),
        (
            f"{{path: /{'p/' * 2015}}}",
            b"too-long.db",
            "a replica path of 4042 bytes is too long, a file replica allows a path of 4031 bytes",
        ),
        (
            f"{{url: 'sftp://u@h/{'p' * 256}'}}",
            b"a.db",
            "a name of 256 bytes is too long, a sftp replica allows a name of 255 bytes",
        ),
        (
            "{path: /r}",
            b"n" * 240 + b".db",
            "a name of 243 bytes is too long, 242 are allowed",
        ),
    ],
)
def test_a_name_beyond_a_limit_is_a_problem_of_that_tenant_alone(
    tmp_path: Path, replica: str, name: bytes, message: str
) -> None:
    bad = tmp_path / os.fsdecode(name)
    bad.touch()
    touch(tmp_path, "b")
    expansion = expand(directory(tmp_path, replica, pattern="'*'"))
    (problem,) = (problem for problem in expansion.problems if problem.path == bad)
    assert message in str(problem.error)
    assert str(problem.error).isprintable()
    assert problem.error.hint
    if len(expansion.problems) == 1:
        assert [tenant.relpath for tenant in expansion.tenants] == ["b"]


def test_a_single_database_beyond_a_limit_is_a_problem() -> None:
    text = f"""
dbs:
  - {{path: /x.db, replica: {{type: s3, bucket: b, path: {"p" * 1000}}}}}
  - {{path: /y.db, replica: {{type: s3, bucket: b, path: p}}}}
  - {{path: /z.db, meta-path: {"/m" * 2100}, replica: {{path: /z}}}}
"""
    expansion = expand(loads(text))
    assert [tenant.name for tenant in expansion.tenants] == ["/y.db"]
    assert [str(problem.path) for problem in expansion.problems] == ["/x.db", "/z.db"]
    assert "the state directory's path is longer than 4031 bytes" in str(
        expansion.problems[1].error
    )


def test_a_tenant_can_be_built_later_the_same(tmp_path: Path) -> None:
    touch(tmp_path, "real/a.db", "real/t/b c.db")
    (tmp_path / "link").symlink_to("real")
    config = directory(tmp_path / "link", as_url("/r"))
    for tenant in expand(config).tenants:
        assert tenant_for(config.dbs[0], tenant.db_path) == tenant
        assert tenant_for(config.dbs[0], tenant.name) == tenant
        assert tenant_at(config, tenant.name) == tenant
    single = loads(f"dbs: [{{path: {tmp_path}/link/a.db, replica: {{path: /r}}}}]")
    assert tenant_for(single.dbs[0], tmp_path / "real/a.db") == expand(single).tenants[0]


@pytest.mark.parametrize(
    "name",
    [
        "a.txt",
        "../a.db",
        ".x-pyrep/a.db",
        "t/.x-litestream/a.db",
        "link.db",
        "state/a.db",
        "a.db-wal",
    ],
)
def test_a_file_that_a_scan_would_not_find_is_no_tenant(tmp_path: Path, name: str) -> None:
    touch(tmp_path, "root/a.db")
    (tmp_path / "root/link.db").symlink_to("a.db")
    config = loads(
        f"state-dir: {tmp_path}/root/state\ndbs: [{{dir: {tmp_path}/root, pattern: '*.db*', "
        "recursive: true, replica: {path: /r}}]"
    )
    path = tmp_path / "root" / name
    if name == "a.txt" or name.startswith("../"):
        config = directory(tmp_path / "root", as_path("/r"))
    assert tenant_at(config, path) is None
    with pytest.raises(ConfigError, match="is not a database that"):
        tenant_for(config.dbs[0], path)


def test_tenant_for_refuses_another_file_of_a_single_entry() -> None:
    config = loads("dbs: [{path: /x.db, replica: {path: /r}}]")
    with pytest.raises(ConfigError, match=r"/y\.db is not dbs\[/x\.db\]"):
        tenant_for(config.dbs[0], "/y.db")


def test_a_path_finds_its_entry(tmp_path: Path) -> None:
    text = f"""
dbs:
  - {{dir: {tmp_path}/d, pattern: "*.db", recursive: true, replica: {{path: /all}}}}
  - {{path: {tmp_path}/d/own.db, replica: {{path: /own}}}}
  - {{dir: {tmp_path}/d/x, pattern: "?.db", replica: {{path: /x}}}}
"""
    config = loads(text)
    gone, own = (
        tenant_at(config, tmp_path / "d/t/gone.db"),
        tenant_at(config, tmp_path / "d/own.db"),
    )
    assert gone is not None
    assert place(gone) == "/all/t/gone.db"
    assert own is not None
    assert place(own) == "/own"
    with pytest.raises(ConfigError, match=r"a\.db is claimed by two entries: #1 .* and #3"):
        tenant_at(config, tmp_path / "d/x/a.db")
    assert tenant_at(loads(""), "/x") is None


@pytest.mark.parametrize(
    ("replica", "text"),
    [
        ("{path: /r}", "/r/a.db"),
        ("{url: 'sftp://u:pw@h/p'}", "sftp://u:***@h/p/a.db"),
        ("{type: s3, bucket: b, path: p}", "s3://b/p/a.db"),
        ("{type: sftp, host: 'h:2', user: u, path: /p}", "sftp://h:2/p/a.db"),
    ],
)
def test_a_replica_is_described_without_secrets(tmp_path: Path, replica: str, text: str) -> None:
    touch(tmp_path, "a.db")
    (tenant,) = expand(directory(tmp_path, replica)).tenants
    assert describe_replica(tenant.replica) == text
    assert "pw" not in repr(tenant)
    assert len({tenant, tenant}) == 1


def test_ten_thousand_tenants_expand_in_a_second(tmp_path: Path) -> None:
    for folder in range(100):
        root = tmp_path / f"tenant {folder}"
        root.mkdir()
        for number in range(100):
            (root / f"db {number}.db").touch()
    config = directory(tmp_path, as_url("/backup"))
    start = time.process_time()
    expansion = expand(config)
    assert time.process_time() - start < 1
    assert len(expansion.tenants) == 10_000
    assert len({place(tenant) for tenant in expansion.tenants}) == 10_000


@pytest.mark.parametrize(
    ("replica", "single", "tenant"),
    [
        ("{url: 'nats://h/b'}", "nats://h/b", "nats://h/b/a.db"),
        ("{url: 'nats://h', bucket: b}", "nats://h/b", "nats://h/b/a.db"),
        ("{url: 'nats://h/', bucket: b, path: /p/q/}", "nats://h/b", "nats://h/b/p/q/a.db"),
        ("{url: 'nats://h/b/x', path: p}", "nats://h/b/x", "nats://h/b/x/p/a.db"),
        ("{type: nats, bucket: b, path: p}", "nats://b/", "nats://b/p/a.db"),
    ],
)
def test_nats_tenants_go_below_the_bucket(
    tmp_path: Path, replica: str, single: str, tenant: str
) -> None:
    touch(tmp_path, "a.db")
    (found,) = expand(directory(tmp_path, replica)).tenants
    assert describe_replica(found.replica) == tenant
    (alone,) = expand(loads(f"dbs: [{{path: '{tmp_path}/a.db', replica: {replica}}}]")).tenants
    assert describe_replica(alone.replica) == single
