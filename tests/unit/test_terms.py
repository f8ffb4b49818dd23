"""What mounts that share a mover must have in common."""

from __future__ import annotations

import pytest

from mountkit import config, terms
from mountkit.errors import MountError


def _settings(**flags: str) -> config.MountSettings:
    return config.mount_settings("s3://bucket/data", "/mnt", cache="/cache", **flags)


def test_who_says_nothing_follows_the_first_mount_and_is_told_so() -> None:
    running = _settings(cache_size="1500MB", data_budget="2s", ttl="5s")
    ours = _settings()
    terms.refuse_contradiction(ours, running)
    assert terms.differences(ours, running) == ["--cache-size 1500MB", "--data-budget 2s"]
    followed = terms.followed(ours, running)
    assert (followed.cache_size_bytes, followed.data_budget_s) == (1_500_000_000, 2.0)
    assert followed.ttl_s == 60.0, "each mount has its own"


def test_who_wants_something_else_is_refused_with_what_it_is() -> None:
    running, ours = _settings(data_budget="2s"), _settings(data_budget="5s", cache_free="10%", metadata_budget="10s")
    with pytest.raises(MountError) as refused:
        terms.refuse_contradiction(ours, running)
    assert refused.value.sentence == (
        "another mount of s3://bucket/data with the same cache has --cache-free 5% and --data-budget 2s, "
        "this one cannot have --cache-free 10% and --data-budget 5s"
    )


def test_the_same_words_are_no_contradiction() -> None:
    running = _settings(data_budget="2s")
    terms.refuse_contradiction(_settings(data_budget="2s"), running)
    assert terms.differences(_settings(data_budget="2s"), running) == []


def test_the_defaults_of_a_mount_are_those_of_its_options() -> None:
    """Else a default would count as something that was asked for."""
    assert terms.differences(_settings(), config.MountSettings(_settings().source, "/", "/", "")) == []


def test_who_pays_for_requests_has_a_mover_of_his_own() -> None:
    assert _settings().state_name != _settings(requester_pays="true").state_name
