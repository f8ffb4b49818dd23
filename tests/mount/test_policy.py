"""The printed policy is enough for a mount, and the mount asks for nothing else: a proxy enforces it as AWS would."""

from __future__ import annotations

import fnmatch
import json
import os
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.mount.conftest import Bucket, CommandLine, content
from tests.store.raw_server import CLOSE, answer

_ACTIONS = {"GET": "s3:GetObject", "HEAD": "s3:GetObject"}


@dataclass
class Enforcer:
    """Answers 403 to what the policy does not allow, and to a HEAD of a missing key, as S3 does."""

    document: dict[str, Any]
    keys: set[str]
    refused: list[str] = field(default_factory=list)

    def __call__(self, method: str, target: str) -> bytes | None:
        parts = urlsplit(target)
        bucket, _, key = unquote(parts.path).removeprefix("/").partition("/")
        query = parse_qs(parts.query, keep_blank_values=True)
        if not key:
            listed = query["prefix"][0] if "prefix" in query else None
            allowed = self._allows("s3:ListBucket", f"arn:aws:s3:::{bucket}", listed)
        else:
            action = "s3:GetObjectVersion" if "versionId" in query else _ACTIONS[method]
            allowed = self._allows(action, f"arn:aws:s3:::{bucket}/{key}", None)
            if method == "HEAD" and key not in self.keys:
                allowed = self._allows("s3:ListBucket", f"arn:aws:s3:::{bucket}", None)
        if allowed:
            return None
        self.refused.append(f"{method} {target}")
        if method == "HEAD":
            return answer(403).partition(b"\r\n\r\n")[0] + b"\r\n\r\n" + CLOSE
        return answer(403, code="AccessDenied")

    def _allows(self, action: str, resource: str, prefix: str | None) -> bool:
        for statement in self.document["Statement"]:
            actions = statement["Action"] if isinstance(statement["Action"], list) else [statement["Action"]]
            if action not in actions or not fnmatch.fnmatchcase(resource, statement["Resource"]):
                continue
            wanted = statement.get("Condition", {}).get("StringLike", {}).get("s3:prefix")
            if wanted is None or (prefix is not None and fnmatch.fnmatchcase(prefix, wanted)):
                return True
        return False


def test_a_mount_lives_on_the_printed_policy_and_asks_for_nothing_outside(
    bucket: Bucket, mountkit: CommandLine
) -> None:
    objects = {"top": b"top", "a b+c/x y": b"odd", "d/e/f": content(1, 3_000_000), **{f"n/{n}": b"n" for n in range(9)}}
    for key, data in objects.items():
        bucket.put(key, data)
    bucket.client.put_object(Bucket=bucket.name, Key=f"outside-{bucket.prefix}x", Body=b"x")
    printed = mountkit.run("policy", bucket.source)
    assert printed.code == 0, printed.err
    enforcer = Enforcer(json.loads(printed.out), {bucket.prefix + key for key in objects})
    bucket.proxy.fault = enforcer
    root = mountkit.mount(bucket.source)
    assert (root / "d/e/f").read_bytes() == objects["d/e/f"]
    assert not (root / "not-there").exists()
    assert not (root / "d/not-there").exists()
    assert (root / "a b+c/x y").read_bytes() == b"odd"
    assert (root / "n/7").read_bytes() == b"n"
    found = {os.path.relpath(os.path.join(where, name), root) for where, _, names in os.walk(root) for name in names}
    assert found == set(objects)
    assert mountkit.run("doctor", bucket.source, "--cache", str(mountkit.cache)).code == 0
    refused_keys = [line for line in enforcer.refused if not line.startswith("HEAD ")]
    assert refused_keys == [], "a mount asked for what the policy does not allow"


def test_without_a_prefix_the_whole_bucket_may_be_listed_and_writing_adds_its_rights(mountkit: CommandLine) -> None:
    plain = json.loads(mountkit.run("policy", "s3://data").out)
    assert [statement["Sid"] for statement in plain["Statement"]] == ["List", "Read"]
    assert "Condition" not in plain["Statement"][0]
    result = mountkit.run("policy", "s3://data/a*b?region=cn-north-1", "--writable")
    writable = json.loads(result.out)
    assert "kms:GenerateDataKey" in result.err
    assert [statement["Sid"] for statement in writable["Statement"]] == ["List", "Read", "Write", "Uploads"]
    assert writable["Statement"][2]["Resource"] == "arn:aws-cn:s3:::data/a${*}b/*"
