"""What can be wrong with a replica, in words and as values."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

__all__ = ["Finding", "Severity"]


class Severity(Enum):
    """Say what a finding means for a restore."""

    ERROR = "error"  # a state that should be there cannot be restored, or nobody can vouch for it
    WARNING = "warning"  # every state from the newest back to the next snapshot is whole


@dataclass(frozen=True, slots=True)
class Finding:
    """Say what is wrong, of which kind it is, and with which file (``level N NAME``, or none).

    Kinds: ``unreadable`` (listed, but not there), ``damaged`` (breaks the format or a checksum,
    or has another size), ``misnamed``, ``foreign`` (does not continue what the files before it
    left), ``overlap`` (two files lead to different states of one TXID), ``gap`` (no file leads
    on), ``hole`` (a level lacks files that another one covers), ``lost`` (a file that was stored
    is gone), ``behind`` (the newest that was stored is not reached), ``empty``, ``times`` (file
    times fall), ``restore`` (what the files lead to cannot be restored).
    """

    kind: str
    file: str
    text: str
    severity: Severity = Severity.ERROR

    def __str__(self) -> str:
        return f"{self.file}: {self.text}" if self.file else self.text
