"""Sources: what a user calls a bucket, as a frozen value.

`bucket`, `bucket/prefix`, `s3://bucket/prefix?region=…&endpoint=…&profile=…&anonymous=1&requester_pays=1`, also with
pyarrow's words (`endpoint_override=`, `scheme=`). Parsing knows no network and no environment.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from urllib.parse import parse_qsl, unquote_to_bytes, urlsplit

from mountkit.errors import UsageError

_BUCKET = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._\-:]{0,252}[a-zA-Z0-9]|[a-zA-Z0-9]{3,}")
_TRUE, _FALSE = {"1", "true", "yes", "on"}, {"0", "false", "no", "off", ""}
_FORM = "write bucket, bucket/prefix or s3://bucket/prefix?region=…&endpoint=…"


@dataclass(frozen=True, slots=True)
class BucketURL:
    """A bucket, the prefix below which its keys are shown, and how to reach it. Empty strings mean "not said"."""

    bucket: str
    prefix: bytes = b""
    """Ends in `/` unless it is empty."""
    region: str = ""
    endpoint: str = ""
    """`scheme://host[:port]`, no path."""
    profile: str = ""
    anonymous: bool = False
    requester_pays: bool = False

    def __str__(self) -> str:
        """The source as people name it: without settings."""
        return f"s3://{self.bucket}/{self.prefix.decode('utf-8', 'replace')}".rstrip("/")

    def with_settings(
        self,
        *,
        region: str = "",
        endpoint: str = "",
        profile: str = "",
        anonymous: bool = False,
        requester_pays: bool = False,
    ) -> BucketURL:
        """This source, where the flags of a command line add to or replace what its URL says."""
        return replace(
            self,
            region=region or self.region,
            endpoint=parse_endpoint(endpoint) if endpoint else self.endpoint,
            profile=profile or self.profile,
            anonymous=anonymous or self.anonymous,
            requester_pays=requester_pays or self.requester_pays,
        )


def parse_source(text: str) -> BucketURL:
    """The source that `text` names. Raises UsageError with the form expected."""
    stripped = text.strip()
    if not stripped:
        raise UsageError("the source is empty", _FORM)
    if "\x00" in stripped or "\n" in stripped:
        raise UsageError("the source holds control characters", _FORM)
    scheme, separator, rest = stripped.partition("://")
    if not separator:
        scheme, rest = "s3", stripped
    path, _, query = rest.partition("?")
    bucket, _, prefix = path.partition("/")
    if "@" in bucket:
        raise UsageError(
            "the source carries credentials in its URL, where other users could see them",
            "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or use --profile or --passwd-file",
        )
    # From here on no message quotes the whole source: a secret may stand anywhere in it.
    if scheme.lower() not in ("s3", "s3a", "s3n"):
        raise UsageError(f"the source has the unknown scheme `{scheme}://`", "mountkit mounts s3:// sources")
    if not _BUCKET.fullmatch(bucket):
        raise UsageError(f"`{bucket}` is no bucket name", _FORM)
    key = prefix.encode("utf-8", "surrogateescape")
    key = unquote_to_bytes(key) if separator else key
    key = key.rstrip(b"/")
    return _with_query(BucketURL(bucket, key + b"/" if key else b""), query)


def _with_query(url: BucketURL, query: str) -> BucketURL:
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query))
    except ValueError:
        raise UsageError("what follows the `?` in the source is no list of name=value settings", _FORM) from None
    settings = dict(pairs)
    scheme = settings.pop("scheme", "")
    endpoint = settings.pop("endpoint", "") or settings.pop("endpoint_override", "")
    settings.pop("endpoint_override", None)
    if endpoint and "://" not in endpoint:
        endpoint = f"{scheme or 'https'}://{endpoint}"
    result = url.with_settings(
        region=settings.pop("region", ""),
        endpoint=endpoint,
        profile=settings.pop("profile", ""),
        anonymous=_truth("anonymous", settings.pop("anonymous", "0")),
        requester_pays=_truth("requester_pays", settings.pop("requester_pays", "0")),
    )
    if settings:
        raise UsageError(
            f"the source has the unknown setting `{min(settings)}`",
            "known settings: region, endpoint, profile, anonymous, requester_pays",
        )
    return result


def parse_endpoint(text: str) -> str:
    """`text` as `scheme://host[:port]`. Raises UsageError."""
    hint = "write it like https://s3.example.com or http://127.0.0.1:9000"
    if "@" in text:  # first: every other message quotes the endpoint
        raise UsageError("the endpoint carries credentials in its URL", "set them in the environment or a profile")
    if "://" not in text:
        raise UsageError(f"the endpoint `{text}` has no scheme", hint)
    try:
        parts = urlsplit(text)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise UsageError(f"`{text}` is no endpoint", hint) from None
    if parts.scheme not in ("http", "https") or not host:
        raise UsageError(f"`{text}` is no endpoint", hint)
    if parts.path.strip("/") or parts.query or parts.fragment:
        raise UsageError(f"the endpoint `{text}` has a path", "an endpoint is only scheme, host and port")
    return f"{parts.scheme}://{parts.netloc}"


def _truth(name: str, text: str) -> bool:
    if text.lower() in _TRUE:
        return True
    if text.lower() in _FALSE:
        return False
    raise UsageError(f"`{name}={text}` is neither true nor false", f"write {name}=1 or {name}=0")
