"""Names of files that are being written, for storages that rename but cannot lock."""

from __future__ import annotations

import re
import secrets

from pyrep.clock import Clock

__all__ = ["is_abandoned", "temp_name"]

# Left by a writer that died: nobody uploads for longer than this without a new name.
_ABANDONED_SECONDS = 24 * 3600
_TEMP = re.compile(r"\.pyrep-[0-9a-f]{16}-([0-9a-f]{8,16})\.tmp\Z")


def temp_name(clock: Clock) -> str:
    """Return a new name that tells when it was made."""
    return f".pyrep-{secrets.token_hex(8)}-{int(clock.now().timestamp()):08x}.tmp"


def is_abandoned(name: str, clock: Clock) -> bool:
    """Tell whether a name is that of a file whose writer is dead."""
    match = _TEMP.match(name)
    return match is not None and (clock.now().timestamp() - int(match[1], 16) > _ABANDONED_SECONDS)
