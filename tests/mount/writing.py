"""What tests of writable mounts share: the bucket's objects, and the journal seen from outside."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from tests.mount.conftest import Bucket, CommandLine, wait_until


def objects(bucket: Bucket) -> dict[str, bytes]:
    """Every object below the bucket's prefix."""
    pages = bucket.client.get_paginator("list_objects_v2").paginate(Bucket=bucket.name, Prefix=bucket.prefix)
    keys = [each["Key"] for page in pages for each in page.get("Contents", [])]
    return {
        key.removeprefix(bucket.prefix): bucket.client.get_object(Bucket=bucket.name, Key=key)["Body"].read()
        for key in keys
    }


def journal(mountkit: CommandLine, sql: str) -> list[tuple[object, ...]]:
    """What the journal of the one state directory says."""
    (path,) = mountkit.cache.glob("mountkit-*/*/journal.db")
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10)) as db:
        return db.execute(sql).fetchall()


def is_drained(mountkit: CommandLine) -> bool:
    """Whether the bucket has everything."""
    (left,) = journal(
        mountkit,
        "SELECT (SELECT count(*) FROM operation WHERE state IN (0, 1))"
        " + (SELECT count(*) FROM node WHERE thinned = 1 AND names > 0)",
    )
    return left == (0,)


def drain_and_unmount(mountkit: CommandLine, mounted: Path, *, seconds: float = 60.0) -> None:
    wait_until(lambda: is_drained(mountkit), seconds=seconds)
    mountkit.unmount(mounted)
