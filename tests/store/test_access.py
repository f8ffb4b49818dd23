"""Who asks, and where: credentials, endpoints, regions, proxies, and what goes over the wire."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import unquote_to_bytes

import pytest

from mountkit.errors import CredentialsError, StoreError, UsageError
from mountkit.sources import BucketURL
from mountkit.store import s3
from mountkit.store.access import Wallet, find_access
from mountkit.store.api import ObjectInfo
from mountkit.store.keys import plain_name, quoted
from mountkit.store.signed import Timeouts
from tests.fakes.memory_store import content
from tests.store.raw_server import Piece, RawServer, Request, answer

KEYS = ("AKIATESTADMIN0000001", "the-secret-nobody-may-see")
DATA = content(100)

pytestmark = pytest.mark.usefixtures("no_aws")


def bucket(request: Request) -> Iterable[Piece]:
    if request.lists:
        return [answer(200, b"<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>")]
    headers = {"ETag": '"e"', "Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT"}
    return [answer(200, DATA, headers=headers)]


def use(store: s3.S3Store, keys: Iterable[bytes] = (b"plain", b"odd//key")) -> None:
    """A listing, a HEAD and GETs by both ways."""
    store.check(b"")
    for key in keys:
        store.head(key)
        assert b"".join(store.get(ObjectInfo(key, 100, '"e"', 0), 0, 100).chunks()) == DATA


# ---- keys on the wire

NEAR_MISSES = [
    b"%",
    b"%2F",
    b"%2e%2e",
    b"a#b",
    b"a?b",
    b"~",
    b"*",
    b"a\\b",
    b"a b",
    b"a+b",
    b"...",
    b"a..",
    b"..a",
    b"a:b",
]


@pytest.mark.parametrize("key", [*NEAR_MISSES, "e\u0301".encode(), "🎉".encode(), "\u0085\u2028\ufeff".encode()])
def test_obstore_sends_a_plain_key_as_it_is(key: bytes) -> None:
    assert plain_name(key) == key.decode()
    with RawServer(bucket) as server:
        use(s3.connect(BucketURL("data", endpoint=server.endpoint), keys=KEYS), [key])
        assert {unquote_to_bytes(each.target) for each in server.requests[2:]} == {b"/data/" + key}
        assert len(server.requests) == 4  # HEAD of the bucket, listing, HEAD, GET


@pytest.mark.parametrize(
    "key",
    [
        *(b"", b"/", b"//", b"/a", b"a/", b"a//b", b".", b"..", b"a/.", b"a/..", b"./a", b"../a", b"a/./b", b"a/../b"),
        *(b"a\x00b", b"\x01", b"a\nb", b"\x1f", b"\x7f", b"\xff", b"a/\xfe\xff", b"a\n"),
    ],
)
def test_an_odd_key_is_sent_by_plain_http_as_it_is(key: bytes) -> None:
    assert plain_name(key) is None
    if not key:
        return
    with RawServer(bucket) as server:
        use(s3.connect(BucketURL("data", endpoint=server.endpoint), keys=KEYS), [key])
        assert {unquote_to_bytes(each.target) for each in server.requests[2:]} == {b"/data/" + key}
        assert len(server.requests) == 4


def test_obstore_changes_no_key_that_counts_as_plain() -> None:
    keys = [
        form.format(chr(point)).encode() for point in range(0x20, 0x180) for form in ("{}", "a{}b", "a/{}/c", "x{}")
    ]
    with RawServer(bucket) as server:
        store = s3.connect(BucketURL("data", endpoint=server.endpoint), keys=KEYS)
        for key in filter(plain_name, keys):
            list(store.get(ObjectInfo(key, 100, '"e"', 0), 0, 100).chunks())
            assert unquote_to_bytes(server.requests[-1].target) == b"/data/" + key
        assert store.statistics().errors == 0


def test_a_quoted_key_leaves_only_unreserved_characters_and_slashes() -> None:
    assert quoted(b"a/b-_.~c d+e%") == "a/b-_.~c%20d%2Be%25"


# ---- what is on the wire


def test_requester_pays_on_every_way() -> None:
    with RawServer(bucket) as server:
        use(s3.connect(BucketURL("data", endpoint=server.endpoint, requester_pays=True), keys=KEYS))
        assert {each.headers.get("x-amz-request-payer") for each in server.requests} == {"requester"}


def test_anonymous_requests_carry_no_signature(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEYS[0])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", KEYS[1])
    with RawServer(bucket) as server:
        use(s3.connect(BucketURL("data", endpoint=server.endpoint, anonymous=True)))
        assert len(server.requests) == 6
        assert not any("authorization" in each.headers for each in server.requests)


def test_what_we_were_told_wins_over_the_environment_obstore_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    hostile = {
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
        "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9",
        "AWS_ENDPOINT": "http://127.0.0.1:9",
        "AWS_REGION": "ap-south-1",
        "AWS_DEFAULT_REGION": "ap-south-2",
        "AWS_VIRTUAL_HOSTED_STYLE_REQUEST": "true",
        "AWS_SKIP_SIGNATURE": "true",
        "AWS_ALLOW_HTTP": "false",
        "AWS_S3_EXPRESS": "true",
        "AWS_UNSIGNED_PAYLOAD": "true",
        "AWS_BUCKET": "other",
        "AWS_ACCESS_KEY_ID": "AKIAENVIRONMENT00001",
        "AWS_SECRET_ACCESS_KEY": "env",
        "AWS_SESSION_TOKEN": "env",
        "AWS_REQUEST_PAYER": "true",
    }
    for name, value in hostile.items():
        monkeypatch.setenv(name, value)
    with RawServer(bucket) as server:
        use(s3.connect(BucketURL("data", endpoint=server.endpoint, region="eu-west-1"), keys=KEYS))
        assert len(server.requests) == 6
        for each in server.requests:
            assert f"Credential={KEYS[0]}/" in each.headers["authorization"]
            assert "/eu-west-1/s3/" in each.headers["authorization"]
            assert "x-amz-security-token" not in each.headers and "x-amz-request-payer" not in each.headers


@pytest.mark.parametrize("variable", ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "MLFLOW_S3_ENDPOINT_URL"])
def test_the_environment_names_the_endpoint(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with RawServer(bucket) as server:
        monkeypatch.setenv(variable, server.endpoint)
        use(s3.connect(BucketURL("data"), keys=KEYS))
        assert len(server.requests) == 6


def test_a_profile_names_the_endpoint_the_region_and_the_keys(tmp_path: Path) -> None:
    with RawServer(bucket) as server:
        (tmp_path / "config").write_text(f"[profile lab]\nregion = eu-west-2\nendpoint_url = {server.endpoint}\n")
        (tmp_path / "credentials").write_text("[lab]\naws_access_key_id = AKIALAB\naws_secret_access_key = s\n")
        store = s3.connect(BucketURL("data", profile="lab"))
        use(store)
        assert "Credential=AKIALAB/" in server.requests[-1].headers["authorization"]
    assert store.access.region == "eu-west-2"


@pytest.mark.parametrize(
    ("url", "base"),
    [
        (BucketURL("data", region="eu-central-1"), "https://data.s3.eu-central-1.amazonaws.com"),
        (BucketURL("data"), "https://data.s3.us-east-1.amazonaws.com"),
        (BucketURL("da.ta", region="eu-central-1"), "https://s3.eu-central-1.amazonaws.com/da.ta"),
        (BucketURL("data", region="cn-north-1"), "https://data.s3.cn-north-1.amazonaws.com.cn"),
        (BucketURL("data", endpoint="http://localhost:9000"), "http://localhost:9000/data"),
        (BucketURL("data", endpoint="https://minio.example.com"), "https://minio.example.com/data"),
        (BucketURL("data", endpoint="http://[::1]:9000"), "http://[::1]:9000/data"),
    ],
)
def test_where_a_bucket_is_reached(url: BucketURL, base: str) -> None:
    assert find_access(url).base == base


# ---- proxies


def test_both_ways_go_through_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    with RawServer(bucket) as proxy:
        monkeypatch.setenv("HTTP_PROXY", f"http://user:p%40ss@127.0.0.1:{proxy.port}")
        monkeypatch.setenv("http_proxy", f"http://user:p%40ss@127.0.0.1:{proxy.port}")
        use(s3.connect(BucketURL("data", endpoint="http://bucket.invalid:81"), keys=KEYS))
        assert {each.target.split("/data")[0] for each in proxy.requests} == {"http://bucket.invalid:81"}
        assert len(proxy.requests) == 6
        assert {each.headers.get("proxy-authorization") for each in proxy.requests} == {"Basic dXNlcjpwQHNz"}


def test_no_proxy_is_honoured_on_both_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    with RawServer(bucket) as server:
        for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, "http://127.0.0.1:9")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        use(s3.connect(BucketURL("data", endpoint=server.endpoint), keys=KEYS))
        assert len(server.requests) == 6


# ---- credentials


def test_no_credentials_says_where_it_looked() -> None:
    with pytest.raises(CredentialsError, match="AWS_ACCESS_KEY_ID") as caught:
        s3.connect(BucketURL("data", endpoint="http://127.0.0.1:9"))
    assert "--anonymous" in caught.value.hint


def test_a_profile_that_does_not_exist_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CredentialsError, match="no profile `nope`"):
        s3.connect(BucketURL("data", profile="nope"))
    monkeypatch.setenv("AWS_PROFILE", "gone")
    with pytest.raises(CredentialsError, match="no profile `gone`"):
        s3.connect(BucketURL("data"))


def test_half_of_a_key_pair_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAX")
    with pytest.raises(CredentialsError, match="incomplete"):
        s3.connect(BucketURL("data"))


def test_a_program_that_gives_no_credentials_is_an_error_with_a_name(tmp_path: Path) -> None:
    (tmp_path / "config").write_text("[default]\ncredential_process = /bin/false\n")
    with pytest.raises(CredentialsError, match="cannot be had"):
        s3.connect(BucketURL("data"))


def test_a_program_gives_credentials_and_new_ones_when_looked_up_anew(tmp_path: Path) -> None:
    said = tmp_path / "said.json"
    (tmp_path / "config").write_text(
        f"[default]\ncredential_process = {sys.executable} -c \"print(open('{said}').read())\"\n"
    )

    def says(access_key: str) -> None:
        said.write_text(
            json.dumps({"Version": 1, "AccessKeyId": access_key, "SecretAccessKey": "s", "SessionToken": "t"})
        )

    says("AKIAFIRST")
    with RawServer(bucket) as server:
        store = s3.connect(BucketURL("data", endpoint=server.endpoint))
        use(store)
        says("AKIASECOND")
        assert store.refresh_credentials()
        assert store.refresh_credentials()  # for the other threads that failed just now
        before = len(server.requests)
        use(store)
        for each in server.requests[before:]:
            assert "Credential=AKIASECOND/" in each.headers["authorization"]
            assert each.headers["x-amz-security-token"] == "t"


def test_the_same_credentials_again_are_no_refresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEYS[0])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", KEYS[1])
    assert not Wallet(BucketURL("data")).look_again()


def test_an_endpoint_with_a_path_and_a_directory_bucket_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="directory bucket"):
        find_access(BucketURL("data--use1-az4--x-s3"))
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9/path")
    with pytest.raises(UsageError, match="has a path"):
        find_access(BucketURL("data"))


def test_no_repr_shows_a_secret() -> None:
    with RawServer(bucket) as server:
        store = s3.connect(BucketURL("data", endpoint=server.endpoint), keys=KEYS)
        wallet = Wallet(BucketURL("data"), KEYS)
        shown = f"{store!r} {wallet!r} {store.access!r} {Timeouts(1, 1, 1)!r} {store._wire!r} {vars(store)!r}"
    assert KEYS[1] not in shown and KEYS[0] not in shown


def test_statistics_count_requests_and_bytes() -> None:
    with RawServer(bucket) as server:
        store = s3.connect(BucketURL("data", endpoint=server.endpoint), keys=KEYS)
        use(store)
        assert store.statistics() == type(store.statistics())(get=2, head=2, list=1, bytes_received=200)


def test_a_check_is_over_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    never = threading.Event()

    def respond(request: Request) -> Iterable[Piece]:
        return [never] if request.lists else bucket(request)

    monkeypatch.setattr(s3, "CHECK_S", 0.3)
    with RawServer(respond) as server:
        store = s3.connect(BucketURL("data", endpoint=server.endpoint), keys=KEYS)
        with pytest.raises(StoreError, match=r"no answer within 0\.3 s"):
            store.check(b"")
        never.set()
