"""Policy: the least IAM rights a mount of a source needs, as AWS writes them down. Pure; asks nobody.

Listing is bounded to the prefix. S3 then answers 403 to a HEAD of a key that is not there, and to the HEAD of the
bucket that finds the region: both are expected (see `catalog.lister`, `store.s3`), so no wider right is asked for.
"""

from __future__ import annotations

import json
from typing import Any

from mountkit.sources import BucketURL

_READ = ("s3:GetObject", "s3:GetObjectVersion")
_WRITE = ("s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload", "s3:ListMultipartUploadParts")
_WILD = {"*": "${*}", "?": "${?}", "$": "${$}"}
"""How a policy writes characters that would stand for others."""


def policy(url: BucketURL, *, writable: bool = False) -> dict[str, Any]:
    """The document for a mount of `url`."""
    arn = f"arn:{_partition(url.region)}:s3:::{url.bucket}"
    prefix = "".join(_WILD.get(letter, letter) for letter in url.prefix.decode("utf-8", "replace"))
    listing: dict[str, Any] = {"Sid": "List", "Effect": "Allow", "Action": "s3:ListBucket", "Resource": arn}
    if prefix:
        listing["Condition"] = {"StringLike": {"s3:prefix": f"{prefix}*"}}
    statements = [listing, _objects("Read", _READ, arn, prefix)]
    if writable:
        statements.append(_objects("Write", _WRITE, arn, prefix))
        uploads = {"Sid": "Uploads", "Effect": "Allow", "Action": "s3:ListBucketMultipartUploads", "Resource": arn}
        statements.append(uploads)
    return {"Version": "2012-10-17", "Statement": statements}


def as_text(url: BucketURL, *, writable: bool = False) -> str:
    return json.dumps(policy(url, writable=writable), indent=2, ensure_ascii=False)


def _objects(sid: str, actions: tuple[str, ...], arn: str, prefix: str) -> dict[str, Any]:
    return {"Sid": sid, "Effect": "Allow", "Action": list(actions), "Resource": f"{arn}/{prefix}*"}


def _partition(region: str) -> str:
    if region.startswith("cn-"):
        return "aws-cn"
    return "aws-us-gov" if region.startswith("us-gov-") else "aws"
