"""The system's errors as ours."""

from __future__ import annotations

import errno
import os

import pytest

from pyrep.errors import ReplicaPermanentError, ReplicaTemporaryError
from pyrep.storage.oserrors import os_errors, translate_os_error

PERMANENT = ["EACCES", "EPERM", "EROFS", "ENAMETOOLONG", "ENOTDIR", "ELOOP", "EFBIG", "EINVAL"]
TEMPORARY = [
    "ENOSPC",
    "EDQUOT",
    "EIO",
    "EAGAIN",
    "ESTALE",
    "EMFILE",
    "ENFILE",
    "ETIMEDOUT",
    "EINTR",
]
HINTED = ["EACCES", "EPERM", "EROFS", "ENAMETOOLONG", "ENOSPC", "EDQUOT", "EIO", "ESTALE", "EMFILE"]


@pytest.mark.parametrize("name", [*PERMANENT, *TEMPORARY])
def test_every_error_is_temporary_or_permanent(name: str) -> None:
    code = getattr(errno, name)
    found = translate_os_error(OSError(code, os.strerror(code)), "write", "/replica/file")
    wanted = ReplicaPermanentError if name in PERMANENT else ReplicaTemporaryError
    assert type(found) is wanted
    assert str(found) == f"/replica/file: write failed: {os.strerror(code).lower()}"


@pytest.mark.parametrize("name", HINTED)
def test_a_hint_is_a_sentence(name: str) -> None:
    found = translate_os_error(OSError(getattr(errno, name), "x"), "write", "/replica")
    assert found.hint[0].isupper()
    assert found.hint.endswith(".")


def test_an_error_without_number_is_temporary() -> None:
    found = translate_os_error(OSError("something odd"), "read", "/replica")
    assert type(found) is ReplicaTemporaryError
    assert str(found) == "/replica: read failed: something odd"


def test_the_cause_is_kept() -> None:
    cause = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(ReplicaTemporaryError) as caught, os_errors("write", "/replica"):
        raise cause
    assert caught.value.__cause__ is cause
