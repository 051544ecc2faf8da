"""One HTTP client for Google Cloud Storage, shared by all replicas of one way to reach it.

google-auth finds and renews the credentials; the requests are the JSON API's own.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from typing import Any

import google.auth
import google.auth.transport.urllib3
import urllib3
from google.auth.exceptions import DefaultCredentialsError, GoogleAuthError, TransportError

from pyrep.errors import ReplicaPermanentError, ReplicaTemporaryError
from pyrep.storage.budget import Budget
from pyrep.storage.gcs_config import GCSAccount
from pyrep.storage.http import Connections, short_text, split_origin, tls_context

__all__ = ["GCSSession"]

# It warns of a project that is not configured; a bucket's name needs none.
logging.getLogger("google.auth._default").setLevel(logging.ERROR)

_SCOPES = ("https://www.googleapis.com/auth/devstorage.read_write",)
_TOKEN_HOST = "https://oauth2.googleapis.com"
_USER_AGENT = "pyrep"
_UNAUTHORIZED = 401


class GCSSession:
    """Send authorized requests; safe for several threads."""

    def __init__(self, account: GCSAccount, budget: Budget) -> None:
        self.budget = budget
        budget.endpoint = account.endpoint or "gs"
        self._account = account
        context = tls_context(account.tls)
        self._connections = Connections(lambda: {"ssl_context": context}, budget)
        self.workers = self._connections.workers
        # Held while credentials are found or renewed: all who come meanwhile need the result.
        self._lock = threading.Lock()
        self._credentials: Any = None  # guarded by _lock; google-auth declares no types

    def send(
        self,
        op: str,
        where: str,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes = b"",
    ) -> urllib3.BaseHTTPResponse:
        """Send a request to a URL, or to a path of the endpoint; the body is still to read.

        :raises ReplicaTemporaryError: there was no answer, or no token for now
        :raises ReplicaPermanentError: no credentials, or the certificate is not trusted
        """
        for fresh in (False, True):
            token = self._authorization(op, where, fresh=fresh)
            base, target = split_origin(url) if "://" in url else (self._endpoint(), url)
            sent = {**headers, **(token if base == self._endpoint() else {})}
            sent |= {"user-agent": _USER_AGENT}
            if method in ("PUT", "POST"):
                sent["content-length"] = str(len(body))
            origin, prefix = split_origin(base)
            response = self._connections.send(
                op, where, method, origin, prefix + target, sent, body
            )
            if response.status != _UNAUTHORIZED or self._account.anonymous:
                break
            if not fresh:
                response.close()  # the token was withdrawn: once more with a new one
        return response

    def close(self) -> None:
        """Close idle connections, end the threads, log what was used."""
        self._connections.close()
        self.budget.close()

    def _endpoint(self) -> str:
        if self._account.endpoint:
            return self._account.endpoint
        domain = getattr(self._credentials, "universe_domain", None) or "googleapis.com"
        return f"https://storage.{domain}"

    def _authorization(self, op: str, where: str, *, fresh: bool) -> dict[str, str]:
        """Return the headers of this moment; a token that is about to expire is renewed."""
        if self._account.anonymous:
            return {}
        try:
            with self._lock:
                if self._credentials is None:
                    self._credentials = google.auth.default(scopes=_SCOPES)[0]
                headers: dict[str, str] = {}
                if fresh:
                    self._credentials.refresh(self._requester())
                self._credentials.before_request(self._requester(), "GET", _TOKEN_HOST, headers)
                return headers
        except DefaultCredentialsError as error:
            raise ReplicaPermanentError(
                f"{where}: cannot {op}: no usable credentials: {_text(error)}",
                hint="Set GOOGLE_APPLICATION_CREDENTIALS to a key file, run 'gcloud auth "
                "application-default login', or give this machine a service account.",
            ) from error
        except GoogleAuthError as error:
            message = f"{where}: cannot {op}: no access token: {_text(error)}"
            if error.retryable or isinstance(error, TransportError):
                raise ReplicaTemporaryError(message) from error
            raise ReplicaPermanentError(
                message, hint="Check the credentials, and that they were not withdrawn."
            ) from error

    def _requester(self) -> Any:
        """Return what google-auth sends its own requests with."""
        make: Any = google.auth.transport.urllib3.Request
        return make(self._connections.manager(_TOKEN_HOST))


def _text(error: Exception) -> str:
    """Return what went wrong, without the document that some errors carry along."""
    return short_text(str(error.args[0])) if error.args else type(error).__name__
