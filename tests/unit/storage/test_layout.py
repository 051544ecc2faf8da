"""Names and paths of both remote layouts."""

from __future__ import annotations

import pytest

from pyrep.errors import ConfigError
from pyrep.ids import TXID
from pyrep.ltxfile import FileInfo
from pyrep.storage import layout

NAME = "0000000000000001-00000000000000ff.ltx"


def test_paths_of_both_layouts() -> None:
    assert layout.ltx_path(9, 1, 255) == f"ltx/9/{NAME}"
    assert layout.hex_ltx_path(9, 1, 255) == f"0009/{NAME}"
    assert layout.level_path(0) == "ltx/0"
    assert layout.hex_level_path(0) == "0000"


@pytest.mark.parametrize("level", layout.LEVELS)
def test_paths_are_read_back(level: int) -> None:
    info = FileInfo(level, TXID(1), TXID(255))
    assert layout.parse_ltx_path(layout.ltx_path(level, 1, 255)) == info
    assert layout.parse_hex_ltx_path(layout.hex_ltx_path(level, 1, 255)) == info
    assert layout.parse_level(str(level)) == level
    assert layout.parse_hex_level(layout.hex_level_path(level)) == level


@pytest.mark.parametrize("text", ["", "10", "-1", "00", "a", " 1", "1\n", "+1", "\u0661"])
def test_other_texts_are_no_levels(text: str) -> None:
    assert layout.parse_level(text) is None


@pytest.mark.parametrize("text", ["", "9", "009", "00009", "000a", "0010", "0009\n", "+009"])
def test_other_texts_are_no_hex_levels(text: str) -> None:
    assert layout.parse_hex_level(text) is None


@pytest.mark.parametrize(
    "path",
    [
        "",
        NAME,
        f"ltx/{NAME}",
        f"LTX/0/{NAME}",
        f"ltx/10/{NAME}",
        f"ltx/0/x/{NAME}",
        f"/ltx/0/{NAME}",
        f"ltx/0/{NAME}.tmp",
        f"0009/{NAME}",
    ],
)
def test_other_paths_name_no_file(path: str) -> None:
    assert layout.parse_ltx_path(path) is None


@pytest.mark.parametrize("path", ["", NAME, f"9/{NAME}", f"000a/{NAME}", f"ltx/9/{NAME}"])
def test_other_paths_name_no_file_in_the_hex_layout(path: str) -> None:
    assert layout.parse_hex_ltx_path(path) is None


@pytest.mark.parametrize(
    ("base", "relpath", "path"),
    [
        ("backups/prod", "db1.db", "backups/prod/db1.db"),
        ("backups/prod", "team-a/db2.db", "backups/prod/team-a/db2.db"),
        ("backups/prod/", "db1.db", "backups/prod/db1.db"),
        ("/backups//prod/./", "./a//b", "/backups/prod/a/b"),
        ("//srv", "a", "/srv/a"),
        ("", "team-a/db2.db", "team-a/db2.db"),
        (".", "a", "a"),
        ("/", "a", "/a"),
        ("../up", "a", "../up/a"),
        ("100% what?", "it's #1/\N{SNOWMAN} e\u0301", "100% what?/it's #1/\N{SNOWMAN} e\u0301"),
        ("b", "..a/b..", "b/..a/b.."),
    ],
)
def test_a_tenants_path_is_below_the_configured_one(base: str, relpath: str, path: str) -> None:
    assert layout.join_replica_path(base, relpath) == path


@pytest.mark.parametrize("relpath", ["", ".", "/", "/a", "..", "../a", "a/../../b", "a/.."])
def test_a_tenants_path_cannot_leave_the_base(relpath: str) -> None:
    with pytest.raises(ConfigError, match="not a path below a replica path"):
        layout.join_replica_path("base", relpath)
