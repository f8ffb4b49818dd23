"""Explain: what a path in a live mount is, how much of it is cached, and why it is not there.

Two witnesses: the catalog and the cache, which the servers answer from, read as they are before anything is asked; then
the bucket itself, asked by the mover. Where they differ, the reason is one of a few, and each has a way out.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mountkit import errors, mountinfo, mounts, names
from mountkit.cache.content import BLOCK_BYTES, PART_BYTES, blocks_in, content_id
from mountkit.cache.reader import CacheReader, SealedFile
from mountkit.catalog.values import CatalogUnavailable, Kind, Known, ObjectRow
from mountkit.catalog.view import CatalogView
from mountkit.errors import MountError
from mountkit.report import size

_ARCHIVES = {"GLACIER", "DEEP_ARCHIVE"}


@dataclass(frozen=True, slots=True)
class Place:
    """A path as its mount sees it."""

    relative: str
    """As the user wrote it below the mount point, doubled slashes and all."""
    key: bytes | None
    """The key it has or would have; None where no key can."""
    known: Known | None
    """What the catalog said before anybody was asked."""
    blocked_by: str = ""
    """A part of the path that is a file or absent, so that nothing can lie below it."""


def explain(path: str) -> list[tuple[str, str]]:
    """What there is to say, as (name, sentence). Raises UsageError where `path` is in no mount of ours, MountError."""
    mover, info = mounts.mover_client(path)
    with mover:
        state = _open_state(info.details["state_directory"])
        try:
            view, cache = CatalogView.open(state), CacheReader.open(state)
            try:
                place = _find(view, os.path.realpath(info.directory), info.directory, path)
                now = mover.call("inquire", key=place.key.decode("latin-1")) if place.key else None
                return list(_sentences(place, info.details, now, cache, prefix=view.prefix))
            except CatalogUnavailable as exc:
                raise MountError(f"the catalog of {info.directory} cannot be read: {exc}", "try again") from exc
            finally:
                view.close()
                cache.close()
        finally:
            os.close(state)


def _open_state(directory: str) -> int:
    try:
        return os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as exc:
        raise MountError(
            f"the state directory {directory} cannot be read: {os.strerror(exc.errno or 0)}", "ask as who has mounted"
        ) from exc


def _find(view: CatalogView, real: str, directory: str, path: str) -> Place:
    """Walks the catalog along the path; touches neither the mount nor the bucket."""
    written = os.path.join(os.getcwd(), path)
    for root in (directory, real):
        if written == root or written.startswith(root + "/"):
            relative = written[len(root) + 1 :]
            break
    else:
        relative = os.path.relpath(mountinfo.resolve(path), directory)
    raw = os.fsencode(relative)
    if names.classify(raw) is names.KeyKind.ODD and not raw.startswith(names.HIDDEN + b"/"):
        return Place(relative, view.prefix + raw, None)
    words = [word for word in raw.split(b"/") if word]
    current: int = view.root
    known: Known | None = Known(Kind.DIRECTORY, None, None, math.inf)
    for position, word in enumerate(words):
        key = view.key_at(current, word)
        known = view.lookup(current, word)
        if position == len(words) - 1:
            return Place(relative, key, known)
        if known is None or known.kind is not Kind.DIRECTORY or known.inode is None:
            here = b"/".join(words[: position + 1]).decode("utf-8", "replace")
            why = "" if known is None else here
            return Place(relative, view.prefix + b"/".join(words), None, why)
        current = known.inode
    return Place(relative, None, known)


# ---- sentences -----------------------------------------------------------------------------------------------
def _sentences(
    place: Place, details: dict[str, Any], now: dict[str, Any] | None, cache: CacheReader, *, prefix: bytes
) -> Iterator[tuple[str, str]]:
    source = details["source"]
    bucket = source.removeprefix("s3://").partition("/")[0]
    if place.key is not None:
        yield "key", f"s3://{bucket}/{place.key.decode('utf-8', 'backslashreplace')}"
    else:
        yield "path", f"the mount point of {source}" if not place.relative else "a directory that mountkit makes"
    yield from _in_mount(place, details, cache, prefix)
    if now is not None:
        yield from _in_bucket(place, now, details, prefix)


def _in_mount(place: Place, details: dict[str, Any], cache: CacheReader, prefix: bytes) -> Iterator[tuple[str, str]]:
    known = place.known
    if place.key is not None and _is_odd(place, prefix):
        yield "in the mount", f"no path can be this key: it is at {_hidden_path(details, place.key, prefix)}"
        return
    if place.blocked_by:
        yield "in the mount", f"absent, because `{place.blocked_by}` is no directory there"
        return
    if known is None:
        yield "in the mount", "nothing is known of it now: the next look asks the bucket"
        return
    if known.kind is Kind.ABSENT:
        yield "in the mount", f"absent, {_age(known, details)}"
        return
    if known.kind is Kind.DIRECTORY:
        yield "in the mount", "a directory" + (f", {_age(known, details)}" if known.as_of < math.inf else "")
        return
    assert known.object is not None
    row = known.object
    yield "in the mount", f"a file of {size(row.size)}, {_age(known, details)}"
    yield "version", _version(row.etag, row.version_id, row.storage_class, row.mtime_ns)
    yield "cached", _cached(row, details, cache)


def _in_bucket(place: Place, now: dict[str, Any], details: dict[str, Any], prefix: bytes) -> Iterator[tuple[str, str]]:
    """What the bucket says, and what follows from it for this path."""
    there = now["object"]
    if now["refused"] is not None:
        error = errors.from_json(now["refused"])
        yield "refused", error.sentence + (f"; {error.hint}" if error.hint else "")
        if there is None:
            return
    shown = None if place.known is None else place.known.object
    if there is None:
        yield "in the bucket", "only keys below it: a directory" if now["below"] else "there is no such key"
        expects = place.known is not None and place.known.kind is (Kind.DIRECTORY if now["below"] else Kind.ABSENT)
        if not expects and place.known is not None:
            yield "way out", _when(details)
        return
    words = _version(there["etag"], there["version_id"], there["storage_class"], there["mtime_ns"])
    if now["below"] and not _is_odd(place, prefix) and not _shows_the_key(place):
        yield "in the bucket", f"keys below it, and an object of {size(there['size'])}, {words}"
        yield "hidden", f"the directory hides the object; it is at {_hidden_path(details, place.key or b'', prefix)}"
    elif shown is not None and (shown.etag, shown.size) == (there["etag"], there["size"]):
        yield "in the bucket", "the same version"
    else:
        yield "in the bucket", f"{'another version' if shown else 'an object'}: {size(there['size'])}, {words}"
        if not _is_odd(place, prefix) and (place.known is not None or place.blocked_by):
            yield "way out", _when(details)
    if there["storage_class"] in _ARCHIVES:
        yield "archived", f"{there['storage_class']}: reading fails with EIO until it is restored in the bucket"


def _shows_the_key(place: Place) -> bool:
    """Whether it is a path below `.mountkit/keys/`, where no directory hides an object."""
    return os.fsencode(place.relative).startswith(names.HIDDEN + b"/")


def _is_odd(place: Place, prefix: bytes) -> bool:
    raw = os.fsencode(place.relative)
    return not _shows_the_key(place) and names.classify(raw) is names.KeyKind.ODD and bool(prefix or raw)


def _hidden_path(details: dict[str, Any], key: bytes, prefix: bytes) -> str:
    below = b"/".join((names.HIDDEN, names.KEYS, *names.escape(key[len(prefix) :])))
    return os.path.join(details["directory"], os.fsdecode(below))


def _age(known: Known, details: dict[str, Any]) -> str:
    ttl_s = details["ttl_s"]
    if not known.as_of:
        return "as it was known long ago: it will be asked for at the next look"
    age = max(0.0, time.time() - known.as_of)
    if ttl_s is None:
        return f"known for {_span(age)}, kept for ever (--ttl indefinite)"
    if age > ttl_s:
        return f"known for {_span(age)}: the next look asks the bucket (--ttl {ttl_s:g}s)"
    return f"known for {_span(age)}, kept for {_span(ttl_s - age)} more (--ttl {ttl_s:g}s)"


def _when(details: dict[str, Any]) -> str:
    wait = "" if details["ttl_s"] is None else f", or wait {_span(details['ttl_s'])}"
    return f"the mount shows an older listing: `mountkit refresh {details['directory']}`{wait}"


def _version(etag: str, version_id: str, storage_class: str, mtime_ns: int) -> str:
    changed = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(mtime_ns / 1e9))
    version = f", version {version_id}" if version_id else ""
    return f"ETag {etag}{version}, {storage_class}, changed {changed} UTC"


def _cached(row: ObjectRow, details: dict[str, Any], cache: CacheReader) -> str:
    if not row.size:
        return "it is empty: nothing needs to be"
    content = content_id(row.key, row.etag, row.size)
    held, blocks = cache.held(content, row.size)
    words = f"{size(min(row.size, held * PART_BYTES))} of {size(row.size)}"
    if row.size > BLOCK_BYTES:
        words += f", {blocks} of {blocks_in(row.size)} blocks whole"
    found = cache.open_sealed(content)
    if isinstance(found, SealedFile):
        os.close(found.fd)
        return words + (", sealed: read natively" if details["passthrough"] else ", sealed")
    if cache.sealed(content) is not None:
        return f"{words}, sealed in an earlier mount: its checksums are checked at the next open"
    return words + (", not sealed yet" if details["passthrough"] and held * PART_BYTES >= row.size else "")


def _span(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
