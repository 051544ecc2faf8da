"""One HTTP client for Alibaba Cloud OSS, which takes the place of an S3 session.

OSS has the API of S3 with names of its own: for headers, for the create-only condition and in the
signature.  Calls are translated here, so that everything above is that of S3.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC
from urllib.parse import quote, urlsplit

import urllib3

from pyrep.errors import ReplicaPermanentError
from pyrep.storage.budget import Budget
from pyrep.storage.http import Connections, tls_context
from pyrep.storage.oss_config import OSSAccount
from pyrep.storage.s3_calls import Call, Facts

__all__ = ["OSSSession", "signature"]

_META = "x-amz-meta-"
_OWN_META = "x-oss-meta-"
_XMLNS = b' xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'
_PAYLOAD = "UNSIGNED-PAYLOAD"
_USER_AGENT = "pyrep"


class OSSSession:
    """Send signed requests; safe for several threads."""

    def __init__(self, account: OSSAccount, budget: Budget) -> None:
        self.budget = budget
        budget.endpoint = account.keys.endpoint
        self.facts = Facts()
        self.facts.conditional_put = True  # forbid-overwrite, for parts too
        self._keys = account.keys
        context = tls_context(account.tls)
        self._connections = Connections(lambda: {"ssl_context": context}, budget)

    def workers(self) -> ThreadPoolExecutor:
        """Return the threads for requests that run side by side, started at the first use."""
        return self._connections.workers()

    def send(self, call: Call) -> urllib3.BaseHTTPResponse:
        """Sign and send a request; the answer, whatever its status, has its body still to read.

        :raises ReplicaTemporaryError: there was no answer
        :raises ReplicaPermanentError: no credentials, or the endpoint's certificate is not trusted
        """
        keys = self._keys
        if not (keys.access_key_id and keys.secret_access_key):
            raise ReplicaPermanentError(
                f"{call.where}: cannot {call.op}: no credentials found",
                hint="Set access-key-id and secret-access-key, or OSS_ACCESS_KEY_ID and "
                "OSS_ACCESS_KEY_SECRET.",
            )
        call = _translated(call)
        moment = self.budget.clock.now().astimezone(UTC)
        headers = {
            **call.headers,
            "x-oss-content-sha256": _PAYLOAD,
            "x-oss-date": f"{moment:%Y%m%dT%H%M%SZ}",
        }
        if keys.session_token:
            headers["x-oss-security-token"] = keys.session_token
        signed = signature(
            keys.secret_access_key,
            keys.region,
            call.method,
            f"/{call.bucket}/{call.key}",
            call.query,
            headers,
        )
        scope = f"{moment:%Y%m%d}/{keys.region}/oss/aliyun_v4_request"
        headers["authorization"] = (
            f"OSS4-HMAC-SHA256 Credential={keys.access_key_id}/{scope},Signature={signed}"
        )
        headers["user-agent"] = _USER_AGENT
        if call.method in ("PUT", "POST"):
            headers["content-length"] = str(len(call.body))
        base, path = self._address(call)
        target = f"{path}?{_query(call.query)}" if call.query else path
        response = self._connections.send(
            call.op, call.where, call.method, base, target, headers, call.body, urgent=call.urgent
        )
        for name, value in list(response.headers.items()):
            if name.lower().startswith(_OWN_META):
                response.headers[_META + name[len(_OWN_META) :].lower()] = value
        return response

    def learn_region(self, bucket: str, answer: urllib3.BaseHTTPResponse) -> bool:
        """Return False: the region is part of what is configured."""
        return False

    def forget_credentials(self) -> None:
        """Do nothing: what is configured does not expire."""

    def close(self) -> None:
        """Close idle connections, end the threads, log what was used."""
        self._connections.close()
        self.budget.close()

    def _address(self, call: Call) -> tuple[str, str]:
        """Return scheme and host, and the encoded path, of an object or a bucket."""
        parts = urlsplit(self._keys.endpoint)
        key = quote(call.key, safe="/-_.~")
        if call.path_style:
            return f"{parts.scheme}://{parts.netloc}", f"{parts.path}/{call.bucket}/{key}"
        return f"{parts.scheme}://{call.bucket}.{parts.netloc}", f"{parts.path}/{key}"


def signature(
    secret: str,
    region: str,
    method: str,
    resource: str,
    query: tuple[tuple[str, str], ...],
    headers: Mapping[str, str],
) -> str:
    """Return what proves that a request is ours (OSS signature version 4).

    ``resource`` is ``/bucket/key``; nothing is encoded; header names are lower case.
    """
    own = sorted(n for n in headers if n[:6] == "x-oss-" or n in ("content-type", "content-md5"))
    lines = [
        method,
        quote(resource, safe="/-_.~"),
        _query(tuple(sorted(query))),
        *(f"{name}:{headers[name].strip()}" for name in own),
        "",
        "",  # no additional headers
        headers["x-oss-content-sha256"],
    ]
    date = headers["x-oss-date"]
    scope = f"{date[:8]}/{region}/oss/aliyun_v4_request"
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    key = f"aliyun_v4{secret}".encode()
    for part in scope.split("/"):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    text = f"OSS4-HMAC-SHA256\n{date}\n{scope}\n{digest}"
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()


def _translated(call: Call) -> Call:
    """Return a call of S3 as OSS has it."""
    headers = {
        name.replace(_META, _OWN_META): value
        for name, value in call.headers.items()
        if name != "if-none-match"
    }
    if call.headers.get("if-none-match") == "*":
        headers["x-oss-forbid-overwrite"] = "true"
    body = call.body.replace(_XMLNS, b"", 1) if call.method == "POST" else call.body
    if "content-md5" in headers:
        digest = hashlib.md5(body, usedforsecurity=False).digest()
        headers["content-md5"] = base64.b64encode(digest).decode()
    query = call.query
    if ("list-type", "2") in query:
        query = (*query, ("max-keys", "1000"))  # a page has 100 without it
    return replace(call, headers=headers, body=body, query=query)


def _query(pairs: tuple[tuple[str, str], ...]) -> str:
    return "&".join(
        quote(name, safe="-_.~") + (f"={quote(value, safe='-_.~')}" if value else "")
        for name, value in pairs
    )
