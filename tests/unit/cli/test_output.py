"""Tables, JSON and progress, with names of every kind."""

from __future__ import annotations

import contextlib
import io
import json
import threading

from fixtures.cli import Terminal
from pyrep.cli.output import Meter, printable, write_json, write_table


class FakeClock:
    """Tell the time that a test sets."""

    def __init__(self) -> None:
        self.time = 0.0

    def now(self) -> None:
        """Be asked never."""
        raise NotImplementedError

    def monotonic(self) -> float:
        """Return the time."""
        return self.time

    def wait(self, event: threading.Event, timeout: float | None) -> bool:
        """Be asked never."""
        raise NotImplementedError


def _printed(function: object, *arguments: object) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        function(*arguments)  # type: ignore[operator]
    return out.getvalue()


def test_columns_stand_two_spaces_apart() -> None:
    rows = [("a", 1, ""), ("long name", 22, "x")]
    assert _printed(write_table, ("name", "n", "note"), rows).splitlines() == [
        "name       n   note",
        "a          1",
        "long name  22  x",
    ]


def test_a_row_is_one_line_whatever_names_hold() -> None:
    text = _printed(write_table, ("name",), [("a\nb\t\x1b[0m",), ("é ü \U0001f600",)])
    assert text.splitlines() == ["name", "a\\nb\\t\\x1b[0m", "é ü \U0001f600"]


def test_printable_keeps_what_can_be_printed() -> None:
    assert printable("/a b/#?%'\"é") == "/a b/#?%'\"é"
    assert printable("\udc80\u200e") == "\\udc80\\u200e"


def test_json_has_a_schema_and_holds_any_name() -> None:
    names = ["é", "\udcff", 'a"b', "\n"]
    text = _printed(write_json, {"names": names})
    assert json.loads(text) == {"schema": 1, "names": names}
    assert next(iter(json.loads(text))) == "schema"
    assert text.startswith('{\n  "schema": 1,\n  "names": [\n')


def test_a_terminal_shows_one_line_that_changes() -> None:
    clock, stream = FakeClock(), Terminal()
    meter = Meter(stream=stream, clock=clock)
    for clock.time, text in ((0.05, "early"), (0.2, "a long line"), (0.25, "soon"), (0.4, "end")):
        meter.show(lambda seconds, text=text: f"{text} {seconds:.1f}")
    meter.close()
    width = len("a long line 0.2")
    assert stream.getvalue() == (
        "\ra long line 0.2" + "\r" + "end 0.4".ljust(width) + "\r" + " " * 7 + "\r"
    )


def test_elsewhere_a_line_comes_now_and_then() -> None:
    clock, stream = FakeClock(), io.StringIO()
    meter = Meter(stream=stream, clock=clock)
    for clock.time in (1.0, 5.5, 6.0, 11.0):
        meter.show(lambda seconds: f"{seconds:.1f} s")
    meter.close()
    assert stream.getvalue() == "5.5 s\n11.0 s\n"
