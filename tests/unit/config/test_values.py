"""Scalars of every kind, and secrets that stay secret."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from pyrep.config.effective import effective
from pyrep.config.load import loads
from pyrep.config.model import Config, Secret, SecretURL, redact_url
from pyrep.errors import ConfigError

REPLICA = "replica: {path: /r}"


def database(**keys: str) -> Config:
    lines = "".join(f"\n    {key.replace('_', '-')}: {value}" for key, value in keys.items())
    return loads(f"dbs:\n  - path: /x.db\n    {REPLICA}{lines}", environ={})


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("5", 5),
        ("-5", -5),
        ("+5", 5),
        ("0x1F", 31),
        ("0o17", 15),
        ("017", 15),
        ("0b101", 5),
        ("1_000", 1000),
        ("-010", -8),
    ],
)
def test_integers(text: str, number: int) -> None:
    assert database(truncate_page_n=text).dbs[0].truncate_page_n == number


@pytest.mark.parametrize(
    "text",
    ["x", "1.5", "'5'", "[]", "{}", "1e3", "08", "0x", "9223372036854775808", "1:30", "0x_", "yes"],
)
def test_other_texts_are_no_integers(text: str) -> None:
    with pytest.raises(ConfigError, match=r"dbs\[/x\.db\]\.truncate-page-n: must be an integer"):
        database(truncate_page_n=text)


@pytest.mark.parametrize("text", ["true", "True", "TRUE", "yes", "on", "y"])
def test_true_booleans(text: str) -> None:
    assert database(same_host=text).dbs[0].same_host is True


@pytest.mark.parametrize("text", ["false", "no", "off", "n"])
def test_false_booleans(text: str) -> None:
    assert database(same_host=text).dbs[0].same_host is False


@pytest.mark.parametrize("text", ["1", "'true'", "[true]", "enabled"])
def test_other_texts_are_no_booleans(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        database(same_host=text)
    shown = "a list" if text.startswith("[") else text.strip("'")
    assert str(caught.value) == f"dbs[/x.db].same-host: must be true or false (got {shown})"
    assert caught.value.hint == "Correct line 4 of the configuration file."


@pytest.mark.parametrize("text", ["~", "null", "Null", ""])
def test_a_key_without_a_value_counts_as_not_given(text: str) -> None:
    given = database(busy_timeout=text, truncate_page_n=text, spool_limit=text)
    assert given.dbs == database().dbs
    config = loads(f"snapshot: {text}\nshutdown-sync-timeout: {text}\nlogging: {text}")
    assert config == Config(state_dir=config.state_dir)


@pytest.mark.parametrize("text", ["0123", "yes", "2024-01-01", "1e3", "5", "'a b'", "x: y"[:1]])
def test_texts_stay_as_they_are_written(text: str) -> None:
    config = loads(f"exec: {text}")
    assert config.exec == text.strip("'")


def test_durations_and_sizes() -> None:
    config = database(busy_timeout="1.5h", spool_limit="1.5GiB", monitor_interval="-1s")
    assert config.dbs[0].busy_timeout == timedelta(minutes=90)
    assert config.dbs[0].spool_limit == 3 << 29
    assert config.dbs[0].monitor_interval == timedelta(seconds=-1)


def test_a_duration_without_a_unit_means_nanoseconds_and_warns() -> None:
    config = database(busy_timeout="5000", checkpoint_interval="0")
    assert config.dbs[0].busy_timeout == timedelta(microseconds=5)
    assert config.dbs[0].checkpoint_interval == timedelta()
    (warning,) = config.warnings
    assert warning.startswith("dbs[/x.db].busy-timeout: has no unit, so 5000 means 5000 nanosec")


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        ("busy_timeout", "7d", "7d is 168h"),
        ("busy_timeout", "'5'", "missing unit in duration '5'"),
        ("busy_timeout", "1.5", "missing unit in duration '1.5'"),
        ("busy_timeout", "-1s", "must not be negative (got -1s)"),
        ("busy_timeout", "99999999999999999999", "longer than 292 years"),
        ("busy_timeout", "[1s]", "must be a text (got a list)"),
        ("idle_timeout", "0s", "must be greater than 0 (got 0s)"),
        ("spool_limit", "0", "must be greater than 0 (got 0)"),
        ("spool_limit", "5XB", "invalid size format: '5XB'"),
        ("spool_limit", "''", "empty size string"),
        ("spool_limit", "9EiB", "exceeds maximum allowed value (9223372036854775807)"),
        ("min_checkpoint_page_count", "0", "must be greater than 0 (got 0)"),
        ("journal_mode", "wal", "must be convert or keep (got wal)"),
        ("meta_path", "''", "must not be empty"),
        ("meta_path", '"a\\0b"', "a path cannot contain a NUL character"),
        ("replicas", "5", "must be a list (got 5)"),
    ],
)
def test_wrong_values_are_named(key: str, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        database(**{key: text})
    assert str(caught.value).startswith(f"dbs[/x.db].{key.replace('_', '-')}: ")
    assert message in str(caught.value)


def test_paths_are_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/u")
    config = loads(
        """
