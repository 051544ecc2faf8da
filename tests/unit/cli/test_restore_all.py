"""``pyrep restore -all``: every database that can be found, each to its place."""

from __future__ import annotations

from pathlib import Path

import pytest

from fixtures.cli import pyrep
from fixtures.replicas import History
from pyrep.cli.tenants import below_url
from pyrep.errors import ReplicaPermanentError
from pyrep.storage.base import Below
from pyrep.storage.file import FileReplicaClient

NAMES = ["db1.db", "team-a/db2.db", "team-b/east/db3.db", "team-b/ü #%?'.db"]


def put(history: History, path: Path) -> None:
    """Store every state of a database on a file replica."""
    client = FileReplicaClient(str(path))
    history.put_singles(client)
    client.close()


@pytest.fixture
def histories(tmp_path: Path) -> dict[str, History]:
    """Return databases by their relative paths, stored below ``replicas``."""
    made = {name: History(seed=n).run(n + 2) for n, name in enumerate(NAMES)}
    for name, history in made.items():
        put(history, tmp_path / "replicas" / name)
    return made


@pytest.fixture
def config(tmp_path: Path, histories: dict[str, History]) -> Path:
    """Return a configuration of their directory, which is lost."""
    path = tmp_path / "pyrep.yml"
    path.write_text(
        f"dbs:\n  - dir: {tmp_path}/lost\n    pattern: '*.db'\n    recursive: true\n"
        f"    replica: {{url: {(tmp_path / 'replicas').as_uri()}}}\n"
    )
    return path


