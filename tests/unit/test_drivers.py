"""Which driver serves, and what s3fs is told."""

from __future__ import annotations

import pytest

from mountkit import drivers, s3fs
from mountkit.config import MountSettings, mount_settings
from mountkit.errors import HostError, UsageError
from mountkit.store.access import Access


def lacks(monkeypatch: pytest.MonkeyPatch, sentence: str, *, programs: set[str]) -> None:
    monkeypatch.setattr(drivers, "fuse_lacks", lambda: sentence)
    monkeypatch.setattr(drivers.shutil, "which", lambda name: f"/bin/{name}" if name in programs else None)


def test_auto_is_fuse_wherever_it_can_work(monkeypatch: pytest.MonkeyPatch) -> None:
    lacks(monkeypatch, "", programs={"s3fs"})
    assert drivers.choose("auto") == drivers.Choice("fuse")
    assert drivers.choose("fuse") == drivers.Choice("fuse")
    assert drivers.choose("s3fs") == drivers.Choice("s3fs")


def test_auto_falls_back_with_the_reason_and_fuse_never_does(monkeypatch: pytest.MonkeyPatch) -> None:
    lacks(monkeypatch, "pyfuse3 is not there", programs={"s3fs"})
    assert drivers.choose("auto") == drivers.Choice("s3fs", "pyfuse3 is not there")
    with pytest.raises(HostError, match=r"^pyfuse3 is not there$"):
        drivers.choose("fuse")
    lacks(monkeypatch, "pyfuse3 is not there", programs=set())
    with pytest.raises(HostError, match="s3fs, which could serve instead, is not installed"):
        drivers.choose("auto")
    with pytest.raises(HostError, match="s3fs is not installed"):
        drivers.choose("s3fs")


def test_s3fs_serves_no_writable_mount(monkeypatch: pytest.MonkeyPatch) -> None:
    lacks(monkeypatch, "", programs={"s3fs"})
    assert drivers.choose("auto", writable=True) == drivers.Choice("fuse")
    with pytest.raises(UsageError, match="to read only"):
        drivers.choose("s3fs", writable=True)
    lacks(monkeypatch, "pyfuse3 is not there", programs={"s3fs"})
    with pytest.raises(HostError, match="serves no writable mounts"):
        drivers.choose("auto", writable=True)


def settings(**flags: str | bool) -> MountSettings:
    return mount_settings("s3://data/a%20b/c", "/m", cache="/tmp", **flags)


def test_what_s3fs_cannot_honour_is_what_was_changed() -> None:
    assert drivers.unhonoured(settings()) == []
    assert drivers.unhonoured(settings(verify="always")) == ["--verify"]
    assert drivers.unhonoured(settings(servers="7", no_resend=True)) == ["--servers", "--no-resend"]


def test_settings_in_the_words_of_s3fs() -> None:
    access = Access("data", "eu-west-1", True, "http://x:9", custom_endpoint=True, requester_pays=True)
    words = s3fs.options(settings(ttl="indefinite", umask="077", allow_other=True, no_exec=True), access, "/tmp")
    for word in ("url=http://x:9", "endpoint=eu-west-1", "use_path_request_style", "requester_pays", "umask=0277"):
        assert word in words
    assert {"ro", "allow_other", "noexec", "stat_cache_expire=315360000"} <= set(words)
    plain = s3fs.options(settings(ttl="0"), Access("data", "r", True, "https://s3", custom_endpoint=False), "/tmp")
    assert "max_stat_cache_size=0" in plain
    assert not {"use_path_request_style", "allow_other", "noexec", "public_bucket=1"} & set(plain)
    command = s3fs.command(settings(), ["fsname=a,b"])
    assert command == ["s3fs", "data:/a b/c", "/m", "-f", "-o", "fsname=a\\,b"]


def test_the_environment_of_s3fs_has_the_way_to_the_server_and_nothing_of_the_caller(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    access = Access("data", "r", True, "https://s3", False, proxy="http://p:1", ca_bundle="/ca.pem")
    found = s3fs.environment(access)
    assert "AWS_SECRET_ACCESS_KEY" not in found
    assert (found["https_proxy"], found["CURL_CA_BUNDLE"]) == ("http://p:1", "/ca.pem")
