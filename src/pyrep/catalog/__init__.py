"""The daemon's own SQLite database: tenants, acknowledged files, boots, requests.

It is a cache: what it holds can be had again from the tenants' state directories and from one
listing of each replica.  So a damaged one is moved aside and begun anew.
"""

from pyrep.catalog.catalog import Catalog
from pyrep.catalog.file import SCHEMA_VERSION, Access
from pyrep.catalog.rows import (
    Answer,
    LevelRow,
    ProofRow,
    Request,
    StoredFile,
    TenantRow,
    storable_text,
)

__all__ = [
    "SCHEMA_VERSION",
    "Access",
    "Answer",
    "Catalog",
    "LevelRow",
    "ProofRow",
    "Request",
    "StoredFile",
    "TenantRow",
    "storable_text",
]
