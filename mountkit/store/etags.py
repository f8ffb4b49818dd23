"""ETags as mountkit compares them."""

from __future__ import annotations

_SECOND = 1_000_000_000


def normal_etag(text: str | None, mtime_ns: int, size: int) -> str:
    """`text` with its quotes; without ETag, one made of the whole second of `mtime_ns` and the size.

    Whole seconds, because Last-Modified in a header has no more, while listings may have milliseconds.
    """
    text = (text or "").strip()
    if not text or text in ('""', 'W/""'):
        return made_up_etag(mtime_ns, size)
    return text if text.endswith('"') else f'"{text}"'


def made_up_etag(mtime_ns: int, size: int) -> str:
    return f'"{mtime_ns // _SECOND * _SECOND}-{size}"'


def same_etag(one: str, other: str) -> bool:
    """Whether both name the same bytes; a proxy may have marked one of them as weak."""
    return one.removeprefix("W/") == other.removeprefix("W/")
