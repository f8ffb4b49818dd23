"""What the bucket itself says of one key now, for `mountkit explain`: catalog and cache are not touched."""

from __future__ import annotations

from typing import Any

from mountkit.errors import ObjectMissing, StoreError
from mountkit.store.api import Store


def inquire(store: Store, key: bytes) -> dict[str, Any]:
    """`object`: what is under the key, or None; `below`: is anything below `key/`; `refused`: why it cannot be read.

    Three requests at most; the last reads one byte, since looking at an object and reading it are two rights. Raises
    nothing the bucket says.
    """
    found: dict[str, Any] = {"object": None, "below": False, "refused": None}
    try:
        info = store.head(key)
        found["object"] = {**info._asdict(), "key": info.key.decode("latin-1")}
        if info.size:
            next(iter(store.get(info, 0, 1).chunks()))
    except ObjectMissing:
        pass
    except StoreError as exc:
        found["refused"] = exc.to_json()
    try:
        found["below"] = bool(store.list_page(key.rstrip(b"/") + b"/", delimiter=b"", limit=1).objects)
    except StoreError as exc:
        found["refused"] = found["refused"] or exc.to_json()
    return found
