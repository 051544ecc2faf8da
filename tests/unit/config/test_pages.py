"""docs/configuration.md and docs/directories.md say what the model and the code say."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import MISSING, fields
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest

from pyrep.config import expand as expand_module
from pyrep.config.effective import effective
from pyrep.config.expand import TenantSpec, describe_replica, tenant_at
from pyrep.config.keys import (
    DATABASE_KEYS,
    GLOBAL_KEYS,
    LOGGING_KEYS,
    OPTION_KEYS,
    REPLICA_KEYS,
    TYPE_OPTIONS,
    Key,
)
from pyrep.config.limits import DB_NAME_BYTES, LIMITS
from pyrep.config.load import loads
from pyrep.config.model import (
    CompactionLevel,
    Config,
    DatabaseConfig,
    LoggingConfig,
    ReplicaConfig,
    RetentionConfig,
    SnapshotConfig,
    SocketConfig,
    ValidationConfig,
)
from pyrep.units import format_duration, format_size

DOCS = Path(__file__).parents[3] / "docs"
SECTIONS = {
    "Top level": Config,
    "logging": LoggingConfig,
    "levels": CompactionLevel,
    "snapshot": SnapshotConfig,
    "retention": RetentionConfig,
    "validation": ValidationConfig,
    "socket": SocketConfig,
    "Databases": DatabaseConfig,
    "Replicas": ReplicaConfig,
}
# Fields that are no keys of their section.
HIDDEN = {
    Config: {"source", "warnings", "inherited"},
    DatabaseConfig: {"index", "excluded", "state_roots"},
    ReplicaConfig: {"options"},
    CompactionLevel: {"level"},
}
STATES = {"": "yes", "not built yet": "not yet", "left over from Litestream 0.3": "left over"}


def section(page: str, heading: str) -> str:
    text = (DOCS / page).read_text()
    match = re.search(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#|\Z)", text, re.MULTILINE | re.DOTALL)
    assert match is not None, heading
    return match[1]


def rows(text: str) -> list[dict[str, str]]:
    """Return the rows of a section's tables, each as column to cell."""
    lines = [line.strip("| ") for line in text.splitlines() if line.startswith("|")]
    if not lines:
        return []
    head = [cell.strip() for cell in lines[0].split("|")]
    return [dict(zip(head, map(str.strip, line.split("|")), strict=False)) for line in lines[2:]]


def keys(heading: str) -> dict[str, dict[str, str]]:
    return {row["Key"].strip("`"): row for row in rows(section("configuration.md", heading))}


def shown(key: str, value: object) -> str:
    """Return a default as the tables write it."""
    if (
        value is MISSING
        or value is None
        or value == ""
        or isinstance(value, tuple | SimpleNamespace)
    ):
        return "–"
    if isinstance(value, timedelta):
        return f"`{format_duration(value)}`"
    if key.startswith("spool-limit") and isinstance(value, int):
        return f"`{format_size(value)}`"
    if key == "permissions":
        return f"`0{value:o}`"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def defaults(kind: type) -> dict[str, object]:
    found = {}
    for field in fields(kind):
        if field.name in HIDDEN.get(kind, ()):
            continue
        value = field.default
        structured = hasattr(value, "__dataclass_fields__") or field.default_factory is not MISSING
        found[field.name.replace("_", "-")] = None if structured else value
    return found


@pytest.mark.parametrize("heading", SECTIONS)
def test_keys_and_defaults_are_those_of_the_model(heading: str) -> None:
    documented = keys(heading)
    model = {key: shown(key, value) for key, value in defaults(SECTIONS[heading]).items()}
    assert {key: documented[key]["Default"] for key in model} == model
    extra = {
        "Databases": {"directory", "replicas", "max-checkpoint-page-count"},
        "Replicas": set(REPLICA_KEYS) - set(model),
    }.get(heading, set())
    assert set(documented) == set(model) | extra


@pytest.mark.parametrize(
    ("heading", "table"),
    [
        ("Databases", DATABASE_KEYS),
        ("Replicas", REPLICA_KEYS),
        (
            "Top level",
            {k: v for k, v in GLOBAL_KEYS.items() if k not in {*REPLICA_KEYS, *OPTION_KEYS}}
            | {"retention": GLOBAL_KEYS["retention"]},
        ),
    ],
)
def test_every_key_is_listed_with_its_state(heading: str, table: dict[str, Key]) -> None:
    documented = {key: row["In effect"] for key, row in keys(heading).items()}
    states = {key: STATES[entry.why] for key, entry in table.items()}
    if "age" in states:
        states["age"] = "refused"
    assert documented == states


def test_logging_keys_are_listed() -> None:
    assert set(keys("logging")) == set(LOGGING_KEYS)


def test_types_of_options_are_listed() -> None:
    documented = {key: row["Types"] for key, row in keys("Keys of one type").items()}
    assert documented == {
        key: ", ".join(kind for kind, options in TYPE_OPTIONS.items() if key in options)
        for key in OPTION_KEYS
    }


def test_no_option_belongs_to_no_type() -> None:
    assert set().union(*TYPE_OPTIONS.values()) == set(OPTION_KEYS)


def test_what_litestream_ignores_in_the_tables_is_said_by_a_warning() -> None:
    left_over = [key for key, row in keys("Replicas").items() if row["In effect"] == "left over"]
    lines = "".join(f", {key}: 1h" for key in left_over)
    warnings = loads(f"dbs: [{{path: /x, replica: {{path: /r{lines}}}}}]").warnings
    for key, warning in zip(left_over, warnings, strict=True):
        assert keys("Replicas")[key]["Meaning"] in warning


