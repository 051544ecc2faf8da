"""What goes between the S3 API and who sends its requests."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol

import urllib3

from pyrep.storage.budget import Budget

__all__ = ["Call", "Facts", "S3Sender"]


@dataclass(frozen=True, slots=True)
class Call:
    """Describe a request: ``op`` says in words what it does, ``where`` to which object.

    An ``urgent`` one waits for no budget.
    """

    op: str
    where: str
    method: str
    bucket: str
    key: str = ""
    query: tuple[tuple[str, str], ...] = ()
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    path_style: bool = False
    sign_payload: bool = True
    urgent: bool = False


class Facts:
    """Hold what was learned of an endpoint; None: not yet.  Threads may set the same twice."""

    def __init__(self) -> None:
        self.conditional_put: bool | None = None
        self.batch_delete: bool | None = None
        self.single_delete = False
        self.regions: dict[str, str] = {}


class S3Sender(Protocol):
    """Send the requests of all clients of one endpoint and credential."""

    budget: Budget
    facts: Facts

    def workers(self) -> ThreadPoolExecutor:
        """Return the threads for requests that run side by side, started at the first use."""

    def send(self, call: Call) -> urllib3.BaseHTTPResponse:
        """Send a request; the answer, whatever its status, has its body still to read."""

    def learn_region(self, bucket: str, answer: urllib3.BaseHTTPResponse) -> bool:
        """Take over the bucket's region from an answer; return whether that is news."""

    def forget_credentials(self) -> None:
        """Ask anew for credentials at the next request: what there is has expired."""
