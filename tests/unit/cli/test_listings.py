"""``databases``, ``ltx``, ``status`` and ``config check``: what they print, and their JSON."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from fixtures.cli import pyrep
from fixtures.replicas import History
from fixtures.sources import ROOT
from pyrep import daemon
from pyrep.catalog import Catalog, TenantRow
from pyrep.config.load import load
from pyrep.ids import TXID
from pyrep.storage.file import FileReplicaClient
from tools import gen_cli


@pytest.fixture
def config(tmp_path: Path, start_app) -> Path:
    """Return a configuration of one database, missing, and a directory with one and a text."""
    folder = tmp_path / "dir"
    folder.mkdir()
    start_app(folder / "a b.db").script("create table t (x)")
    (folder / "notes.db").write_text("not a database")
    path = tmp_path / "pyrep.yml"
    path.write_text(
        f"dbs:\n"
        f"  - path: {tmp_path}/app.db\n    replica: {{type: file, path: {tmp_path}/r-app}}\n"
        f"  - dir: {folder}\n    pattern: '*.db'\n"
        f"    replica: {{url: {(tmp_path / 'r-dir').as_uri()}}}\n"
    )
    return path


def put(path: Path, states: int = 3) -> History:
    """Store a database of so many states on a file replica, and the first two merged."""
    history = History().run(states)
    client = FileReplicaClient(str(path))
    history.put_singles(client)
    history.put(client, 1, 1, 2)
    client.close()
    return history


def test_databases_lists_single_ones_and_those_of_directories(config: Path, tmp_path: Path) -> None:
    done = pyrep("databases", "-config", config)
    assert (done.code, done.err) == (0, "")
    assert [line.split("  ")[0] for line in done.out.splitlines()] == [
        "path" + " " * 0,
        f"{tmp_path}/app.db",
        f"{tmp_path}/dir/a b.db",
    ]
    items = pyrep("databases", "-json", "-config", config).json["databases"]
    assert items[1] == {
        "path": f"{tmp_path}/dir/a b.db",
        "replica": "file",
        "url": f"file://{tmp_path}/r-dir/a%20b.db",
    }


def test_databases_names_what_is_wrong_and_lists_the_others(config: Path, tmp_path: Path) -> None:
    config.write_text(config.read_text() + f"  - dir: {tmp_path}/none\n    pattern: x\n"
                      f"    replica: {{path: {tmp_path}/r-none}}\n")  # fmt: skip
    done = pyrep("databases", "-json", "-config", config)
    assert done.code == 2
    assert len(done.json["databases"]) == 2
    assert [item["path"] for item in done.json["problems"]] == [f"{tmp_path}/none"]
    assert "database config #3: cannot scan directory" in done.error


def test_a_configured_file_that_is_no_database_is_a_problem(config: Path, tmp_path: Path) -> None:
    (tmp_path / "app.db").write_text("text, and enough of it to fill a header" * 3)
    done = pyrep("databases", "-config", config)
    assert (done.code, done.error) == (2, f"{tmp_path}/app.db: is not a SQLite database")


def test_databases_shows_no_secret(tmp_path: Path) -> None:
    path = tmp_path / "pyrep.yml"
    url = "sftp://user:hunter2@host/path"
    path.write_text(f"dbs:\n  - path: {tmp_path}/a.db\n    replica: {{url: '{url}'}}\n")
    for words in (["databases"], ["databases", "-json"], ["config", "check"]):
        done = pyrep(*words, "-config", path)
        assert "hunter2" not in done.out + done.err
        assert "sftp://user:***@host/path" in done.out


def test_ltx_lists_level_0_unless_told_otherwise(config: Path, tmp_path: Path) -> None:
    put(tmp_path / "r-app")
    done = pyrep("ltx", "-config", config, tmp_path / "app.db")
    lines = [line.split() for line in done.out.splitlines()]
    assert lines[0] == ["level", "min_txid", "max_txid", "size", "created"]
    assert [line[:3] for line in lines[1:]] == [["0", f"{n:016x}", f"{n:016x}"] for n in (1, 2, 3)]
    assert lines[1][4] == "1970-01-01T00:00:01.000Z"
    levels = {}
    for level in ("1", "9", "all"):
        files = pyrep("ltx", "-json", "-level", level, (tmp_path / "r-app").as_uri()).json["files"]
        levels[level] = [(item["level"], item["max_txid"]) for item in files]
    assert levels["1"] == [(1, f"{2:016x}")]
    assert levels["9"] == []
    assert levels["all"] == [(0, f"{n:016x}") for n in (1, 2, 3)] + [(1, f"{2:016x}")]


def test_ltx_finds_a_database_of_a_directory_that_is_gone(config: Path, tmp_path: Path) -> None:
    put(tmp_path / "r-dir" / "gone.db")
    done = pyrep("ltx", "-config", config, tmp_path / "dir" / "gone.db")
    assert (done.code, len(done.out.splitlines())) == (0, 4)


@pytest.fixture
def catalog(config: Path, tmp_path: Path) -> Catalog:
    """Return the catalog that a daemon left."""
    path = daemon.catalog_path(load(config))
    path.parent.mkdir(parents=True)
    catalog = Catalog(path)
    now = datetime.now(UTC)
    big = TXID((1 << 64) - 1)
    catalog.save_tenant(
        TenantRow(path=f"{tmp_path}/app.db", status="parked", local_txid=big, durable_txid=big)
    )
    catalog.save_tenant(
        TenantRow(
            path=f"{tmp_path}/dir/a b.db",
            status="fenced",
            replica="file:///r",
            local_txid=TXID(7),
            pending_files=2,
            pending_bytes=2048,
            lag_seconds=1.5,
            error="another writer",
            updated_at=now - timedelta(seconds=60),
        )
    )
    catalog.close()
    return catalog


def test_status_reads_the_catalog_without_a_daemon(
    config: Path, catalog: Catalog, tmp_path: Path
) -> None:
    done = pyrep("status", "-config", config)
    lines = done.out.splitlines()
    assert lines[1].split() == [f"{tmp_path}/app.db", "parked", *["f" * 16] * 2, "-", "0.0s", "-"]
    assert "2 files, 2KiB" in lines[2]
    assert lines[2].endswith("another writer")
    assert "no daemon is running" in done.err
    items = pyrep("status", "-json", "-config", config, tmp_path / "dir" / "a b.db").json
    assert items["daemon_pid"] is None
    (item,) = items["databases"]
    assert (item["status"], item["local_txid"]) == ("fenced", f"{7:016x}")
    assert item["durable_txid"] == "0" * 16
    assert 61 <= item["lag_seconds"] < 120  # what waited a minute ago waits still


def test_status_before_the_first_run_says_so(config: Path, tmp_path: Path) -> None:
    done = pyrep("status", "-config", config)
    assert done.code == 0
    assert done.err == "no daemon has run with this configuration yet\n"
    (line,) = done.out.splitlines()[1:]  # what a directory holds is not looked for
    assert line.split() == [f"{tmp_path}/app.db", "new", "-", "-", "-", "0.0s", "-"]
    document = pyrep("status", "-json", "-config", config).json
    (item,) = document["databases"]
    assert (item["database"], item["status"]) == (f"{tmp_path}/app.db", "new")
    assert (item["replica"], item["updated"]) == (f"{tmp_path}/r-app", None)
    other = pyrep("status", "-config", config, tmp_path / "other.db")
    assert (other.code, len(other.out.splitlines())) == (0, 1)


def test_config_check_prints_the_policy_and_counts(config: Path, tmp_path: Path) -> None:
    config.write_text("addr: ':9090'\n" + config.read_text())
    done = pyrep("config", "check", "-config", config)
    assert done.code == 0
    assert f"    path: {tmp_path}/app.db" in done.out.splitlines()
    assert "    idle-timeout: 1m" in done.out.splitlines()
    assert "Warning: addr: " in done.err
    assert done.err.splitlines()[-1] == "2 databases, 1 warnings, 0 errors"
    document = pyrep("config", "check", "-json", "-config", config).json
    assert (document["databases"], document["errors"], len(document["warnings"])) == (2, [], 1)
    assert document["config"]["addr"] == ":9090"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dbs: [{path: /a, repilca: {path: /b}}]", "repilca"),
        ("dbs: [", "cannot parse"),
        ("dbs: [{path: /a, replica: {path: /r}}, {path: /a, replica: {path: /q}}]", "/a"),
        ("dbs: [{path: /a, replica: {path: /r}}, {path: /b, replica: {path: /r}}]", "/r"),
    ],
    ids=["key", "yaml", "database twice", "replica twice"],
)
def test_config_check_exits_with_2_for_any_error(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "wrong.yml"
    path.write_text(text)
    done = pyrep("config", "check", "-config", path)
    assert done.code == 2
    assert message in done.error
    document = pyrep("config", "check", "-json", "-config", path).json
    assert message in document["errors"][0]


def test_json_documents_have_the_keys_of_the_page(
    config: Path, catalog: Catalog, tmp_path: Path
) -> None:
    put(tmp_path / "r-app")
    database, out = tmp_path / "app.db", tmp_path / "out"
    operands = {
        "ltx": [database],
        "doctor": [database],
        "restore": ["-o", out / "1.db", database],
        "restore -dry-run": ["-o", out / "2.db", database],
        "verify": [database],
        "restore -all": ["-if-replica-exists", "-o", out / "all"],
    }
    for name, keys, item_keys in gen_cli.DOCUMENTS:
        done = pyrep(*name.split(), "-json", "-config", config, *operands.get(name, []))
        # the catalog knows of a TXID that is not there, and verify says so
        code = 4 if name == "verify" else 0
        assert (done.code, list(done.json)) == (code, ["schema", *keys]), name
        assert done.json["schema"] == 1
        lists = (value for value in done.json.values() if isinstance(value, list))
        items = [item for each in lists for item in each if item.get("status") != "skipped"]
        if item_keys:
            assert list(items[0]) == list(item_keys), name


def test_the_page_is_generated() -> None:
    assert (ROOT / "docs" / "cli.md").read_text() == gen_cli.render()


def test_every_flag_and_command_is_explained() -> None:
    bare = [
        (path, param.name)
        for path, command in gen_cli.commands()
        for param in command.params
        if param.param_type_name == "option" and not getattr(param, "help", None)
    ]
    assert bare == []
    assert [path for path, command in gen_cli.commands() if not command.help] == []
