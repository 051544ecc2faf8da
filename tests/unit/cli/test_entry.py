"""The way into the command line."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import pytest

from pyrep.__main__ import main


class _Interrupting:
    """Interrupt the import of one module, as Ctrl-C would."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: object = None) -> None:
        if name == "pyrep.cli.main":
            raise KeyboardInterrupt


def test_an_interrupt_while_loading_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "pyrep.cli.main", raising=False)
    monkeypatch.setattr(sys, "meta_path", [_Interrupting(), *sys.meta_path])
    assert main() == 130
    assert capsys.readouterr().err == "Error: interrupted\n"


def test_the_command_line_is_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["pyrep", "version"])
    assert main() == 0
    assert capsys.readouterr().out
