"""A file that arrives damaged may be whole where it is stored: it is read again."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

from pyrep.errors import LTXCorruptError

__all__ = ["READS", "reread"]

READS = 3
_log = logging.getLogger(__name__)

T = TypeVar("T")


def reread(read: Callable[[], T]) -> T:
    """Return what ``read`` gives; damage is believed only after ``READS`` times.

    :raises LTXCorruptError: the file is damaged where it is stored
    """
    for _ in range(READS - 1):
        try:
            return read()
        except LTXCorruptError as error:
            _log.info("a file arrived damaged and is read again", extra={"error": str(error)})
    return read()
