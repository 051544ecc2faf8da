"""The map from lessons to tests (tests/LESSONS.md) is whole and true."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from fixtures.sources import ROOT

_TESTS = ROOT / "tests"
_PAGE = _TESTS / "LESSONS.md"
_NODE = re.compile(r"`([\w/]+\.py)::(test_\w+)`")

_ROWS = {str(number) for number in [*range(1, 28), 29]}
_PARTS_OF_30 = {
    *("byte order", "salts", "mark 0", "cursor", "gaps", "only copy", "linkage", "target"),
    *("shrink", "torn tail"),
}
_SCENARIOS = {
    "phantom commit: writer killed after the frames, before the index",
    "16-byte probe of an attached inode",
    "two names of one inode",
    "power cut: ext4 kept inode, size, mtime and ctime while the content had changed",
    "hole in the WAL after a power cut",
    "commit, checkpoint, commit between comparing and attaching",
    "WAL overwritten under a diff",
    "WAL overwritten under a first snapshot",
    "gap and overlap of moves",
    "mark-0 tear",
    "shrink, cut off the file, growth in one range",
    "a path that is a link",
    "file replaced while attached",
    "a diff's base ahead of the replica",
    "who else has the database open",
    "blocking checkpoint of the application",
    "reader that pins the WAL",
    "a writer that never rests",
    "emergency checkpoint",
    "spool limit and full disk",
}


def _table(heading: str) -> dict[str, list[tuple[str, str]]]:
    """Return the rows of one table: first column, and the tests of the last."""
    part = _PAGE.read_text().partition(f"## {heading}\n")[2].partition("\n## ")[0]
    lines = [line for line in part.splitlines() if line.startswith("|")][2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0]: _NODE.findall(row[-1]) for row in cells}


@cache
def _functions(path: Path) -> frozenset[str]:
    tree = ast.parse(path.read_text())
    return frozenset(node.name for node in tree.body if isinstance(node, ast.FunctionDef))


def test_every_row_is_there() -> None:
    assert set(_table("Rows")) == _ROWS | {f"30: {part}" for part in _PARTS_OF_30}


def test_every_scenario_is_there() -> None:
    assert set(_table("Scenarios")) == _SCENARIOS


@pytest.mark.parametrize("heading", ["Rows", "Scenarios"])
def test_every_named_test_exists(heading: str) -> None:
    missing = []
    for first, nodes in _table(heading).items():
        if not nodes:
            missing.append(f"{first}: no test")
        for file, name in nodes:
            path = _TESTS / file
            if not path.is_file() or name not in _functions(path):
                missing.append(f"{first}: {file}::{name}")
    assert missing == []


def test_what_was_written_for_a_lesson_is_found_from_the_map() -> None:
    listed = {
        f"{file}::{name}"
        for heading in ("Rows", "Scenarios")
        for nodes in _table(heading).values()
        for file, name in nodes
    }
    written = {
        f"integration/{path.name}::{name}"
        for kind in ("lessons", "scenarios")
        for path in _TESTS.glob(f"integration/test_{kind}_*.py")
        for name in _functions(path)
        if name.startswith("test_")
    }
    assert sorted(written - listed) == []
