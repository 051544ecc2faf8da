"""Finding, reading and expanding the file, before anything in it is judged."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyrep.config import load as load_module
from pyrep.config.load import config_path, expand_variables, from_args, load, loads
from pyrep.config.values import Notes
from pyrep.errors import ConfigError


def variables(text: str, **environ: str) -> str:
    return expand_variables(text, environ, Notes())


def refused(text: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        loads(text, environ={})
    assert caught.value.exit_code == 2
    return caught.value


def test_a_file_is_loaded(tmp_path: Path) -> None:
    file = tmp_path / "pyrep.yml"
    file.write_text(f"dbs: [{{path: {tmp_path}/x.db, replica: {{path: {tmp_path}/r}}}}]\n")
    config = load(file, environ={})
    assert config.source == file
    assert config.dbs[0].path == tmp_path / "x.db"
    assert config.dbs[0].replica.path == f"{tmp_path}/r"


@pytest.mark.parametrize(
    "text", ["", "# nothing\n", "dbs:\n", "dbs: []\n", "---\n", "\ufeffdbs:\n"]
)
def test_an_empty_file_is_an_empty_configuration(tmp_path: Path, text: str) -> None:
    file = tmp_path / "empty.yml"
    file.write_text(text)
    config = load(file, environ={})
    assert config.dbs == ()
    assert config.warnings == ()


def test_the_given_path_wins_then_the_variables_then_etc(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = tmp_path / "pyrep.yml", tmp_path / "litestream.yml"
    monkeypatch.setattr(load_module, "DEFAULT_PATHS", (ours, theirs))
    environ = {"PYREP_CONFIG": "/p.yml", "LITESTREAM_CONFIG": "/l.yml"}
    assert config_path("/given.yml", environ) == Path("/given.yml")
    assert config_path(None, environ) == Path("/p.yml")
    assert config_path("", environ | {"PYREP_CONFIG": ""}) == Path("/l.yml")
    assert config_path(None, {}) == ours
    theirs.touch()
    assert config_path(None, {}) == theirs
    ours.touch()
    assert config_path(None, {}) == ours


def test_a_relative_path_and_the_home_directory_are_expanded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")
    assert config_path("x.yml", {}) == tmp_path / "x.yml"
    assert config_path("~/x.yml", {}) == Path("/home/someone/x.yml")


def test_a_missing_file_is_named_with_its_whole_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        load("no.yml", environ={})
    assert str(caught.value) == f"config file not found: {tmp_path}/no.yml"
    with pytest.raises(ConfigError, match=r"config file not found: /no/such\.yml"):
        load(environ={"LITESTREAM_CONFIG": "/no/such.yml"})


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"cannot read config file {tmp_path}: Is a directory"):
        load(tmp_path, environ={})
    file = tmp_path / "latin.yml"
    file.write_bytes(b"# caf\xe9\n")
    with pytest.raises(ConfigError, match=r"latin\.yml: byte 6 is not UTF-8"):
        load(file, environ={})
    with pytest.raises(ConfigError, match="NUL character"):
        load("a\0b", environ={})


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        ("$A", "1"),
        ("${A}", "1"),
        ("x$A-y${A}z", "x1-y1z"),
        ("$AB", ""),
        ("$A.b", "1.b"),
        ("a$", "a$"),
        ("a $ b", "a $ b"),
        ("$(A)", "$(A)"),
        ("${}x", "x"),
        ("${A", "A"),
        ("$$A", "A"),
        ("$5.00", ".00"),
        ("$55", "5"),
        ("${A:-default}", ""),
        ("# $A", "# 1"),
        ("$A$A", "11"),
    ],
)
def test_variables_are_expanded_as_in_litestream(text: str, expanded: str) -> None:
    assert variables(text, A="1") == expanded


def test_the_process_id_is_a_variable() -> None:
    assert variables("$PID ${PID}", PID="0") == f"{os.getpid()} {os.getpid()}"


def test_unset_variables_give_one_warning_each() -> None:
    text = "# $COMMENT\n$GONE ${GONE} ${X:-y}\n  # $5\nprice: $5\n${SET}\n"
    notes = Notes()
    expand_variables(text, {"SET": ""}, notes)
    assert notes.lines() == (
        "environment variable GONE is not set and stands for nothing",
        "${X:-y} stands for nothing, only plain names can be expanded",
        "$5 in the configuration stands for nothing; -no-expand-env keeps dollar signs",
    )


def test_expansion_can_be_switched_off() -> None:
    text = "exec: echo $HOME"
    assert loads(text, environ={"HOME": "/h"}).exec == "echo /h"
    assert loads(text, environ={"HOME": "/h"}, expand_env=False).exec == "echo $HOME"


def test_a_variable_may_hold_yaml() -> None:
    config = loads("exec: $CMD", environ={"CMD": '"a: b"'})
    assert config.exec == "a: b"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "cannot parse configuration: line 2, column 1"),
        ("exec: a\nexec: b", "line 2, column 1: key 'exec' is given twice, first on line 1"),
        (
            "dbs:\n- path: /a\n  replica:\n    path: /b\n    path: /c",
            "line 5, column 5: key 'path' is given twice, first on line 4",
        ),
        ("exec: !cmd x", "line 1, column 7: unknown tag !cmd"),
        ("exec: !!python/object:os.system x", "unknown tag tag:yaml.org,2002:python/"),
        ("a: 1\n---\nb: 1", "expected a single document"),
        ("[a]: b", "line 1, column 1: a key must be a text"),
        ("<<: 5", "'<<' needs a mapping"),
        ("dbs: &a [*a]", "nested too deeply"),
        ("a: " + "[" * 60 + "]" * 60, "nested too deeply"),
        ("a: \x07", "cannot parse configuration"),
        ("*nobody", "found undefined alias"),
    ],
)
def test_what_is_no_plain_yaml_is_refused(text: str, message: str) -> None:
    assert message in str(refused(text))


def test_a_variable_must_be_utf8() -> None:
    with pytest.raises(ConfigError, match="an environment variable in it is not UTF-8"):
        loads("exec: $CMD", environ={"CMD": "\udcff"})


def test_an_error_never_shows_the_lines_around_it() -> None:
    error = refused("secret-access-key: topsecret\nx: [")
    assert "topsecret" not in f"{error} {error.hint}"


def test_anchors_and_merges_work() -> None:
    config = loads(
        """
