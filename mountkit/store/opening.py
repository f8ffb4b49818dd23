"""Opening a bucket as the mover wants it: connected, checked, retried."""

from __future__ import annotations

from mountkit.sources import BucketURL
from mountkit.store import s3
from mountkit.store.retry import RetryingStore


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
    store = s3.connect(source, keys=keys, region=region)
    if check:
        store.check(source.prefix)
    retrying = RetryingStore(store, budget_s=budget_s, metadata_budget_s=metadata_budget_s)
    return retrying, store.access.region
