"""The error classes: one exit code a family, and texts an operator can use."""

from __future__ import annotations

import inspect

import pytest

from pyrep import errors

# docs/errors.md promises these numbers to scripts; they never change their meaning.
_CODES = {
    "PyrepError": 1,
    "ConfigError": 2,
    "DatabaseError": 3,
    "WALError": 4,
    "LTXError": 4,
    "ReplicaError": 5,
    "TXNotAvailableError": 6,
    "OutputExistsError": 7,
    "ShutdownInterruptedError": 8,
    "StateLockedError": 9,
}

_CLASSES = [getattr(errors, name) for name in errors.__all__]


@pytest.mark.parametrize("error", _CLASSES, ids=lambda error: error.__name__)
def test_exit_code_is_that_of_the_family(error: type[errors.PyrepError]) -> None:
    family = next(cls.__name__ for cls in error.__mro__ if cls.__name__ in _CODES)
    assert error.exit_code == _CODES[family]
    assert issubclass(error, errors.PyrepError)


def test_every_class_is_exported() -> None:
    defined = {
        name
        for name, value in vars(errors).items()
        if inspect.isclass(value) and value.__module__ == errors.__name__
    }
    assert defined == set(errors.__all__)


@pytest.mark.parametrize("error", _CLASSES, ids=lambda error: error.__name__)
def test_message_and_hint_are_kept(error: type[errors.PyrepError]) -> None:
    raised = error("tenant a.db is gone", hint="Restore it.")
    assert str(raised) == raised.message == "tenant a.db is gone"
    assert raised.hint == "Restore it."
    assert error("x").hint == ""


def test_config_error_names_field_and_value() -> None:
    named = errors.ConfigError("must be greater than 0", field="sync-interval", value="-1s")
    assert str(named) == "sync-interval: must be greater than 0 (got -1s)"
    assert str(errors.ConfigError("is required", field="pattern")) == "pattern: is required"
    assert (named.field, named.value) == ("sync-interval", "-1s")


def test_ltx_error_names_the_file_and_keeps_its_place() -> None:
    raised = errors.LTXGapError(
        "txid 5 is missing", op="plan", path="a/0", level=0, min_txid=4, max_txid=6
    )
    assert str(raised) == "a/0: txid 5 is missing"
    place = (raised.op, raised.path, raised.level, raised.min_txid, raised.max_txid)
    assert place == ("plan", "a/0", 0, 4, 6)


def test_temporary_and_permanent_are_apart() -> None:
    assert not issubclass(errors.ReplicaTemporaryError, errors.ReplicaPermanentError)
    assert issubclass(errors.FencedError, errors.ReplicaPermanentError)
    assert issubclass(errors.ReplicaExistsError, errors.ReplicaPermanentError)
