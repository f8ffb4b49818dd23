"""Scanning a listing's `<Contents>` elements without an XML parser, where they are so plain that nothing is lost by it.

Plain means: one after the other, each with the fields of the first one in the same order, texts of printable ASCII
without any entity but `&quot;`. Then a regular expression made for that order is XML's own meaning, and it has to match
from the first element to the last without a gap; else the answer is None and the parser decides.
"""

from __future__ import annotations

import functools
import itertools
import re
from typing import Final, NamedTuple

FIELDS: Final = ("Key", "LastModified", "ETag", "Size", "StorageClass")
_OPEN, _CLOSE = b"<Contents>", b"</Contents>"
_FIELD: Final = re.compile(r"<([A-Za-z]{1,32})>[^<>&]*</\1>")
_TEXT: Final = "[ -%'-;=?-~]*"  # printable ASCII but < > &
_PATTERNS: Final = {"Key": "[ -%'-;=?-~]+", "LastModified": "[ -%'-;=?-~]+", "Size": "[0-9]{1,18}"}

Entry = tuple[str, str, str, str, str]
"""The texts of FIELDS; an ETag or storage class that the server leaves out is empty."""


class Scanned(NamedTuple):
    entries: list[Entry]
    rest: bytes
    """The document without them."""


def scan(body: bytes) -> Scanned | None:
    """The entries of a plain listing; None where only an XML parser can tell."""
    start, stop = body.find(_OPEN), body.rfind(_CLOSE) + len(_CLOSE)
    if start < 0 or stop <= start:
        return None
    try:
        text = body[start:stop].replace(b"&quot;", b'"').decode("ascii")
    except UnicodeDecodeError:
        return None
    rest = body[:start] + body[stop:]
    if b"<!" in rest or b"<Contents" in rest:  # a comment around them, or one that is torn
        return None
    names = tuple(match[1] for match in _FIELD.finditer(text, 0, text.find("</Contents>")))
    if len(set(names)) != len(names) or not {"Key", "LastModified", "Size"}.issubset(names):
        return None
    one, markup = _pattern(names)
    found = one.findall(text)
    if len(found) * markup + sum(map(len, itertools.chain.from_iterable(found))) != len(text):  # there is a gap
        return None
    places = [names.index(name) if name in names else None for name in FIELDS]
    if names != FIELDS:
        found = [tuple("" if place is None else entry[place] for place in places) for entry in found]
    return Scanned(found, rest)


@functools.lru_cache(maxsize=64)
def _pattern(names: tuple[str, ...]) -> tuple[re.Pattern[str], int]:
    """One element with the texts of its fields, and how long it is without them."""
    fields = "".join(f"<{name}>({_PATTERNS.get(name, _TEXT)})</{name}>" for name in names)
    markup = "<Contents></Contents>" + "".join(f"<{name}></{name}>" for name in names)
    return re.compile(f"<Contents>{fields}</Contents>"), len(markup)
