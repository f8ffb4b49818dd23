"""Names: which keys are paths, and how every other key gets a path of its own.

All functions are pure and take keys relative to the mount's prefix. A key that is no path (`//`, `.`, a component of
300 bytes, bytes that are no UTF-8) stays reachable below `.mountkit/keys/`, under exactly one name that tells its key.
"""

from __future__ import annotations

import re
from enum import Enum
from typing import Final

SEPARATOR: Final = b"/"
HIDDEN: Final = b".mountkit"
"""The directory under the root that lookups find and readdir does not show."""
KEYS: Final = b"keys"
"""The directory in `.mountkit` that holds any key under its escaped name."""
RUNS: Final = b".mountkit-runs"
"""The directory in an output that has the receipts of the runs that wrote there; no readdir of the root shows it."""
NAME_MAX: Final = 255

_PLAIN_NAME: Final = re.compile(rb"(?!\.{1,2}\Z)[ -.0-~]{1,255}").fullmatch
"""Most names there are, told in a third of the time."""
_CONTINUED: Final = b"%"
# surrogateescape turns every byte that is no UTF-8 into one of U+DC80..U+DCFF
_UNSAFE: Final = re.compile("[%/\0\udc80-\udcff]")
_ESCAPED_BYTE: Final = re.compile(rb"%([0-9A-F]{2})")


class KeyKind(Enum):
    """How a key can be reached: at its own path, as the directory it marks, or only below `.mountkit/keys/`."""

    PATH = "path"
    MARKER = "marker"
    ODD = "odd"


def valid_name(name: bytes) -> bool:
    """Whether `name` can be one component of a path: 1 to 255 bytes of UTF-8, no `/` or NUL, not `.` or `..`."""
    if _PLAIN_NAME(name):
        return True
    if not 0 < len(name) <= NAME_MAX or name in (b".", b"..") or b"/" in name or b"\0" in name:
        return False
    return name.isascii() or _is_utf8(name)


def classify(relative_key: bytes) -> KeyKind:
    """The kind of a key relative to the mount's prefix; the empty key marks the root itself."""
    if not relative_key:
        return KeyKind.MARKER
    components = relative_key.removesuffix(SEPARATOR).split(SEPARATOR)
    if components[0] == HIDDEN or not all(map(valid_name, components)):
        return KeyKind.ODD
    return KeyKind.MARKER if relative_key.endswith(SEPARATOR) else KeyKind.PATH


def escape(key: bytes) -> tuple[bytes, ...]:
    """The path components below `.mountkit/keys/` that stand for `key`, each of them a valid name.

    Only `/`, `%`, NUL, bytes that are no UTF-8 and the dot of a component `.` or `..` are written as `%XX`. A name
    over 255 bytes is cut: every component but the last ends in a lone `%` (no escape does) and holds as many whole
    characters as fit. Raises ValueError on the empty key, which no bucket can hold.
    """
    if not key:
        raise ValueError("the empty key has no name")
    text = _UNSAFE.sub(lambda match: f"%{_byte(match[0]):02X}", key.decode("utf-8", "surrogateescape"))
    rest = text.encode()
    components: list[bytes] = []
    while len(rest) > NAME_MAX:
        cut = _cut(rest)
        components.append(rest[:cut] + _CONTINUED)
        rest = rest[cut:]
    components.append(b"%2E" + rest[1:] if rest in (b".", b"..") else rest)
    return tuple(components)


def unescape(components: tuple[bytes, ...]) -> bytes:
    """The key that `escape` gave these components for. Raises ValueError on any other spelling of it."""
    *continued, last = components or (b"",)
    if not all(map(is_continuation, continued)):
        raise ValueError("a component before the last is not continued")
    escaped = b"".join(component[:-1] for component in continued) + last
    key = _ESCAPED_BYTE.sub(lambda match: bytes.fromhex(match[1].decode()), escaped)
    if not key or escape(key) != components:
        raise ValueError("not the canonical name of a key")
    return key


def is_continuation(component: bytes) -> bool:
    """Whether the name goes on in another component, so that this one is a directory below `.mountkit/keys/`."""
    return component.endswith(_CONTINUED)


def _is_utf8(name: bytes) -> bool:
    try:
        name.decode()
    except UnicodeDecodeError:
        return False
    return True


def _byte(character: str) -> int:
    code = ord(character)
    return code - 0xDC00 if code >= 0xDC80 else code


def _cut(escaped: bytes) -> int:
    """How many bytes of whole characters and whole escapes fit before a continuation mark."""
    cut = NAME_MAX - 1
    while escaped[cut] & 0xC0 == 0x80:
        cut -= 1
    torn = escaped.find(b"%", cut - 2, cut)
    return cut if torn < 0 else torn
