"""Version 4 signatures of GETs of objects: 10 µs each, where botocore's way, which knows every case, takes 130.

https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html
"""

from __future__ import annotations

import hashlib
import hmac
import time
from typing import Protocol

_ALGORITHM = "AWS4-HMAC-SHA256"
_EMPTY_SHA256 = hashlib.sha256(b"").hexdigest()


class Keys(Protocol):
    """botocore's frozen credentials, of which we need this."""

    access_key: str
    secret_key: str
    token: str | None


class GetSigner:
    """Signs for one host and region. Not safe for threads: it remembers the key of the day."""

    def __init__(self, host: str, region: str, *, requester_pays: bool = False) -> None:
        self._host, self._region, self._requester_pays = host, region, requester_pays
        self._made_from: tuple[str, str] | None = None
        self._key = b""

    def __repr__(self) -> str:
        return f"<GetSigner for {self._host} in {self._region}>"

    def headers(self, keys: Keys, path: str, *, now: float | None = None) -> dict[str, str]:
        """What a GET of `path` (escaped, without query) must carry beside `Host`; `now` in seconds since the epoch."""
        moment = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now))
        signed = {"host": self._host, "x-amz-content-sha256": _EMPTY_SHA256, "x-amz-date": moment}
        if self._requester_pays:
            signed["x-amz-request-payer"] = "requester"
        if keys.token:
            signed["x-amz-security-token"] = keys.token
        names = ";".join(signed)
        lines = "".join(f"{name}:{value}\n" for name, value in signed.items())
        request = f"GET\n{path}\n\n{lines}\n{names}\n{_EMPTY_SHA256}"
        scope = f"{moment[:8]}/{self._region}/s3/aws4_request"
        to_sign = f"{_ALGORITHM}\n{moment}\n{scope}\n{hashlib.sha256(request.encode()).hexdigest()}"
        signature = hmac.digest(self._key_of(keys.secret_key, moment[:8]), to_sign.encode(), "sha256").hex()
        del signed["host"]
        signed["Authorization"] = (
            f"{_ALGORITHM} Credential={keys.access_key}/{scope}, SignedHeaders={names}, Signature={signature}"
        )
        return signed

    def _key_of(self, secret: str, day: str) -> bytes:
        if self._made_from != (secret, day):
            key = f"AWS4{secret}".encode()
            for word in (day, self._region, "s3", "aws4_request"):
                key = hmac.digest(key, word.encode(), "sha256")
            self._key, self._made_from = key, (secret, day)
        return self._key