def examples(page: str) -> Iterator[tuple[str, str]]:
    """Yield each YAML block of a page with the text up to the next one."""
    text = (DOCS / page).read_text()
    parts = re.split(r"^```yaml\n", text, flags=re.MULTILINE)[1:]
    for part in parts:
        yaml, _, after = part.partition("\n```\n")
        yield yaml, after


@pytest.mark.parametrize("page", ["configuration.md", "directories.md"])
def test_examples_load_without_a_warning(page: str) -> None:
    found = list(examples(page))
    assert found
    for yaml, _ in found:
        config = loads(yaml, environ={})
        assert config.dbs
        assert config.warnings == ()


EXPANSIONS = [
    (yaml, row["Database"].strip("`"), row["Replica"].strip("`"))
    for yaml, after in examples("directories.md")
    for row in rows(after.partition("\n## ")[0].partition("\n### ")[0])
    if "Replica" in row
]


@pytest.mark.parametrize(("yaml", "database", "replica"), EXPANSIONS)
def test_resulting_paths_are_those_of_the_tables(yaml: str, database: str, replica: str) -> None:
    tenant = tenant_at(loads(yaml, environ={}), database)
    assert tenant is not None
    assert describe_replica(tenant.replica) == replica


def test_every_example_of_directories_has_a_table() -> None:
    assert len({yaml for yaml, _, _ in EXPANSIONS}) == len(list(examples("directories.md")))


def test_state_directories_are_those_of_the_table() -> None:
    table = rows(section("directories.md", "State directories"))
    assert len(table) == 4
    for row in table:
        setting = "" if row["Configured"] == "nothing" else row["Configured"].strip("`")
        setting = setting.replace(": ", ": /")
        for kind in ("path", "dir"):
            if row["Entry"].strip("`") in (kind, "both"):
                assert state(kind, setting) == row["State of `a/x.db`"]


def state(kind: str, setting: str) -> str:
    """Return the state directory of /d/a/x.db in the table's words."""
    target = "path: /d/a/x.db" if kind == "path" else "dir: /d, pattern: '*', recursive: true"
    entry = ", ".join(filter(None, (target, setting, "replica: {path: /r}")))
    tenant = tenant_at(loads(f"dbs: [{{{entry}}}]"), "/d/a/x.db")
    assert isinstance(tenant, TenantSpec)
    path = str(tenant.state_path)
    if path.startswith("/d/a/"):
        return f"`{path.removeprefix('/d/a/')}` beside the database"
    return f"`{path[1:]}`"


def test_limits_are_those_of_the_table() -> None:
    documented = {
        row["Type"].strip("`"): (
            int(row["Longest path"]),
            int(row["Longest name"]),
            row["Control characters"] == "refused",
        )
        for row in rows(section("directories.md", "Limits"))
    }
    assert documented == {
        kind: (limit.key_bytes, limit.name_bytes, limit.text) for kind, limit in LIMITS.items()
    }
    assert f"own name may have {DB_NAME_BYTES}" in section("directories.md", "Limits")


def test_options_of_directories_have_the_models_defaults() -> None:
    documented = {row["Key"]: row["Default"] for row in rows(section("directories.md", "Options"))}
    model = {f"`{key}`": shown(key, value) for key, value in defaults(DatabaseConfig).items()}
    assert len(documented) == 5
    for key, default in documented.items():
        assert {model[name] for name in key.split(", ")} == {default}


def test_the_effective_configuration_names_every_key() -> None:
    text = """
dbs:
  - {dir: /d, pattern: "*", meta-dir: /m, replica: {url: "s3://b/p", sign-payload: no}}
  - {path: /x, meta-path: /m, replica: {path: /r}}
levels: [{interval: 30s}]
max-attached: 5
validation: {interval: 1h}
heartbeat-url: https://h
"""
    shown_config = effective(loads(text, environ={}))
    sections = ("dbs", "warnings")
    for key in set(GLOBAL_KEYS) - {*REPLICA_KEYS, *OPTION_KEYS} - set(sections):
        assert key in shown_config, key
    assert set(shown_config["logging"]) == set(LOGGING_KEYS)  # type: ignore[call-overload]
    assert shown_config["levels"] == [{"interval": "30s"}]
    assert shown_config["socket"] == {
        "enabled": False,
        "path": "/var/run/litestream.sock",
        "permissions": "0o600",
    }
    first, second = shown_config["dbs"]  # type: ignore[misc]
    gone = {"directory", "replicas", "max-checkpoint-page-count"}
    assert set(first) == set(DATABASE_KEYS) - gone - {"path", "meta-path"}
    assert set(second) == set(DATABASE_KEYS) - gone - {"dir", "meta-dir", "pattern"} - {
        "recursive",
        "watch",
    }
    assert first["replica"]["url"] == "s3://b/p"
    assert first["replica"]["sign-payload"] is False
    assert first["idle-timeout"] == "1m"
    assert "path" not in effective(loads("", environ={}))


def test_never_taken_suffixes_are_named() -> None:
    text = section("directories.md", "Which files are databases")
    suffixes = re.findall(r'"(-\w+)"', Path(expand_module.__file__).read_text())
    assert suffixes
    assert [suffix for suffix in suffixes if suffix not in text] == []
