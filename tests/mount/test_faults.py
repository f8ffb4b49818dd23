"""Faults of the server and the network, one by one, under a real mount: right bytes, or a named error in time.

One mount serves all tests of the module; each works in a directory of its own. What a reader sees of each fault stands
in docs/reliability.md.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.faults import spoilers
from tests.faults.spoilers import Breaks, Delays, ResetsFirst, SwallowsAll, status
from tests.http_proxy import Answer, Exchange, LoggingProxy, Spoiler
from tests.mount.conftest import Bucket, CommandLine, content, wait_until
from tests.servers import MotoServer, SeaweedServer

DATA_BUDGET_S, METADATA_BUDGET_S = 2.0, 1.5
MARGIN_S = 3.0
"""What a budget may be passed by: the second in which a server waits for the mover's word, and a busy machine."""
SIZE = 300_000
LARGE = 3_000_000


@dataclass
class Standing:
    """A bucket behind a proxy and a mount of it that stays."""

    seaweed: SeaweedServer
    proxy: LoggingProxy
    line: CommandLine
    root: Path
    prefix: str
    directories: list[str]

    def directory(self) -> str:
        """An empty directory of a test's own. They are there from the start, so that the mount knows them by then."""
        return self.directories.pop()

    def put(self, key: str, data: bytes) -> str:
        """Returns the ETag."""
        answer = self.seaweed.client().put_object(Bucket="data", Key=self.prefix + key, Body=data)
        return str(answer["ETag"])

    def state(self) -> str:
        return str(self.line.status(self.root)["state"])

    def log(self) -> str:
        return Path(self.line.status(self.root)["log"]).read_text()


@pytest.fixture(scope="module")
def standing(seaweed: SeaweedServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Standing]:
    base = tmp_path_factory.mktemp("standing")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("AWS_")} | {
        "AWS_ACCESS_KEY_ID": seaweed.access_key,
        "AWS_SECRET_ACCESS_KEY": seaweed.secret_key,
        "AWS_REGION": "us-east-1",
    }
    with LoggingProxy(int(seaweed.endpoint.rsplit(":", 1)[1])) as proxy:
        line = CommandLine(base, environment)
        prefix = f"{base.name}-{os.getpid()}/"
        directories = [f"test{n:03d}" for n in range(100)]
        for name in directories:
            seaweed.client().put_object(Bucket="data", Key=f"{prefix}{name}/", Body=b"")
        try:
            root = line.mount(
                f"s3://data/{prefix.rstrip('/')}?endpoint={proxy.url}",
                *(
                    "--no-sweep",
                    "--ttl",
                    "1s",
                    "--data-budget",
                    f"{DATA_BUDGET_S}s",
                    "--metadata-budget",
                    f"{METADATA_BUDGET_S}s",
                ),
            )
            yield Standing(seaweed, proxy, line, root, prefix, directories)
        finally:
            line.close()


