"""Every error that pyrep raises, with the exit code of its class.

A message is lower case, has no full stop and names the database or object; a hint is a
sentence the operator can act on.  Foreign exceptions stop at the module that imports the
library and come out as one of these classes.
"""

from __future__ import annotations

__all__ = [
    "ConfigError",
    "DatabaseBusyError",
    "DatabaseError",
    "DatabaseNotReadyError",
    "FencedError",
    "LTXChecksumError",
    "LTXCorruptError",
    "LTXError",
    "LTXGapError",
    "LTXNotFoundError",
    "NotDurableError",
    "OutputExistsError",
    "PyrepError",
    "ReplicaError",
    "ReplicaExistsError",
    "ReplicaPermanentError",
    "ReplicaTemporaryError",
    "ReplicaThrottledError",
    "ReplicationEndedError",
    "ShutdownInterruptedError",
    "StateLockedError",
    "TXNotAvailableError",
    "WALError",
]

_QUOTED = 400


class PyrepError(Exception):
    """Be the root of pyrep's errors; ``exit_code`` is what the command line exits with."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message


def _quoted(text: str) -> str:
    """Return what a file says as a message can hold it: in one line, no longer than a screen."""
    shown = text if text.isprintable() else repr(text)[1:-1]
    return shown if len(shown) <= _QUOTED else f"{shown[:_QUOTED]}..."


class ConfigError(PyrepError):
    """Say which field of the configuration is wrong, and with which value."""

    exit_code = 2

    def __init__(
        self, message: str, *, field: str = "", value: object = None, hint: str = ""
    ) -> None:
        if field and value is not None:
            message = f"{_quoted(field)}: {message} (got {_quoted(str(value))})"
        elif field:
            message = f"{_quoted(field)}: {message}"
        super().__init__(message, hint=hint)
        self.field = field
        self.value = value


class DatabaseError(PyrepError):
    """Say that a user's database cannot be read, opened or trusted."""

    exit_code = 3


class DatabaseBusyError(DatabaseError):
    """Say that another connection keeps us out of a database for now."""


class DatabaseNotReadyError(DatabaseError):
    """Say that a file is not (yet) a complete SQLite database."""


class WALError(PyrepError):
    """Say that a write-ahead log breaks SQLite's format."""

    exit_code = 4


class LTXError(PyrepError):
    """Say which LTX file is concerned, and at which step.

    ``op`` names the step (``open``, ``decode``, ``verify``…), ``path`` the file or object,
    ``level`` and the TXIDs its place; what is not known stays empty or zero.
    """

    exit_code = 4

    def __init__(
        self,
        message: str,
        *,
        op: str = "",
        path: str = "",
        level: int = -1,
        min_txid: int = 0,
        max_txid: int = 0,
        hint: str = "",
    ) -> None:
        super().__init__(f"{path}: {message}" if path else message, hint=hint)
        self.op = op
        self.path = path
        self.level = level
        self.min_txid = min_txid
        self.max_txid = max_txid


class LTXCorruptError(LTXError):
    """Say that an LTX file breaks its format."""


class LTXChecksumError(LTXCorruptError):
    """Say that the content of an LTX file does not match a checksum."""


class LTXNotFoundError(LTXError):
    """Say that an LTX file is not on the replica."""


class LTXGapError(LTXError):
    """Say that LTX files do not follow each other."""


class ReplicaError(PyrepError):
    """Say that a storage refused or failed."""

    exit_code = 5


class ReplicaTemporaryError(ReplicaError):
    """Say that the same call may succeed later."""


class ReplicaThrottledError(ReplicaTemporaryError):
    """Say that the storage wants to be asked less often."""


class ReplicaPermanentError(ReplicaError):
    """Say that the same call will fail again until somebody changes something."""


class ReplicaExistsError(ReplicaPermanentError):
    """Say that a create-only write found another object under its name."""


class FencedError(ReplicaPermanentError):
    """Say that another writer's files are on the replica of a tenant."""


class NotDurableError(ReplicaTemporaryError):
    """Say that what was committed did not reach the replica in the time given."""


class ReplicationEndedError(PyrepError):
    """Say that the process that replicates for a program has ended."""


class TXNotAvailableError(PyrepError):
    """Say that no set of files on the replica leads to the wanted state."""

    exit_code = 6


class OutputExistsError(PyrepError):
    """Say that a restore would overwrite something."""

    exit_code = 7


class ShutdownInterruptedError(PyrepError):
    """Say that a shutdown ended before everything was uploaded."""

    exit_code = 8


class StateLockedError(PyrepError):
    """Say that another daemon holds the state directory."""

    exit_code = 9
