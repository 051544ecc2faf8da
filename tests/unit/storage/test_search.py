"""The walk over a storage: every folder once, side by side, a failure for itself."""

from __future__ import annotations

import pytest

from fixtures.ltxbytes import build_ltx
from fixtures.replicas import put
from pyrep.errors import ReplicaPermanentError, ReplicaTemporaryError
from pyrep.storage.base import Below
from pyrep.storage.file import FileReplicaClient
from pyrep.storage.layout import parse_hex_ltx_path, parse_ltx_path
from pyrep.storage.memory import MemoryReplicaClient, MemoryStorage
from pyrep.storage.retry import RetryingClient, RetryPolicy
from pyrep.storage.search import ReplicaSearch, find_replicas, look_at_keys, look_hex, look_plain

NAME = "0000000000000001-0000000000000001.ltx"


class Tree(MemoryReplicaClient):
    """Answer looks from a mapping, and note them."""

    def __init__(self, answers: dict[str, Below | Exception]) -> None:
        super().__init__()
        self.answers = answers
        self.looks: list[str] = []

    def look_below(self, path: str = "") -> Below:
        self.looks.append(path)
        answer = self.answers[path]
        if isinstance(answer, Exception):
            raise answer
        return answer


def test_every_folder_is_looked_into_once() -> None:
    tree = Tree(
        {
            "": Below((), ("b", "a")),
            "a": Below(("a",), ("a/x",)),
            "b": Below(("b/far/away", "b"), ()),
            "a/x": Below(("a/x",), ()),
        }
    )
    seen: list[tuple[int, int]] = []
    found = find_replicas(tree, on_look=lambda *numbers: seen.append(numbers))
    assert found == ReplicaSearch(("a", "a/x", "b", "b/far/away"))
    assert sorted(tree.looks) == ["", "a", "a/x", "b"]
    assert seen == [(1, 0), (2, 2), (3, 3), (4, 4)]


def test_a_folder_that_cannot_be_looked_into_stops_no_other() -> None:
    error = ReplicaPermanentError("forbidden")
    tree = Tree({"": Below((), ("a", "b")), "a": error, "b": Below(("b",))})
    assert find_replicas(tree) == ReplicaSearch(("b",), (("a", error),))


def test_a_path_that_cannot_be_looked_into_is_an_error() -> None:
    with pytest.raises(ReplicaPermanentError, match="forbidden"):
        find_replicas(Tree({"": ReplicaPermanentError("forbidden")}))


def test_a_look_is_repeated_after_a_temporary_failure() -> None:
    storage = MemoryStorage()
    client = MemoryReplicaClient(storage, "t")
    put(client, 0, 1, 1, build_ltx(1, 1))
    failures = [ReplicaTemporaryError("busy"), ReplicaTemporaryError("busy")]

    def faults(op: str, _info: object) -> None:
        if op == "look" and failures:
            raise failures.pop()

    client = MemoryReplicaClient(storage, "", faults=faults)
    patient = RetryingClient(client, policy=RetryPolicy(base=0.0))
    assert find_replicas(patient).replicas == ("t",)
    assert failures == []


def test_links_are_not_followed(tmp_path) -> None:
    client = FileReplicaClient(tmp_path / "r" / "a")
    put(client, 0, 1, 1, build_ltx(1, 1))
    (tmp_path / "r" / "loop").symlink_to(tmp_path / "r")
    (tmp_path / "r" / "b").mkdir()
    (tmp_path / "r" / "b" / "ltx").symlink_to(tmp_path / "r" / "a" / "ltx")
    assert find_replicas(FileReplicaClient(tmp_path / "r")).replicas == ("a",)


@pytest.mark.parametrize(
    ("look", "levels", "ltx"), [(look_plain, "024", "ltx/"), (look_hex, ("0000", "0009"), "")]
)
def test_the_level_with_the_fewest_files_is_asked_first(look, levels, ltx) -> None:
    tree = {"t/": ["more", *(levels if not ltx else ["ltx"])], f"t/{ltx}": [*levels, "more"]}
    asked: list[str] = []

    def entries(place: str):
        asked.append(place)
        if place in tree:
            return [(name, True) for name in tree[place]]
        return iter([("tmp", False), (NAME, False), ()])  # what is no pair is never read

    assert look("t", "t/", entries) == Below(("t",), ("t/more",))
    assert asked[-1] == f"t/{ltx}{levels[-1]}/"


def test_elements_that_no_path_has_are_left_out() -> None:
    odd = ["", ".", "..", "..."]
    assert look_hex("", "", lambda place: [(name, True) for name in odd]) == Below((), ("...",))
    keys = [f"{name}/0000/{NAME}" for name in odd] + [f"a/../b/0000/{NAME}"]
    assert look_at_keys(keys, parse_hex_ltx_path) == Below(("...",))


def test_keys_of_both_layouts_name_their_replicas() -> None:
    keys = [f"ltx/0/{NAME}", f"a/b/ltx/9/{NAME}", "a/c/ltx/9/x", f"d/0000/{NAME}", "e"]
    assert look_at_keys(keys, parse_ltx_path) == Below(("", "a/b"))
    keys = [f"0000/{NAME}", f"a/b/0009/{NAME}", "a/c/0000/x", f"d/ltx/0/{NAME}", "0000"]
    assert look_at_keys(keys, parse_hex_ltx_path) == Below(("", "a/b"))
