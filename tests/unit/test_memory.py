"""Freed memory goes back to the system where the C library can do that."""

from __future__ import annotations

import pytest

from pyrep import memory


def test_it_is_given_back_where_that_is_possible(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(memory, "_trim", asked.append)
    assert memory.give_back()
    assert asked == [0]
    monkeypatch.setattr(memory, "_trim", None)
    assert not memory.give_back()