@pytest.fixture(autouse=True)
def _clean(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "standing" in request.fixturenames:
        standing = request.getfixturevalue("standing")
        assert standing.proxy.rules == []


# ---- faults that pass ---------------------------------------------------------------------------------------
PASSING: dict[str, Spoiler] = {
    "500": status(500, "InternalError"),
    "500 without words": status(500),
    "503 SlowDown": status(503, "SlowDown"),
    "reset before headers": ResetsFirst(),
    "reset in mid-body": Breaks("reset"),
    "short body": Breaks("close"),
    "short body with a length that fits": spoilers.short_by_a_half(),
    "stall in mid-body": Breaks("stall"),
    "no answer": SwallowsAll(),
    "range of another place": spoilers.other_range(),
    "another ETag once": spoilers.other_etag(),
    "a login page": spoilers.GARBAGE,
}


@pytest.mark.parametrize("fault", PASSING)
def test_a_fault_that_passes_costs_time_never_a_byte(standing: Standing, fault: str) -> None:
    """[failures-4]"""
    directory = standing.directory()
    small, large = content(3, SIZE), content(5, LARGE)
    standing.put(f"{directory}/small", small)
    standing.put(f"{directory}/large", large)
    assert len(os.listdir(standing.root / directory)) == 2
    once = "once" in fault
    for name, expected in (("small", small), ("large", large)):
        path = f"{directory}/{name}"
        with standing.proxy.spoilt_by(PASSING[fault], method="GET", path=path, count=1 if once else 2) as rule:
            assert (standing.root / path).read_bytes() == expected
        assert rule.hits, "the fault never happened"


def test_a_whole_object_in_the_place_of_a_range_is_never_taken_for_the_range(standing: Standing) -> None:
    directory = standing.directory()
    data = content(7, LARGE)
    etag = standing.put(f"{directory}/f", data)
    assert (standing.root / f"{directory}/f").stat().st_size == LARGE
    with standing.proxy.spoilt_by(
        spoilers.whole_object(data, etag), method="GET", path=f"{directory}/f", count=2
    ) as rule:
        with open(standing.root / f"{directory}/f", "rb") as file:
            assert os.pread(file.fileno(), 1000, 2_500_000) == data[2_500_000:2_501_000]
            assert os.pread(file.fileno(), LARGE, 0) == data
    assert rule.hits


@pytest.mark.parametrize("fault", ["500", "503 SlowDown", "reset before headers", "no answer", "a login page"])
def test_names_survive_a_fault_that_passes(standing: Standing, fault: str) -> None:
    """[failures-4]"""
    directory = standing.directory()
    for n in range(5):
        standing.put(f"{directory}/{n}", b"x")
    with standing.proxy.spoilt_by(PASSING[fault], path=directory, count=1) as rule:
        assert (standing.root / directory / "3").stat().st_size == 1
    assert rule.hits
    with standing.proxy.spoilt_by(PASSING[fault], path=directory, listings=True, count=1) as rule:
        assert sorted(os.listdir(standing.root / directory)) == list("01234")
    assert rule.hits


def test_a_tenth_of_all_requests_failing_is_never_seen(standing: Standing) -> None:
    directory = standing.directory()
    objects = {f"{directory}/{n:02d}": content(n, SIZE) for n in range(30)}
    for key, data in objects.items():
        standing.put(key, data)
    with (
        standing.proxy.spoilt_by(status(500, "InternalError"), path=directory, probability=0.1),
        standing.proxy.spoilt_by(Breaks("reset"), method="GET", listings=False, path=directory, probability=0.1),
    ):
        for key, data in objects.items():
            assert (standing.root / key).read_bytes() == data


def test_a_server_that_is_down_for_a_while_is_waited_for(standing: Standing) -> None:
    """[failures-4]"""
    directory = standing.directory()
    data = content(9, SIZE)
    standing.put(f"{directory}/f", data)
    assert (standing.root / f"{directory}/f").stat().st_size == SIZE
    standing.proxy.refuse()
    back = threading.Timer(1.0, standing.proxy.listen_again)
    back.start()
    try:
        started = time.monotonic()
        assert (standing.root / f"{directory}/f").read_bytes() == data
        assert time.monotonic() - started > 0.7, "it cannot have been down"
    finally:
        back.join()


# ---- faults that stay ---------------------------------------------------------------------------------------
STAYING: dict[str, tuple[Spoiler, int, str]] = {
    "500": (status(500, "InternalError"), errno.EIO, "HTTP 500"),
    "503 SlowDown": (status(503, "SlowDown"), errno.EIO, "fewer requests"),
    "reset before headers": (ResetsFirst(), errno.EIO, "the connection to"),
    "short body": (Breaks("close"), errno.EIO, "sen"),
    "stall in mid-body": (Breaks("stall"), errno.EIO, "stopped sending"),
    "no answer": (SwallowsAll(), errno.EIO, "said nothing in time"),
    "range of another place": (spoilers.other_range(), errno.EIO, "another range"),
    "another ETag": (spoilers.other_etag(), errno.ESTALE, ""),
    "a login page": (spoilers.GARBAGE, errno.EIO, "no object"),
    "403 AccessDenied": (status(403, "AccessDenied"), errno.EACCES, "may not read"),
    "403 ExpiredToken": (status(403, "ExpiredToken"), errno.EACCES, "has expired"),
    "301 to another region": (
        status(301, "PermanentRedirect", "x-amz-bucket-region: eu-west-3\r\n"),
        errno.EIO,
        "is in eu-west-3",
    ),
}
ONE_OBJECT_ONLY = {"another ETag", "403 AccessDenied"}
"""These say nothing about the mount, so it is not degraded by them."""


@pytest.mark.parametrize("fault", STAYING)
def test_a_fault_that_stays_is_an_error_in_time_with_its_cause(standing: Standing, fault: str) -> None:
    """[failures-2] [failures-5]"""
    spoiler, number, cause = STAYING[fault]
    directory = standing.directory()
    data = content(11, LARGE)
    standing.put(f"{directory}/f", data)
    path = standing.root / directory / "f"
    assert path.stat().st_size == LARGE
    with standing.proxy.spoilt_by(spoiler, method="GET", path=f"{directory}/f") as rule:
        started = time.monotonic()
        with pytest.raises(OSError) as caught:
            path.read_bytes()
        took = time.monotonic() - started
        assert caught.value.errno == number
        assert took < DATA_BUDGET_S + MARGIN_S
        status_now = standing.line.status(standing.root)
        if fault not in ONE_OBJECT_ONLY:
            assert status_now["state"] == "degraded"
            assert any(cause in reason for reason in status_now["reasons"]), status_now["reasons"]
        assert cause in status_now["mover"]["last_error"]
        assert cause in standing.log()
    assert rule.hits
    wait_until(lambda: _reads(path, data), seconds=10)
    assert standing.state() == "ok"


def _reads(path: Path, data: bytes) -> bool:
    try:
        return path.read_bytes() == data
    except OSError:
        return False


@pytest.mark.parametrize("fault", ["500", "no answer", "a login page", "403 AccessDenied"])
def test_a_name_that_cannot_be_asked_for_is_an_error_in_time(standing: Standing, fault: str) -> None:
    """[failures-2] [failures-5]"""
    spoiler, number, cause = STAYING[fault]
    cause = {"a login page": "the answer", "403 AccessDenied": "may not"}.get(fault, cause)
    directory = standing.directory()
    standing.put(f"{directory}/f", b"x")
    for ask in (lambda: os.stat(standing.root / directory / "f"), lambda: os.listdir(standing.root / directory)):
        where = directory if fault in ONE_OBJECT_ONLY else ""
        with standing.proxy.spoilt_by(spoiler, path=where):
            started = time.monotonic()
            with pytest.raises(OSError) as caught:
                ask()
            # the way there may have to be asked for, too: one budget for each of the two names
            assert time.monotonic() - started < 2 * METADATA_BUDGET_S + MARGIN_S
            assert caught.value.errno == number
            assert cause in standing.log()
            if fault not in ONE_OBJECT_ONLY:
                status_now = standing.line.status(standing.root)
                assert status_now["state"] == "degraded"
                assert any(cause in reason for reason in status_now["reasons"]), status_now["reasons"]
    assert os.listdir(standing.root / directory) == ["f"]
    wait_until(lambda: standing.state() == "ok")


@pytest.mark.parametrize("fault", ["no answer", "refused", "500", "a login page"])
def test_what_is_known_stays_readable_while_the_bucket_is_away(standing: Standing, fault: str) -> None:
    """[fresh-3]"""
    directory = standing.directory()
    data = content(1, SIZE)
    standing.put(f"{directory}/f", data)
    assert os.listdir(standing.root / directory) == ["f"]
    assert (standing.root / directory / "f").read_bytes() == data
    time.sleep(1.2)  # the TTL
    if fault == "refused":
        standing.proxy.refuse()
    try:
        with standing.proxy.spoilt_by(PASSING.get(fault, ResetsFirst())):
            started = time.monotonic()
            assert os.listdir(standing.root / directory) == ["f"]
            assert (standing.root / directory / "f").read_bytes() == data
            assert time.monotonic() - started < METADATA_BUDGET_S + MARGIN_S, "only the first to notice waits"
            assert standing.state() == "degraded"
    finally:
        if fault == "refused":
            standing.proxy.listen_again()
    wait_until(lambda: standing.state() == "ok")
    standing.put(f"{directory}/g", data)
    wait_until(lambda: sorted(os.listdir(standing.root / directory)) == ["f", "g"])


def test_kill_9_ends_readers_in_a_black_hole(bucket: Bucket, mountkit: CommandLine) -> None:
    """[failures-2] Whatever they wait for, and however long the mount would."""
    root = mountkit.mount(bucket.source, "--data-budget", "60s", "--metadata-budget", "60s", "--no-sweep")
    asking = {"of-bytes": ["cat", "of-bytes/f"], "of-a-name": ["stat", "of-a-name/f"], "of-names": ["ls", "of-names"]}
    for directory in asking:
        bucket.put(f"{directory}/f", content(1, LARGE))
        assert (root / directory).is_dir()
    (root / "of-bytes/f").stat()
    with contextlib.ExitStack() as stack:
        rules = [stack.enter_context(bucket.proxy.spoilt_by(SwallowsAll(), path=directory)) for directory in asking]
        null = subprocess.DEVNULL
        readers = [subprocess.Popen(words, cwd=root, stdout=null, stderr=null) for words in asking.values()]
        wait_until(lambda: all(rule.hits for rule in rules))
        assert [reader.poll() for reader in readers] == [None] * 3
        started = time.monotonic()
        for reader in readers:
            reader.kill()
        assert [reader.wait(30) for reader in readers] == [-9] * 3, "they still waited when they were killed"
        assert time.monotonic() - started < 5.0


# ---- listings ------------------------------------------------------------------------------------------------
PAGE = 7
"""Keys a page has in the tests of pages: the proxy asks the server for so many."""


def _many(standing: Standing, directory: str) -> list[str]:
    names = [f"{n:02d}" for n in range(3 * PAGE)]
    for name in names:
        standing.put(f"{directory}/{name}", b"x")
    return names


class Pages:
    """A server with short pages, whose `spoilt` page is wrong as `how` says."""

    def __init__(self, names: list[str], prefix: str, how: str, times: int = 1) -> None:
        self._names, self._prefix, self._how, self._left = names, prefix, how, times

    async def __call__(self, exchange: Exchange) -> bool:
        found = re.search(r"continuation-token=t(\d+)", exchange.target)
        page = asked = int(found[1]) if found else 0
        if "max-keys=1000" not in exchange.target:
            page = asked = 0
        following, dropped, echo = page + 1, 0, asked
        if page == 1 and self._left:
            self._left -= 1
            if self._how == "repeated":
                page, following = 0, 1
            elif self._how == "repeated under another token":
                page, following = 0, 5
            elif self._how == "lost":
                page = following = echo = 2
                following = 3
            elif self._how == "entries lost":
                dropped = 3
        names = self._names[page * PAGE : (page + 1) * PAGE] if page < 3 else self._names[-PAGE:]
        contents = "".join(
            f"<Contents><Key>{self._prefix}{name}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
            f"<ETag>&quot;9dd4e461268c8034f5c8564e155c67a6&quot;</ETag><Size>1</Size></Contents>"
            for name in names[dropped:]
        )
        more = "true" if following < 3 or following == 5 else "false"
        token = f"<NextContinuationToken>t{following}</NextContinuationToken>" if more == "true" else ""
        said = f"<ContinuationToken>t{echo}</ContinuationToken>" if asked else ""
        body = (
            f"<?xml version='1.0'?><ListBucketResult><EncodingType>url</EncodingType><IsTruncated>{more}</IsTruncated>"
            f"<KeyCount>{len(names)}</KeyCount>{said}{token}{contents}</ListBucketResult>"
        ).encode()
        await exchange.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body), body)
        return True


