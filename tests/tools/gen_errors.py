"""Write docs/errors.md from the error classes.

``python tests/tools/gen_errors.py > docs/errors.md``
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator

from pyrep import errors

__all__ = ["render"]

_HEAD = """\
# Errors and exit codes

This page is generated from `src/pyrep/errors.py` by `tests/tools/gen_errors.py`; a test compares
the two.

Every error names the database or object it is about. Errors go to standard error as
`Error: <message>`; where there is something the operator can do, a line `Hint: <sentence>` follows,
and after a wrong command line `Try: <example>`.

A command exits with the code of its error. A script can rely on these numbers:

| exit code | meaning | classes |
|---|---|---|
| 0 | success | |
"""

_SIGNALS = """\
| 130 | a command was interrupted (Ctrl-C) | |
| 141 | the reader of standard output went away | |
"""

_MIDDLE = """
A daemon goes on when one tenant fails: the error is logged with the tenant's name, shown by
`pyrep status`, and the others are not touched. The codes are for commands that end.

## Classes

| class | kind of | exit code | what it does |
|---|---|---|---|
"""

_MEANINGS = {
    1: "any other failure",
    2: "the configuration or the command line is wrong",
    3: "a database cannot be read, opened or trusted",
    4: "a WAL or an LTX file is damaged, missing or out of order",
    5: "the storage refused or failed, or another writer's files are there",
    6: "no set of files on the replica leads to the wanted state",
    7: "a restore would overwrite something",
    8: "a shutdown ended before everything was uploaded",
    9: "another daemon holds the state directory",
}


def render() -> str:
    """Return the text of docs/errors.md."""
    return _HEAD + "".join(_code_rows()) + _SIGNALS + _MIDDLE + "".join(_class_rows())


def _classes() -> list[type[errors.PyrepError]]:
    found = [value for value in vars(errors).values() if inspect.isclass(value)]
    return [cls for cls in found if issubclass(cls, errors.PyrepError)]


def _code_rows() -> Iterator[str]:
    for code in sorted({cls.exit_code for cls in _classes()}):
        names = ", ".join(f"`{cls.__name__}`" for cls in _classes() if cls.exit_code == code)
        yield f"| {code} | {_MEANINGS[code]} | {names} |\n"


def _class_rows() -> Iterator[str]:
    for cls in _classes():
        first = (inspect.getdoc(cls) or "").split("\n")[0]
        says = first.replace("``", "`")
        parent = "" if cls is errors.PyrepError else f"`{cls.__bases__[0].__name__}`"
        yield f"| `{cls.__name__}` | {parent} | {cls.exit_code} | {says} |\n"


if __name__ == "__main__":
    sys.stdout.write(render())
