"""File name patterns as Go's ``filepath.Match`` reads them."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pyrep.config.paths import compile_pattern


@pytest.mark.parametrize(
    ("pattern", "matching", "other"),
    [
        (
            "*.db",
            ["a.db", ".db", ".hidden.db", "a b.db", "ü.db", "a\nb.db"],
            ["a.db2", "adb", "A.DB"],
        ),
        ("**.db", ["a.db"], ["a.dbx"]),
        ("?.db", ["a.db", "ü.db", "\udcff.db"], ["ab.db", ".db"]),
        ("a[0-9].db", ["a1.db"], ["ab.db", "a.db", "a10.db"]),
        ("[^.]*", ["a", "a.b"], [".a", ""]),
        ("[!a]", ["!", "a"], ["b"]),
        ("[a-cx]", ["a", "b", "c", "x"], ["d", "-"]),
        (r"[\]\-\\]", ["]", "-", "\\"], ["a"]),
        ("[z-a]", [], ["a", "z", "m"]),
        ("[^z-a]", ["a", "z", "\n"], ["ab"]),
        ("[a^]", ["a", "^"], ["b"]),
        (r"\*.db", ["*.db"], ["a.db"]),
        (r"a\b", ["ab"], [r"a\b"]),
        ("a.b+c(d)|e$", ["a.b+c(d)|e$"], ["axb+c(d)|e$"]),
        ("{a,b}.db", ["{a,b}.db"], ["a.db"]),
        ("[[]", ["["], ["]"]),
        ("[*]", ["*"], ["a"]),
        ("]", ["]"], ["a"]),
        ("a-b", ["a-b"], ["ab"]),
        ("", [""], ["a"]),
    ],
)
def test_patterns(pattern: str, matching: list[str], other: list[str]) -> None:
    regex = compile_pattern(pattern)
    assert [name for name in matching if not regex.match(name)] == []
    assert [name for name in other if regex.match(name)] == []


@pytest.mark.parametrize(
    "pattern", ["[", "[]", "[]a]", "[^]", "[^", "[a", "[a-", "[a-]", "[-a]", "[\\", "a\\", "[a-\\"]
)
def test_malformed_patterns(pattern: str) -> None:
    with pytest.raises(ValueError, match="malformed pattern"):
        compile_pattern(pattern)


def test_a_pattern_has_no_folders() -> None:
    with pytest.raises(ValueError, match="a pattern matches file names and cannot contain '/'"):
        compile_pattern("**/*.db")


def slowly_matches(pattern: str, name: str) -> bool:
    """Match a well-formed pattern character by character, without regular expressions."""
    if not pattern:
        return not name
    if pattern[0] == "*":
        return slowly_matches(pattern[1:], name) or bool(name and slowly_matches(pattern, name[1:]))
    if not name:
        return False
    if pattern[0] == "[":
        inside, rest = slow_class(pattern[1:], name[0])
        return inside and slowly_matches(rest, name[1:])
    if pattern[0] == "\\":
        pattern = pattern[1:]
    elif pattern[0] == "?":
        return slowly_matches(pattern[1:], name[1:])
    return pattern[0] == name[0] and slowly_matches(pattern[1:], name[1:])


def slow_class(body: str, char: str) -> tuple[bool, str]:
    negated, inside, first = body[0] == "^", False, True
    body = body[negated:]
    while first or body[0] != "]":
        first = False
        body = body[1:] if body[0] == "\\" else body
        low, body = body[0], body[1:]
        high = low
        if body[0] == "-":
            body = body[2:] if body[1] == "\\" else body[1:]
            high, body = body[0], body[1:]
        inside = inside or low <= char <= high
    return inside != negated, body[1:]


@given(st.text(alphabet="ab[]-^\\*?.!", max_size=8), st.text(alphabet="ab[]-^\\*?.!", max_size=6))
def test_any_well_formed_pattern_matches_as_the_slow_way(pattern: str, name: str) -> None:
    try:
        regex = compile_pattern(pattern)
    except ValueError:
        assume(False)
    assert (regex.match(name) is not None) == slowly_matches(pattern, name)


@given(st.text(max_size=20).filter(lambda name: "/" not in name))
def test_an_escaped_name_matches_itself_only(name: str) -> None:
    regex = compile_pattern("".join(f"\\{char}" for char in name))
    assert regex.match(name)
    assert not regex.match(f"{name}x")
