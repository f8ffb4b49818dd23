"""Opening a bucket as the mover wants it: connected, checked, retried."""

from __future__ import annotations

import time

from mountkit.errors import StoreUnavailable
from mountkit.sources import BucketURL
from mountkit.store import s3
from mountkit.store.retry import RetryingStore

_LONGEST_S, _LONGEST_DOCUMENT_S = 15.0, 60.0
_SHARE = 0.4
"""One attempt may wait for this share of the budget, so that a second one always fits (a connection that a firewall has
forgotten hangs; a new one works). A GET is two requests when it fails: see `s3`."""

_HICCUP_S, _PAUSE_S = 1.0, 0.25


def connect(
    source: BucketURL,
    *,
    check: bool = True,
    budget_s: float = 60.0,
    metadata_budget_s: float = 10.0,
    keys: tuple[str, str] | None = None,
    region: str = "",
) -> tuple[RetryingStore, str]:
    """The bucket of `source` behind retries, and its region; with `check`, proven to answer a listing.

    With a `region` found earlier and no `check` the bucket need not answer now. Raises what `s3.connect` does, and
    what the first listing is refused with.
    """
    store = s3.connect(
        source,
        keys=keys,
        region=region,
        connect_timeout_s=min(3.0, _SHARE * metadata_budget_s),
        stall_timeout_s=min(_LONGEST_S, _SHARE * budget_s / 2),
        answer_timeout_s=min(_LONGEST_S, _SHARE * metadata_budget_s),
        document_timeout_s=min(_LONGEST_DOCUMENT_S, metadata_budget_s),
    )
    if check:
        _check(store, source.prefix)
    retrying = RetryingStore(store, budget_s=budget_s, metadata_budget_s=metadata_budget_s)
    return retrying, store.access.region


def _check(store: s3.S3Store, prefix: bytes) -> None:
    """Raises what the first listing is refused with; one hiccup of a server is no reason not to mount."""
    deadline = time.monotonic() + _HICCUP_S
    while True:
        try:
            return store.check(prefix)
        except StoreUnavailable:
            if time.monotonic() > deadline:
                raise
        time.sleep(_PAUSE_S)
