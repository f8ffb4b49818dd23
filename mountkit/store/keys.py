"""Keys on the wire: which of them obstore can name, and how any key is written in a URL."""

from __future__ import annotations

import re
from urllib.parse import quote

# What object_store's Path refuses (control characters, empty segments, `.` and `..`) or silently changes (it drops a
# leading and a trailing `/`). Everything else goes through as it is; found by sending every ASCII character and a
# sample of the others at four places of a key, which tests/store/test_keys.py repeats.
_ODD = re.compile(rb"[\x00-\x1f\x7f]|(?:\A|/)\.{0,2}(?:/|\Z)")


def plain_name(key: bytes) -> str | None:
    """`key` as obstore takes it, or None where obstore would refuse it or fetch another object."""
    if _ODD.search(key):
        return None
    try:
        return key.decode()
    except UnicodeDecodeError:
        return None


def quoted(key: bytes) -> str:
    """`key` as the path of a URL and of a version 4 signature: everything but unreserved characters and `/` escaped."""
    return quote(key, safe="/~")
