"""Data larger than the cache: later epochs find the share of it that fits, whatever the order."""

from __future__ import annotations

import concurrent.futures
import random

import pytest

from tests.mount.conftest import Bucket, CommandLine, content, drop_page_cache, wait_until

FILES, SIZE = 160, 100_000


@pytest.mark.parametrize("sealed", [True, False], ids=["passthrough", "no-passthrough"])
def test_of_data_twice_the_cache_every_later_epoch_reads_45_percent_from_disk(
    bucket: Bucket, mountkit: CommandLine, sealed: bool
) -> None:
    keys = {f"d{n % 4}/{n:04d}": n for n in range(FILES)}
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda item: bucket.put(item[0], content(item[1], SIZE)), keys.items()))
    flags = () if sealed else ("--no-passthrough",)
    root = mountkit.mount(bucket.source, "--cache-size", str(FILES * SIZE // 2), *flags)

    def epoch(seed: int) -> float:
        """The share of the bytes that did not come from the bucket."""
        drop_page_cache()
        before = mountkit.status(root)["requests"]["bytes_received"]
        order = list(keys.items())
        random.Random(seed).shuffle(order)
        for key, n in order:
            assert (root / key).read_bytes() == content(n, SIZE)
        return 1 - (mountkit.status(root)["requests"]["bytes_received"] - before) / (FILES * SIZE)

    epoch(1)
    if sealed:
        wait_until(lambda: mountkit.status(root)["cache"]["sealed"] >= 0.45 * FILES, seconds=20)
    assert epoch(2) >= 0.45
    assert epoch(3) >= 0.45