@pytest.mark.parametrize("how", ["right", "repeated", "lost", "entries lost"])
def test_a_wrong_page_of_a_listing_is_asked_for_again(standing: Standing, how: str) -> None:
    """[failures-4]"""
    directory = standing.directory()
    names = _many(standing, directory)
    assert (standing.root / directory).is_dir()
    pages = Pages(names, f"{standing.prefix}{directory}/", how)
    with standing.proxy.spoilt_by(pages, listings=True, path=f"{directory}%2F") as rule:
        assert sorted(os.listdir(standing.root / directory)) == names
    assert rule.hits >= 3 + (how != "right")


@pytest.mark.parametrize("how", ["repeated", "lost", "entries lost", "repeated under another token"])
def test_a_listing_that_never_advances_ends(standing: Standing, how: str) -> None:
    """[failures-2]"""
    directory = standing.directory()
    names = _many(standing, directory)
    assert (standing.root / directory).is_dir()
    pages = Pages(names, f"{standing.prefix}{directory}/", how, times=10**6)
    with standing.proxy.spoilt_by(pages, listings=True, path=f"{directory}%2F") as rule:
        started = time.monotonic()
        with pytest.raises(OSError) as caught:
            os.listdir(standing.root / directory)
        assert caught.value.errno == errno.EIO
        assert time.monotonic() - started < 2 * METADATA_BUDGET_S + MARGIN_S
        seen: list[int] = []

        def is_quiet() -> bool:
            seen.append(rule.hits)
            return len(seen) > 25 and len(set(seen[-25:])) == 1

        # The request under way when the reader was answered may be followed by its own retry.
        wait_until(is_quiet, seconds=METADATA_BUDGET_S + MARGIN_S)
    assert sorted(os.listdir(standing.root / directory)) == names


