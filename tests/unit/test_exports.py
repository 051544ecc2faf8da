"""``__all__`` of every module: complete, in order, and true.

It lists the public functions and classes, and whatever else other modules import.
"""

from __future__ import annotations

import ast
import importlib

import pytest

from fixtures.sources import Module, borrowed_names, modules, public_names

_LIBRARY = [module for module in modules() if not module.name.endswith("__main__")]


def _lists(module: Module) -> list[list[str]]:
    """Return the list literals that make up a module's ``__all__``."""
    found = []
    for node in module.tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        named = any(isinstance(t, ast.Name) and t.id == "__all__" for t in targets)
        if named and isinstance(node, ast.Assign | ast.AugAssign):
            found.append(list(ast.literal_eval(node.value)))
    return found


def _isort_key(name: str) -> tuple[int, str]:
    return (0 if name.isupper() else 1 if name[0].isupper() else 2, name)


@pytest.mark.parametrize("module", _LIBRARY, ids=lambda module: module.name or "pyrep")
def test_public_names_are_listed(module: Module) -> None:
    listed = {name for part in _lists(module) for name in part}
    assert sorted(set(public_names(module.tree)) - listed) == []
    borrowed = borrowed_names().get(f"pyrep.{module.name}", frozenset())
    submodules = {other.name.rpartition(".")[2] for other in modules()}
    assert sorted(borrowed - listed - submodules) == []


@pytest.mark.parametrize("module", _LIBRARY, ids=lambda module: module.name or "pyrep")
def test_listed_names_exist_once_and_in_order(module: Module) -> None:
    parts = _lists(module)
    listed = [name for part in parts for name in part]
    assert len(set(listed)) == len(listed)
    for part in parts:
        assert part in (sorted(part), sorted(part, key=_isort_key))
    imported = importlib.import_module(f"pyrep.{module.name}".rstrip("."))
    assert [name for name in listed if not hasattr(imported, name)] == []
