"""Prove that a replica can be restored, without the database it was made from."""

from pyrep.verify.chain import Verification, verify_files
from pyrep.verify.findings import Finding, Severity
from pyrep.verify.fleet import Budget, VerifyItem, VerifyResult, verify_all
from pyrep.verify.replica import Known, VerifyOptions, verify_replica

__all__ = [
    "Budget",
    "Finding",
    "Known",
    "Severity",
    "Verification",
    "VerifyItem",
    "VerifyOptions",
    "VerifyResult",
    "verify_all",
    "verify_files",
    "verify_replica",
]
