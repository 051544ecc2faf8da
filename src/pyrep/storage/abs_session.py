"""One HTTP client for an Azure storage account and a credential, shared by its replicas.

Requests are signed with the account's key, carry a SAS token, or a bearer token that
azure-identity finds and renews.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import threading
from collections.abc import Mapping
from email.utils import formatdate
from typing import Protocol
from urllib.parse import quote, urlsplit

import urllib3

from pyrep.errors import ReplicaPermanentError, ReplicaTemporaryError
from pyrep.storage.abs_config import ABSAccount
from pyrep.storage.budget import Budget
from pyrep.storage.http import Connections, short_text, tls_context

__all__ = ["ABSSession", "TokenSource", "signature"]

# Known to Azure since 2021 and to its emulator; nothing newer is needed.
_VERSION = "2021-12-02"
_SCOPE = "https://storage.azure.com/.default"
_USER_AGENT = "pyrep"
_UNAUTHORIZED = 401
_MARGIN_SECONDS = 300
_SIGNED = (
    *("content-encoding", "content-language", "content-length", "content-md5", "content-type"),
    *("date", "if-modified-since", "if-match", "if-none-match", "if-unmodified-since", "range"),
)


class _Token(Protocol):
    @property
    def token(self) -> str: ...
    @property
    def expires_on(self) -> int: ...


class TokenSource(Protocol):
    """Give bearer tokens, as the credentials of azure-identity do."""

    def get_token(self, *scopes: str) -> _Token:
        """Return a token for a scope."""


class ABSSession:
    """Send authorized requests; safe for several threads."""

    def __init__(
        self,
        account: ABSAccount,
        budget: Budget,
        *,
        tokens: TokenSource | None = None,
    ) -> None:
        self.budget = budget
        budget.endpoint = account.endpoint
        self._account = account
        context = tls_context(account.tls)
        self._connections = Connections(lambda: {"ssl_context": context}, budget)
        self.workers = self._connections.workers
        parts = urlsplit(account.endpoint)
        self._origin, self._prefix = f"{parts.scheme}://{parts.netloc}", parts.path
        # Held while a token is asked for: all who come meanwhile need it.
        self._lock = threading.Lock()
        self._tokens = tokens  # guarded by _lock
        self._token: _Token | None = None  # guarded by _lock

    def send(
        self,
        op: str,
        where: str,
        method: str,
        path: str,
        query: Mapping[str, str],
        headers: Mapping[str, str],
        body: bytes = b"",
    ) -> urllib3.BaseHTTPResponse:
        """Send a request for an encoded path below the endpoint; the body is still to read.

        :raises ReplicaTemporaryError: there was no answer, or no token for now
        :raises ReplicaPermanentError: no credentials, or the certificate is not trusted
        """
        account = self._account
        for is_again in (False, True):
            sent = {
                **headers,
                "x-ms-version": _VERSION,
                "x-ms-date": formatdate(self._seconds(), usegmt=True),
                "user-agent": _USER_AGENT,
            }
            if method == "PUT":
                sent["content-length"] = str(len(body))
            target = self._prefix + path
            encoded = "&".join(f"{quote(k)}={quote(v, safe='')}" for k, v in query.items())
            if account.sas_token:
                encoded = "&".join(filter(None, (encoded, account.sas_token)))
            elif account.key:
                signed = signature(account.name, account.key, method, target, query, sent)
                sent["authorization"] = f"SharedKey {account.name}:{signed}"
            else:
                sent["authorization"] = f"Bearer {self._bearer(op, where, fresh=is_again)}"
            url = f"{target}?{encoded}" if encoded else target
            response = self._connections.send(op, where, method, self._origin, url, sent, body)
            if response.status != _UNAUTHORIZED or account.sas_token or account.key:
                break
            if not is_again:
                response.close()  # the token was withdrawn: once more with a new one
        return response

    def close(self) -> None:
        """Close idle connections, end the threads, log what was used."""
        self._connections.close()
        self.budget.close()

    def _seconds(self) -> float:
        return self.budget.clock.now().timestamp()

    def _bearer(self, op: str, where: str, *, fresh: bool) -> str:
        with self._lock:
            if self._tokens is None:
                self._tokens = _default_tokens(op, where)
            token = self._token
            if token is None or fresh or token.expires_on - _MARGIN_SECONDS < self._seconds():
                token = self._token = _ask(self._tokens, op, where)
            return token.token


def signature(
    account: str,
    key: bytes,
    method: str,
    target: str,
    query: Mapping[str, str],
    headers: Mapping[str, str],
) -> str:
    """Return what proves with an account's key (Shared Key) that a request is ours.

    ``target`` is the encoded path; ``query`` is not encoded; header names are lower case.
    """
    signed = [headers.get(name, "") for name in _SIGNED]
    if headers.get("content-length") == "0":
        signed[_SIGNED.index("content-length")] = ""
    own = [f"{name}:{headers[name].strip()}" for name in sorted(headers) if name[:5] == "x-ms-"]
    asked = [f"{name.lower()}:{query[name]}" for name in sorted(query)]
    lines = [method, *signed, *own, f"/{account}{target}", *asked]
    digest = hmac.new(key, "\n".join(lines).encode(), hashlib.sha256).digest()
    return base64.b64encode(digest).decode()


def _default_tokens(op: str, where: str) -> TokenSource:
    try:
        from azure.identity import DefaultAzureCredential
    except ModuleNotFoundError as error:
        raise ReplicaPermanentError(
            f"{where}: cannot {op}: no account-key or sas-token, and Azure's default credentials "
            f"need the package {error.name}, which is not installed",
            hint="Set account-key or sas-token, or install: pip install 'pyrep[abs]'",
        ) from error
    return DefaultAzureCredential()


def _ask(tokens: TokenSource, op: str, where: str) -> _Token:
    from azure.core.exceptions import AzureError, ClientAuthenticationError

    try:
        return tokens.get_token(_SCOPE)
    except ClientAuthenticationError as error:
        raise ReplicaPermanentError(
            f"{where}: cannot {op}: no access token: {short_text(str(error))}",
            hint="Set account-key or sas-token, or give this machine an identity with access.",
        ) from error
    except AzureError as error:
        raise ReplicaTemporaryError(
            f"{where}: cannot {op}: no access token: {short_text(str(error))}"
        ) from error