dbs:
  - {path: sqlite:///a.db, replica: {path: ~/r}}
  - {path: "sqlite3://rel.db", replica: {path: r/../s}}
  - {path: ~user/x.db, meta-path: ~, replica: {path: /r}}
  - {path: "~", meta-path: "~/m", replica: {path: /r}}
"""
    )
    assert [str(entry.path) for entry in config.dbs] == [
        "/a.db",
        f"{tmp_path}/rel.db",
        f"{tmp_path}/~user/x.db",
        "/home/u",
    ]
    assert [entry.replica.path for entry in config.dbs[:2]] == ["/home/u/r", f"{tmp_path}/s"]
    assert [entry.meta_path for entry in config.dbs[2:]] == [None, Path("/home/u/m")]


def test_a_secret_is_never_printed() -> None:
    secret = Secret("hunter2")
    assert {str(secret), f"{secret}", f"{secret:>3}", "%s" % secret} == {"***"}  # noqa: UP031
    assert repr(secret) == "Secret('***')"
    assert secret.reveal() == "hunter2"
    assert secret == Secret("hunter2")
    assert secret != Secret("other")
    assert secret != "hunter2"
    assert len({secret, Secret("hunter2")}) == 1
    assert not Secret("")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("file:///a/b", "file:///a/b"),
        ("s3://bucket/p?region=x", "s3://bucket/p?region=x"),
        ("sftp://user:pw@host/p", "sftp://user:***@host/p"),
        ("sftp://user:p@w@host/p", "sftp://user:***@host/p"),
        ("sftp://user:@host/p", "sftp://user:***@host/p"),
        ("sftp://user@host/p", "sftp://user@host/p"),
        ("nats://token@host/b", "nats://***@host/b"),
        ("abs://account@container/p", "abs://account@container/p"),
        ("https://h/p?a=1&sseCustomerKey=k&X-Amz-Signature=s", None),
        ("user:pw@host", "***"),
        ("plain", "plain"),
    ],
)
def test_urls_are_printed_without_credentials(url: str, shown: str | None) -> None:
    if shown is None:
        shown = "https://h/p?a=1&sseCustomerKey=***&X-Amz-Signature=***"
    assert redact_url(url) == shown
    assert str(SecretURL(url)) == shown
    assert SecretURL(url).reveal() == url


SECRET_YAML = """
secret-access-key: S3CRET
heartbeat-url: https://u:S3CRET@hc.example/ping
dbs:
  - path: /a.db
    replica: {type: s3, bucket: b}
  - path: /b.db
    replica: {url: "sftp://u:S3CRET@h/p", password: S3CRET}
  - path: /c.db
    replica: {type: abs, bucket: b, account-key: S3CRET, sas-token: S3CRET}
  - path: /d.db
    replica: {type: nats, bucket: b, jwt: S3CRET, seed: S3CRET, nkey: S3CRET, token: S3CRET}
  - path: /e.db
    replica: {url: "webdavs://u:S3CRET@h/p", webdav-password: S3CRET}
  - path: /f.db
    replica: {type: s3, bucket: b, sse-customer-key: S3CRET}
"""


def test_no_secret_is_in_any_text_of_a_configuration() -> None:
    config = loads(SECRET_YAML, environ={})
    assert SECRET_YAML.count("S3CRET") == 13
    texts = (repr(config), str(config), str(effective(config)), *config.warnings)
    assert [text for text in texts if "S3CRET" in text] == []
    assert config.dbs[0].replica.options["secret-access-key"] == Secret("S3CRET")


@pytest.mark.parametrize(
    "text",
    [
        "secret-access-key: [S3CRET]",
        "secret-access-key: {S3CRET: S3CRET}",
        "heartbeat-url: S3CRET",
        "dbs: [{path: /x, replica: {url: 'u:S3CRET@h'}}]",
        "dbs: [{path: /x, replica: {path: 'sftp://u:S3CRET@h/p'}}]",
        "dbs: [{path: /x, replica: {url: 'sftp://u:S3CRET@h/p#x'}}]",
        "dbs: [{path: /x, replica: {url: 'sftp://u:S3CRET@h/p', host: h}}]",
    ],
)
def test_no_secret_is_in_an_error(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        loads(text, environ={})
    assert "S3CRET" not in f"{caught.value} {caught.value.hint} {caught.value.value}"
