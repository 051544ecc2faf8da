"""The only package that opens a live database file."""

from pyrep.sqlite.attachment import (
    MIN_SQLITE_VERSION,
    Attachment,
    CheckpointState,
    integrity_check,
)
from pyrep.sqlite.files import (
    REMOTE_FILE_SYSTEMS,
    WAL_VERSIONS,
    Probe,
    attached_count,
    file_system_type,
    guard_unused,
    is_attached,
    page_crcs,
    probe,
)

__all__ = [
    "MIN_SQLITE_VERSION",
    "REMOTE_FILE_SYSTEMS",
    "WAL_VERSIONS",
    "Attachment",
    "CheckpointState",
    "Probe",
    "attached_count",
    "file_system_type",
    "guard_unused",
    "integrity_check",
    "is_attached",
    "page_crcs",
    "probe",
]
