"""One HTTP client for an endpoint and a credential, shared by all replicas that agree in them.

Requests are signed by botocore, with credentials from its provider chain, and sent over pooled
connections: botocore's own client takes more than twice the CPU for a small request and, once it
has loaded its models, twenty megabytes more.  Every body is signed and has a known length, because
that is what each S3-compatible storage accepts.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import quote, urlsplit

import botocore.session
import urllib3
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials, ReadOnlyCredentials
from botocore.exceptions import BotoCoreError
from botocore.httpsession import get_cert_path

from pyrep.errors import ReplicaPermanentError, ReplicaTemporaryError
from pyrep.storage.budget import Budget
from pyrep.storage.http import Connections
from pyrep.storage.s3_calls import Call, Facts
from pyrep.storage.s3_config import S3Account

__all__ = ["S3Session"]

_TLS_HINT = "Trust the endpoint's certificate with AWS_CA_BUNDLE, or set skip-verify."
_USER_AGENT = "pyrep"
_AWS_SUFFIXES = {
    "cn-": "amazonaws.com.cn",
    "us-iso-": "c2s.ic.gov",
    "us-isob-": "sc2s.sgov.gov",
}
_UNSIGNED = Config(s3={"payload_signing_enabled": False})


class S3Session:
    """Send signed requests, each in its turn; safe for several threads."""

    def __init__(self, account: S3Account, budget: Budget) -> None:
        self.budget = budget
        budget.endpoint = account.endpoint or "aws"
        self.facts = Facts()
        self._account = account
        # Held while the provider chain is asked: all who come meanwhile need its answer.
        self._credentials_lock = threading.Lock()
        self._credentials: Credentials | None = None  # guarded by _credentials_lock
        self._connections = Connections(self._pool_settings, budget, tls_hint=_TLS_HINT)

    @property
    def is_aws(self) -> bool:
        """Return whether requests go to AWS itself."""
        return not self._account.endpoint

    def workers(self) -> ThreadPoolExecutor:
        """Return the threads for requests that run side by side, started at the first use."""
        return self._connections.workers()

    def send(self, call: Call) -> urllib3.BaseHTTPResponse:
        """Sign and send a request; the answer, whatever its status, has its body still to read.

        :raises ReplicaTemporaryError: there was no answer
        :raises ReplicaThrottledError: the storage wants a long pause
        :raises ReplicaPermanentError: no credentials, or the endpoint's certificate is not trusted
        """
        base, path = self._address(call)
        target = path + _query(call.query)
        headers = self._signed(call, f"{base}{target}")
        return self._send(call, base, target, headers)

    def learn_region(self, bucket: str, answer: urllib3.BaseHTTPResponse) -> bool:
        """Take over the bucket's region from an answer; return whether that is news."""
        region = answer.headers.get("x-amz-bucket-region", "")
        if not self.is_aws or not region or self._region(bucket) == region:
            return False
        self.facts.regions[bucket] = region
        return True

    def forget_credentials(self) -> None:
        """Ask the provider chain anew at the next request: what we have has expired."""
        with self._credentials_lock:
            self._credentials = None

    def close(self) -> None:
        """Close idle connections, end the threads, log what was used."""
        self._connections.close()
        self.budget.close()

    def _send(
        self, call: Call, base: str, target: str, headers: dict[str, str]
    ) -> urllib3.BaseHTTPResponse:
        return self._connections.send(
            call.op,
            call.where,
            call.method,
            base,
            target,
            headers,
            call.body,
            urgent=call.urgent,
        )

    def _signed(self, call: Call, url: str) -> dict[str, str]:
        credentials = self._frozen(call)
        headers = {**dict(self._account.headers), **call.headers}
        request = AWSRequest(method=call.method, url=url, data=call.body, headers=headers)
        if not call.sign_payload:
            request.context["client_config"] = _UNSIGNED
        region = self._region(call.bucket)
        try:
            S3SigV4Auth(credentials, "s3", region).add_auth(request)
        except BotoCoreError as error:
            raise ReplicaPermanentError(f"{call.where}: cannot {call.op}: {error}") from error
        headers = dict(request.headers.items())
        headers["user-agent"] = _USER_AGENT
        if call.method in ("PUT", "POST"):
            headers["content-length"] = str(len(call.body))
        return headers

    def _frozen(self, call: Call) -> ReadOnlyCredentials:
        """Return the credentials of this moment; those of a role are renewed in time."""
        try:
            with self._credentials_lock:
                if self._credentials is None:
                    self._credentials = self._find_credentials()
                found = self._credentials
            if found is not None:
                return found.get_frozen_credentials()
        except (BotoCoreError, OSError) as error:
            raise ReplicaTemporaryError(
                f"{call.where}: cannot {call.op}: no credentials: {error}"
            ) from error
        raise ReplicaPermanentError(
            f"{call.where}: cannot {call.op}: no credentials found",
            hint="Set access-key-id and secret-access-key, or AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, or give this machine a role.",
        )

    def _find_credentials(self) -> Credentials | None:
        account = self._account
        if account.access_key_id and account.secret_access_key:
            return Credentials(
                account.access_key_id, account.secret_access_key, account.session_token or None
            )
        # A session of its own: it keeps what it found, and we ask again when that has expired.
        return botocore.session.Session().get_credentials()

    def _pool_settings(self) -> dict[str, Any]:
        if self._account.skip_verify:
            urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
            return {"cert_reqs": "CERT_NONE"}
        bundle = botocore.session.Session().get_config_variable("ca_bundle")
        return {"ca_certs": bundle or get_cert_path(True)}

    # --- addresses --------------------------------------------------------------------------------

    def _address(self, call: Call) -> tuple[str, str]:
        """Return scheme and host, and the encoded path, of an object or a bucket."""
        key = quote(call.key, safe="/-_.~")
        base = self._account.endpoint or f"https://{self._aws_host(call.bucket)}"
        parts = urlsplit(base)
        root = f"{parts.scheme}://{parts.netloc}"
        if call.path_style:
            bucket = f"{parts.path}/{quote(call.bucket, safe='-_.~')}"
            return root, f"{bucket}/{key}" if key else bucket
        label = call.bucket
        if label.startswith("arn:"):
            account, _, name = label.split(":", 4)[4].partition(":accesspoint/")
            label = f"{name}-{account}"
        return f"{parts.scheme}://{label}.{parts.netloc}", f"{parts.path}/{key}"

    def _aws_host(self, bucket: str) -> str:
        service = "s3-accesspoint" if bucket.startswith("arn:") else "s3"
        region = self._region(bucket)
        suffixes = (suffix for start, suffix in _AWS_SUFFIXES.items() if region.startswith(start))
        return f"{service}.{region}.{next(suffixes, 'amazonaws.com')}"

    def _region(self, bucket: str) -> str:
        found = self.facts.regions.get(bucket) or self._account.region
        if not found:
            found = self.facts.regions[bucket] = self._ask_region(bucket)
        return found

    def _ask_region(self, bucket: str) -> str:
        """Return the region of a bucket at AWS, which it tells everybody, in every answer."""
        base, target = "https://s3.us-east-1.amazonaws.com", f"/{quote(bucket, safe='-_.~')}"
        call = Call("find the region", f"s3://{bucket}", "HEAD", bucket)
        answer = self._send(call, base, target, {})
        answer.close()
        return answer.headers.get("x-amz-bucket-region", "us-east-1")


def _query(pairs: tuple[tuple[str, str], ...]) -> str:
    if not pairs:
        return ""
    parts = (f"{quote(name, safe='-_.~')}={quote(value, safe='-_.~')}" for name, value in pairs)
    return "?" + "&".join(parts)
