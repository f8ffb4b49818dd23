"""Settings: the words users write, and the values they become."""

import math

import pytest

from mountkit.config import (
    OPTIONS,
    MountSettings,
    mount_settings,
    parse_duration,
    parse_mount_options,
    parse_share,
    parse_size,
    store_environment,
)
from mountkit.errors import UsageError


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("50GB", 50 * 10**9),
        ("1TiB", 1 << 40),
        ("500 MiB", 500 << 20),
        ("4096", 4096),
        ("1.5k", 1500),
        ("2g", 2 * 10**9),
    ],
)
def test_sizes(text: str, count: int) -> None:
    assert parse_size(text) == count


@pytest.mark.parametrize(("text", "seconds"), [("60s", 60), ("5m", 300), ("0", 0), ("1.5h", 5400), ("250ms", 0.25)])
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds
    assert parse_duration("indefinite") == math.inf


@pytest.mark.parametrize("text", ["", "fast", "-5s", "5 parsecs", "1e9s", "5%"])
def test_malformed_durations_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_duration(text)


@pytest.mark.parametrize("text", ["", "much", "-1GB", "5XB", "1..5GB", "GB"])
def test_malformed_sizes_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_size(text)


def test_a_number_without_end_is_no_size_and_no_duration() -> None:
    for parse in (parse_size, parse_duration):
        with pytest.raises(UsageError):
            parse("9" * 400)


def test_shares() -> None:
    assert parse_share("5%") == 0.05
    for text in ("5", "100%", "-1%", "x%"):
        with pytest.raises(UsageError):
            parse_share(text)


def test_settings_survive_the_way_to_another_process() -> None:
    settings = mount_settings("s3://data/p?region=r", "/mnt/x", ttl="indefinite", cache="/tmp", umask="077")
    assert MountSettings.from_json(settings.to_json()) == settings
    assert settings.ttl_s == math.inf
    assert settings.source.prefix == b"p/"


def test_a_flag_error_names_the_flag() -> None:
    with pytest.raises(UsageError) as caught:
        mount_settings("data", "/mnt", cache_size="lots")
    assert "--cache-size" in caught.value.sentence
    assert "lots" in caught.value.sentence


def test_mount_o_options_mean_the_same_as_flags() -> None:
    given = parse_mount_options("ro,_netdev,x-systemd.automount,ttl=5m,allow_other,cache=/c")
    assert given == {"ttl": "5m", "allow-other": True, "cache": "/c"}
    settings = mount_settings("data", "/mnt", **given)
    assert settings.allow_other
    assert settings.ttl_s == 300


def test_a_flag_wins_over_the_sources_query_and_that_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    source = "s3://data?endpoint=http://query"
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://environment")
    assert mount_settings("data", "/m").source.endpoint == "http://environment"
    assert mount_settings(source, "/m").source.endpoint == "http://query"
    assert mount_settings(source, "/m", endpoint="http://flag").source.endpoint == "http://flag"


def test_a_switch_with_a_value_that_is_no_truth_is_refused() -> None:
    assert mount_settings("data", "/m", **parse_mount_options("allow_other=yes")).allow_other
    assert not mount_settings("data", "/m", **parse_mount_options("allow_other=0")).allow_other
    with pytest.raises(UsageError, match="`perhaps` is neither true nor false"):
        mount_settings("data", "/m", **parse_mount_options("allow_other=perhaps"))


def test_an_unknown_option_suggests_the_nearest() -> None:
    with pytest.raises(UsageError) as caught:
        parse_mount_options("cache_sice=5GB")
    assert "cache-size" in caught.value.hint


def test_every_option_is_defined_once_and_described() -> None:
    names = [option.name for option in OPTIONS]
    assert len(set(names)) == len(names)
    assert all(option.words.endswith(".") for option in OPTIONS)


def test_state_is_shared_by_the_same_source_and_identity_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "one")
    first = mount_settings("data/p", "/mnt/a").state_name
    assert mount_settings("data/p", "/mnt/b").state_name == first
    assert mount_settings("data/q", "/mnt/a").state_name != first
    assert mount_settings("data/p", "/mnt/a", endpoint="http://h").state_name != first
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "two")
    assert mount_settings("data/p", "/mnt/a").state_name != first


def test_password_file_credentials_take_the_place_of_all_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "environment")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "token")
    monkeypatch.setenv("UNRELATED_SECRET", "x")
    found = store_environment(("file-key", "file-secret"))
    assert found["AWS_ACCESS_KEY_ID"] == "file-key"
    assert "AWS_SESSION_TOKEN" not in found
    assert "UNRELATED_SECRET" not in found


def test_words_of_mount_8_are_passed_over_or_mean_an_option_of_ours() -> None:
    words = "rw,relatime,users,user=me,comment=x,x-systemd.automount,_netdev,nofail,noexec,default_permissions"
    assert parse_mount_options(words) == {"no-exec": True}
    assert not mount_settings("data", "/mnt", no_exec=True).executable