def found(root: Path) -> dict[str, bytes]:
    """Return the content of every file below a folder."""
    files = (path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


def newest(histories: dict[str, History]) -> dict[str, bytes]:
    """Return the newest state of each database."""
    return {name: history.image(history.newest) for name, history in histories.items()}


def test_a_lost_directory_comes_back_from_the_replicas(
    config: Path, histories: dict[str, History], tmp_path: Path
) -> None:
    done = pyrep("restore", "-all", "-config", config, "-o", tmp_path / "out")
    assert (done.code, done.err) == (0, "")
    assert found(tmp_path / "out") == newest(histories)
    lines = done.out.splitlines()
    assert lines[0].split() == ["database", "status", "txid", "time", "size", "path"]
    assert lines[-1].startswith("4 restored in ")
    assert [line.split()[0] for line in lines[1:4]] == [
        f"{tmp_path}/lost/{name}" for name in NAMES[:3]
    ]


def test_below_a_url_no_configuration_is_needed(
    histories: dict[str, History], tmp_path: Path
) -> None:
    url = (tmp_path / "replicas").as_uri()
    done = pyrep("restore", "-all", "-o", tmp_path / "out", url)
    assert (done.code, found(tmp_path / "out")) == (0, newest(histories))
    done = pyrep("restore", "-all", "-o", tmp_path / "one", f"{url}/team-a/db2.db")
    assert found(tmp_path / "one") == {"db2.db": newest(histories)["team-a/db2.db"]}


def test_a_time_counts_for_all(config: Path, histories: dict[str, History], tmp_path: Path) -> None:
    done = pyrep(
        "restore", "-all", "-config", config, "-timestamp", "1970-01-01T00:00:02Z",
        "-o", tmp_path / "out",
    )  # fmt: skip
    assert done.code == 0
    assert found(tmp_path / "out") == {name: h.image(2) for name, h in histories.items()}


def test_in_their_own_places_the_states_are_written(config: Path, tmp_path: Path) -> None:
    assert pyrep("restore", "-all", "-config", config, "-o", tmp_path / "lost").code == 0
    assert (tmp_path / "lost" / "team-a" / ".db2.db-pyrep" / "state.json").exists()
    assert pyrep("restore", "-all", "-config", config, "-o", tmp_path / "out").code == 0
    assert not list((tmp_path / "out").rglob(".*-pyrep"))


def test_one_that_fails_stops_no_other(
    config: Path, histories: dict[str, History], tmp_path: Path
) -> None:
    broken = tmp_path / "replicas" / "db1.db" / "ltx" / "0"
    (broken / f"{1:016x}-{1:016x}.ltx").unlink()
    done = pyrep("restore", "-all", "-config", config, "-json", "-o", tmp_path / "out")
    assert done.code == 4
    assert done.json["count"] == {"failed": 1, "restored": 3}
    bad = next(item for item in done.json["databases"] if item["status"] == "failed")
    assert bad["database"] == f"{tmp_path}/lost/db1.db"
    assert "first file starts at" in bad["error"]
    assert f"Error: {tmp_path}/lost/db1.db: " in done.err
    assert len(found(tmp_path / "out")) == 3


def test_failures_of_several_kinds_exit_with_1(config: Path, tmp_path: Path) -> None:
    (tmp_path / "replicas" / "db1.db" / "ltx" / "0" / f"{1:016x}-{1:016x}.ltx").unlink()
    taken = tmp_path / "out" / "team-a" / "db2.db"
    taken.parent.mkdir(parents=True)
    taken.write_text("precious")
    done = pyrep("restore", "-all", "-config", config, "-o", tmp_path / "out")
    assert (done.code, taken.read_text()) == (1, "precious")


def test_existing_ones_can_be_skipped_or_replaced(
    config: Path, histories: dict[str, History], tmp_path: Path
) -> None:
    taken = tmp_path / "out" / "db1.db"
    taken.parent.mkdir()
    taken.write_text("precious")
    base = ("restore", "-all", "-config", config, "-o", tmp_path / "out")
    done = pyrep(*base, "-if-db-not-exists", "-json")
    assert (done.code, taken.read_text()) == (0, "precious")
    assert done.json["count"] == {"skipped": 1, "restored": 3}
    assert pyrep(*base, "-force").code == 0
    assert found(tmp_path / "out") == newest(histories)


def test_a_dry_run_writes_nothing(config: Path, tmp_path: Path) -> None:
    done = pyrep("restore", "-all", "-config", config, "-dry-run", "-o", tmp_path / "out")
    assert (done.code, (tmp_path / "out").exists()) == (0, False)
    assert done.out.splitlines()[-1].startswith("4 planned in ")


def test_a_database_without_any_backup_is_a_failure_or_skipped(
    config: Path, start_app, tmp_path: Path
) -> None:
    (tmp_path / "lost").mkdir()
    (tmp_path / "lost" / "notes.db").write_text("not a database")
    start_app(tmp_path / "lost" / "new.db").script("create table t (x)")
    base = ("restore", "-all", "-config", config, "-json")
    done = pyrep(*base, "-o", tmp_path / "out")
    assert (done.code, done.json["count"]) == (6, {"failed": 1, "restored": 4})
    done = pyrep(*base, "-if-replica-exists", "-o", tmp_path / "again")
    assert (done.code, done.json["count"]) == (0, {"skipped": 1, "restored": 4})


def test_replicas_that_no_entry_matches_are_named(config: Path, tmp_path: Path) -> None:
    put(History().run(1), tmp_path / "replicas" / "other.sqlite")
    done = pyrep("restore", "-all", "-config", config, "-json", "-o", tmp_path / "out")
    assert done.json["not_matched"] == [(tmp_path / "replicas" / "other.sqlite").as_uri()]
    assert "no entry of the configuration matches" in done.err


def test_two_with_one_place_go_to_their_whole_paths(tmp_path: Path) -> None:
    entries = ""
    for folder in ("a", "b"):
        put(History().run(1), tmp_path / f"r-{folder}" / "x.db")
        entries += f"  - dir: {tmp_path}/{folder}\n    pattern: '*'\n"
        entries += f"    replica: {{path: {tmp_path}/r-{folder}}}\n"
    put(History().run(1), tmp_path / "r-single")
    entries += f"  - path: {tmp_path}/y.db\n    replica: {{path: {tmp_path}/r-single}}\n"
    config = tmp_path / "pyrep.yml"
    config.write_text(f"dbs:\n{entries}")
    out = tmp_path / "out"
    assert pyrep("restore", "-all", "-config", config, "-o", out).code == 0
    inside = str(tmp_path).lstrip("/")
    assert set(found(out)) == {"y.db", f"{inside}/a/x.db", f"{inside}/b/x.db"}


def test_a_replica_of_another_entry_is_taken_once(tmp_path: Path) -> None:
    for name in ("one.db", "nested/deep/x.db", "nested/single.db"):
        put(History().run(1), tmp_path / "r" / name)
    config = tmp_path / "pyrep.yml"
    config.write_text(
        f"dbs:\n"
        f"  - dir: {tmp_path}/a\n    pattern: '*.db'\n    replica: {{path: {tmp_path}/r}}\n"
        f"  - dir: {tmp_path}/b\n    pattern: '*.db'\n    recursive: true\n"
        f"    replica: {{path: {tmp_path}/r/nested}}\n"
        f"  - path: {tmp_path}/c.db\n    replica: {{path: {tmp_path}/r/nested/single.db}}\n"
    )
    done = pyrep("restore", "-all", "-json", "-config", config, "-o", tmp_path / "out")
    assert (done.code, done.json["not_matched"]) == (0, [])
    assert set(found(tmp_path / "out")) == {"c.db", "one.db", "deep/x.db"}


def test_nothing_found_is_an_error_unless_allowed(tmp_path: Path) -> None:
    url = (tmp_path / "nothing").as_uri()
    done = pyrep("restore", "-all", "-o", tmp_path / "out", url)
    assert (done.code, done.error) == (6, f"no replica found at or below {url}")
    done = pyrep("restore", "-all", "-if-replica-exists", "-json", "-o", tmp_path / "out", url)
    assert (done.code, done.json["databases"]) == (0, [])


def test_replicas_are_told_from_other_folders(tmp_path: Path) -> None:
    put(History().run(1), tmp_path / "r")
    put(History().run(1), tmp_path / "r" / "ltx-like" / "ltx")
    (tmp_path / "r" / "empty" / "ltx" / "0").mkdir(parents=True)
    (tmp_path / "r" / "odd" / "ltx" / "99").mkdir(parents=True)
    (tmp_path / "r" / "odd" / "ltx" / "99" / f"{1:016x}-{1:016x}.ltx").touch()
    (tmp_path / "r" / "loop").symlink_to(tmp_path / "r")
    assert [one.name for one in below_url((tmp_path / "r").as_uri()).found] == ["r", "ltx-like/ltx"]


def test_a_replica_with_others_below_it_goes_into_their_folder(tmp_path: Path) -> None:
    made = {name: History(seed=n).run(2) for n, name in enumerate(("team", "team/a.db", "b.db"))}
    for name, history in made.items():
        put(history, tmp_path / "r" / name)
    out = tmp_path / "out"
    assert pyrep("restore", "-all", "-o", out, (tmp_path / "r").as_uri()).code == 0
    images = newest(made)
    images["team/team"] = images.pop("team")
    assert found(out) == images


def test_a_folder_that_cannot_be_searched_stops_no_other(
    config: Path,
    histories: dict[str, History],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    look_below = FileReplicaClient.look_below

    def look(self: FileReplicaClient, path: str = "") -> Below:
        if path == "team-a":
            raise ReplicaPermanentError("team-a: cannot look into it", hint="Ask its owner.")
        return look_below(self, path)

    monkeypatch.setattr(FileReplicaClient, "look_below", look)
    url = (tmp_path / "replicas").as_uri()
    for operands in ((url,), ("-config", config)):
        out = tmp_path / f"out{len(operands)}"
        done = pyrep("restore", "-all", "-json", "-o", out, *operands)
        assert done.code == ReplicaPermanentError("").exit_code
        assert done.err == "Error: team-a: cannot look into it\nHint: Ask its owner.\n"
        assert [problem["error"] for problem in done.json["problems"]] == [
            "team-a: cannot look into it"
        ]
        left = {name: data for name, data in newest(histories).items() if "team-a" not in name}
        assert found(out) == left


def test_a_replica_that_cannot_be_searched_is_a_problem_of_its_entry(
    config: Path,
    histories: dict[str, History],
    start_app,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Restore what the directory holds all the same."""
    db = tmp_path / "lost" / "db1.db"
    db.parent.mkdir()
    start_app(db).script("create table t (x)")

    def look(self: FileReplicaClient, path: str = "") -> Below:
        raise ReplicaPermanentError("listing is forbidden")

    monkeypatch.setattr(FileReplicaClient, "look_below", look)
    done = pyrep("restore", "-all", "-config", config, "-o", tmp_path / "out")
    assert (done.code, done.err) == (5, "Error: listing is forbidden\n")
    assert found(tmp_path / "out") == {"db1.db": newest(histories)["db1.db"]}


def test_a_failure_is_said_once(config: Path, tmp_path: Path) -> None:
    (tmp_path / "replicas" / "db1.db" / "ltx" / "0" / f"{1:016x}-{1:016x}.ltx").unlink()
    done = pyrep("restore", "-all", "-config", config, "-o", tmp_path / "out")
    assert (done.out + done.err).count("first file starts at") == 1
    row = next(line for line in done.out.splitlines() if "failed" in line)
    assert row.split()[-1] == f"{tmp_path}/out/db1.db"
    assert "\nHint: the first snapshot is missing" in done.err


@pytest.mark.parametrize("bad", ["x\0y.db", "n" * 300, "c\x1b[2Jd.db"])
def test_names_that_are_no_file_names_fail_alone(
    bad: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    history = History().run(2)
    put(history, tmp_path / "r" / "good.db")
    monkeypatch.setattr(
        FileReplicaClient, "look_below", lambda self, path="": Below(("good.db", bad))
    )
    done = pyrep("restore", "-all", "-o", tmp_path / "out", (tmp_path / "r").as_uri())
    assert done.code != 0
    assert done.err.startswith("Error: ")
    assert "Traceback" not in done.err
    assert "\x1b" not in done.out + done.err
    assert found(tmp_path / "out") == {"good.db": history.image(2)}