dbs:
  - &first
    path: /a.db
    busy-timeout: 3s
    replica: &replica
      path: /r/a
      sync-interval: 5s
  - <<: *first
    path: /b.db
    replica:
      <<: [*replica]
      path: /r/b
"""
    )
    second = config.dbs[1]
    assert (second.path, second.busy_timeout) == (Path("/b.db"), timedelta(seconds=3))
    assert (second.replica.path, second.replica.sync_interval) == ("/r/b", timedelta(seconds=5))


def test_a_merged_key_may_be_overridden_but_not_given_twice() -> None:
    text = "logging: {<<: {level: DEBUG}, level: WARN}"
    assert loads(text).logging.level == "WARN"
    assert "given twice" in str(refused("logging: {level: WARN, level: WARN}"))


def test_the_state_directory_has_systemds_default(monkeypatch: pytest.MonkeyPatch) -> None:
    environ = {"STATE_DIRECTORY": "/var/lib/one:/var/lib/two", "HOME": "/home/u"}
    assert loads("", environ=environ).state_dir == Path("/var/lib/one")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert loads("", environ={"HOME": "/home/u"}).state_dir == Path("/var/lib/pyrep")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert loads("", environ={"HOME": "/home/u"}).state_dir == Path("/home/u/.local/state/pyrep")
    assert loads("state-dir: /s", environ=environ).state_dir == Path("/s")


def test_a_database_and_a_url_make_a_configuration() -> None:
    config = from_args("/data/$x.db", ["file:///backup/%24x"], environ={"x": "no"})
    (database,) = config.dbs
    assert database.path == Path("/data/$x.db")
    assert str(database.replica.url) == "file:///backup/%24x"
    assert config.source is None
    assert config.warnings == ()


@pytest.mark.parametrize(
    ("urls", "message"),
    [
        ([], "must specify at least one replica URL for /x.db"),
        (
            ["-once"],
            'flag "-once" must be positioned before DB_PATH and REPLICA_URL arguments',
        ),
        (
            ["file:///a", "file:///b"],
            "database config #1: multiple replicas on a single database are no longer supported",
        ),
        (["/backup"], "database config #1: replica url scheme required: /backup"),
        (["ftp://h/p"], 'database config #1: unknown replica type in config: "ftp"'),
        (["file://backup/x"], "database config #1: file replica url names a host"),
    ],
)
def test_other_arguments_are_refused(urls: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_args("/x.db", urls, environ={})
    assert str(caught.value).startswith(message)


EXAMPLE = """\
sync-interval: 2s
levels: [{interval: 30s}]
dbs:
  - path: /a.db
    replica: &r {path: /r, sync-interval: 1s}
  - dir: /d
    pattern: "*.db"
    replica: {<<: *r, url: "file:///r%20x"}
"""


@given(
    st.integers(0, len(EXAMPLE)),
    st.integers(0, 12),
    st.text(alphabet="\"'{}[]:-&*!|>%@`#,? \t\n\0$~<=0az\u2028\ud7ff", max_size=8),
)
def test_a_damaged_file_is_read_or_refused_and_nothing_else(at: int, cut: int, new: str) -> None:
    text = EXAMPLE[:at] + new + EXAMPLE[at + cut :]
    try:
        config = loads(text, environ={})
    except ConfigError as exc:
        shown = str(exc)
    else:
        shown = "\n".join(config.warnings)
    assert "\0" not in shown
    assert "Traceback" not in shown