def test_a_cut_off_listing_is_asked_for_again(standing: Standing) -> None:
    directory = standing.directory()
    names = _many(standing, directory)

    def cut(_: Exchange, answer: Answer) -> Answer:
        return Answer(answer.head, answer.body[: len(answer.body) * 2 // 3])

    with standing.proxy.spoilt_by(spoilers.Rewrites(cut), listings=True, path=f"{directory}%2F", count=1) as rule:
        assert sorted(os.listdir(standing.root / directory)) == names
    assert rule.hits


# ---- slow servers, credentials -------------------------------------------------------------------------------
@pytest.fixture
def own(
    moto: MotoServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[LoggingProxy, CommandLine]]:
    """moto behind a proxy (it takes any credentials), and a command line whose credentials come from a program."""
    (tmp_path / "give").write_text(f"#!/bin/sh\ncat {tmp_path}/keys\n")
    (tmp_path / "give").chmod(0o700)
    (tmp_path / "config").write_text(f"[profile changing]\ncredential_process = {tmp_path}/give\n")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("AWS_")} | {
        "AWS_CONFIG_FILE": str(tmp_path / "config"),
        "AWS_REGION": "us-east-1",
    }
    with LoggingProxy(int(moto.endpoint.rsplit(":", 1)[1])) as proxy:
        line = CommandLine(tmp_path, environment)
        yield proxy, line
        line.close()


def _keys(line: CommandLine, access_key: str) -> None:
    text = f'{{"Version": 1, "AccessKeyId": "{access_key}", "SecretAccessKey": "secret", "SessionToken": "token"}}'
    (line.base / "new").write_text(text)
    (line.base / "new").rename(line.base / "keys")


def test_expired_credentials_are_looked_up_anew(own: tuple[LoggingProxy, CommandLine], moto: MotoServer) -> None:
    """[failures-6]"""
    proxy, line = own
    data = {f"creds/{n}": content(n, SIZE) for n in range(4)}
    for key, each in data.items():
        moto.client().put_object(Bucket="data", Key=key, Body=each)
    _keys(line, "AKIAOLDOLDOLDOLDOLD1")
    root = line.mount(f"s3://data/creds?endpoint={proxy.url}", "--profile", "changing", "--data-budget", "3s")
    assert sorted(os.listdir(root)) == list("0123")
    expired = status(403, "ExpiredToken")
    with proxy.spoilt_by(expired, credentials="AKIAOLD") as rule:
        _keys(line, "AKIANEWNEWNEWNEWNEW2")
        assert (root / "0").read_bytes() == data["creds/0"]
        assert rule.hits
        assert line.status(root)["state"] == "ok"
    # the new ones expire too, and nothing fresh is to be had for a while
    with proxy.spoilt_by(expired, credentials="AKIANEW") as rule:
        with pytest.raises(OSError) as caught:
            (root / "1").read_bytes()
        assert caught.value.errno == errno.EACCES
        found = line.status(root)
        assert found["state"] == "degraded"
        assert "has expired" in " ".join(found["reasons"])
        assert (root / "0").read_bytes() == data["creds/0"], "what is cached needs no credentials"
        _keys(line, "AKIATHIRDTHIRDTHIRD3")
        wait_until(lambda: _reads(root / "1", data["creds/1"]), seconds=10)
    assert line.status(root)["state"] == "ok"


@pytest.mark.parametrize("first_byte_s", [2.5, pytest.param(10.0, marks=pytest.mark.soak)])
def test_a_slow_first_byte_is_waited_for(
    own: tuple[LoggingProxy, CommandLine], moto: MotoServer, first_byte_s: float
) -> None:
    """With the default budget of 60 s: 10 s to the first byte of every GET are slow, not wrong."""
    proxy, line = own
    data = content(1, SIZE)
    moto.client().put_object(Bucket="data", Key="slow/f", Body=data)
    _keys(line, "AKIAOLDOLDOLDOLDOLD1")
    root = line.mount(f"s3://data/slow?endpoint={proxy.url}", "--profile", "changing")
    assert os.listdir(root) == ["f"]
    with proxy.spoilt_by(Delays(first_byte_s), method="GET", listings=False) as rule:
        started = time.monotonic()
        assert (root / "f").read_bytes() == data
        assert time.monotonic() - started < first_byte_s + MARGIN_S
    assert rule.hits == 1


@pytest.mark.soak
def test_twenty_seconds_of_refused_connections_are_waited_for(
    own: tuple[LoggingProxy, CommandLine], moto: MotoServer
) -> None:
    proxy, line = own
    data = content(1, SIZE)
    moto.client().put_object(Bucket="data", Key="away/f", Body=data)
    _keys(line, "AKIAOLDOLDOLDOLDOLD1")
    root = line.mount(f"s3://data/away?endpoint={proxy.url}", "--profile", "changing")
    assert os.listdir(root) == ["f"]
    proxy.refuse()
    back = threading.Timer(20.0, proxy.listen_again)
    back.start()
    started = time.monotonic()
    assert (root / "f").read_bytes() == data
    assert 19.0 < time.monotonic() - started < 20.0 + 8.0 + MARGIN_S  # the longest wait between two attempts
    back.join()
