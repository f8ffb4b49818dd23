"""Doctor names the right cause for every mistake about a source, at the right step, and no secret."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path

import pytest

from mountkit.doctor.line import Line, Verdict
from mountkit.doctor.source import Examination
from mountkit.sources import parse_source
from tests.certificates import self_signed, server_tls
from tests.doctor.conftest import Doctor
from tests.http_proxy import LoggingProxy
from tests.servers import MotoServer, SeaweedServer, free_ports
from tests.store.raw_server import RawServer, Request, answer

_SECRET = "a-secret/nobody+may=see"
_STEPS = ("credentials", "endpoint", "name", "connection", "TLS", "clock", "bucket", "list", "read", "latency")
_NOBODY = dict.fromkeys(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"))


def _source(server: SeaweedServer | MotoServer, name: str = "data") -> str:
    return f"s3://{name}?endpoint={server.endpoint}"


Lines = list[Line]


@dataclass
class Examine:
    """The examination itself, in this process: the same lines without the command around them."""

    base: Path
    patch: pytest.MonkeyPatch

    def __call__(self, source: str, *, writable: bool = False, **changed: str | None) -> Lines:
        with self.patch.context() as patch:
            for name, value in changed.items():
                patch.delenv(name) if value is None else patch.setenv(name, value)
            return list(Examination(parse_source(source), writable=writable).lines())


@pytest.fixture
def examine(no_aws: None, seaweed: SeaweedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Examine:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", seaweed.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", seaweed.secret_key)
    return Examine(tmp_path, monkeypatch)


@pytest.fixture(scope="module", autouse=True)
def filled(seaweed: SeaweedServer) -> None:
    """Something to read, and a bucket that the lister may not list."""
    seaweed.create_bucket("other")
    client = seaweed.client()
    client.put_object(Bucket="data", Key="doctor/small", Body=b"x" * 100)
    client.put_object(Bucket="data", Key="doctor/large", Body=b"y" * 3_000_000)


def test_a_source_that_can_be_mounted_has_every_step_fine(doctor: Doctor, seaweed: SeaweedServer) -> None:
    found = doctor(f"s3://data/doctor?endpoint={seaweed.endpoint}")
    assert found.code == 0, found.err
    source = [line for line in found.lines if line["section"] == "source s3://data/doctor"]
    assert [line["name"] for line in source] == [*_STEPS, "conditions", "versions"]
    assert {line["verdict"] for line in source} == {"fine"}
    assert "AKIA…0001 from the environment" in found.line("credentials")["text"]
    assert "3.0 MB of doctor/large" in found.line("read")["text"]
    assert "large, small" in found.line("list")["text"]


def _answering(*pieces: bytes) -> Callable[[Examine], Lines]:
    def make(examine: Examine) -> Lines:
        with RawServer(lambda _: list(pieces)) as server:
            return examine(f"s3://data?endpoint={server.endpoint}")

    return make


def _dated(off_s: float, status: int = 200) -> bytes:
    return answer(status, headers={"Date": formatdate(time.time() - off_s, usegmt=True)})


def _self_signed(examine: Examine) -> Lines:
    with RawServer(lambda _: [answer(200)], tls=server_tls(self_signed(examine.base / "cert.pem"))) as server:
        return examine(f"s3://data?endpoint={server.endpoint}")


def _black_hole(examine: Examine) -> Lines:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        return examine(f"s3://data?endpoint=http://127.0.0.1:{silent.getsockname()[1]}")


def _speaks_tls(examine: Examine) -> Lines:
    with RawServer(lambda _: [answer(200)], tls=server_tls(self_signed(examine.base / "cert.pem"))) as server:
        return examine(f"s3://data?endpoint={server.endpoint.replace('https:', 'http:')}")


def _refuses(status: int, code: str) -> Callable[[Examine], Lines]:
    """A server that tells the same time as we do, and refuses whatever is signed."""
    return _answering(answer(status, code=code, headers={"Date": formatdate(usegmt=True)}))


def _wrong_region(examine: Examine) -> Lines:
    said = answer(400, code="AuthorizationHeaderMalformed", region="eu-central-1")
    with RawServer(lambda _: [said]) as server:
        return examine(f"s3://data?endpoint={server.endpoint}&region=us-west-2")


def _cannot_read(request: Request) -> list[bytes]:
    if request.lists:
        body = b"""<?xml version="1.0"?><ListBucketResult><Name>data</Name><IsTruncated>false</IsTruncated><Contents>
            <Key>k</Key><Size>5</Size><ETag>"0123456789abcdef0123456789abcdef"</ETag>
            <LastModified>2024-01-01T00:00:00.000Z</LastModified></Contents></ListBucketResult>"""
        return [answer(200, body)]
    return [answer(403, code="AccessDenied") if "/k" in request.target else answer(200)]


def _no_reading(examine: Examine) -> Lines:
    with RawServer(_cannot_read) as server:
        return examine(f"s3://data?endpoint={server.endpoint}")


MISTAKES: dict[str, tuple[Callable[[Examine, SeaweedServer], Lines], str, tuple[str, ...]]] = {
    "unknown bucket": (lambda d, s: d(_source(s, "not-there")), "bucket", ("there is no bucket `not-there`",)),
    "wrong access key": (
        lambda d, s: d(_source(s), AWS_ACCESS_KEY_ID="AKIANOBODYKNOWSTHIS"),
        "list",
        ("does not know the access key", "AWS_ACCESS_KEY_ID"),
    ),
    "wrong secret": (
        lambda d, s: d(_source(s), AWS_SECRET_ACCESS_KEY=_SECRET),
        "list",
        ("the secret does not fit the access key", "AWS_SECRET_ACCESS_KEY"),
    ),
    "no credentials": (lambda d, s: d(_source(s), **_NOBODY), "credentials", ("no credentials", "aws configure")),
    "half of the credentials": (
        lambda d, s: d(_source(s), AWS_SECRET_ACCESS_KEY=None),
        "credentials",
        ("incomplete", "give both"),
    ),
    "unknown profile": (
        lambda d, s: d(_source(s) + "&profile=nobody-has-it", **_NOBODY),
        "credentials",
        ("no profile `nobody-has-it`",),
    ),
    "refused port": (
        lambda d, _: d(f"s3://data?endpoint=http://127.0.0.1:{free_ports(1)[0]}"),
        "connection",
        ("connection refused", "port"),
    ),
    "unknown host": (
        lambda d, _: d("s3://data?endpoint=http://no-such-host.invalid:9000"),
        "name",
        ("no-such-host.invalid", "not resolve"),
    ),
    "black hole": (lambda d, _: _black_hole(d), "clock", ("said nothing in time",)),
    "TLS against a plain port": (
        lambda d, s: d(_source(s).replace("http:", "https:")),
        "TLS",
        ("does not speak TLS", "http://"),
    ),
    "no TLS against a TLS port": (lambda d, _: _speaks_tls(d), "clock", ("speaks TLS", "https://")),
    "expired token": (
        lambda d, _: _refuses(400, "ExpiredToken")(d),
        "list",
        ("session token", "has expired", "log in again"),
    ),
    "a token of another key": (
        lambda d, _: _refuses(400, "InvalidToken")(d),
        "list",
        ("does not accept the session token", "AWS_SESSION_TOKEN"),
    ),
    "a clock that only what lies behind the server minds": (
        lambda d, _: _refuses(403, "RequestTimeTooSkewed")(d),
        "list",
        ("clock is off", "refuses signatures", "NTP"),
    ),
    "a certificate nobody signed": (lambda d, _: _self_signed(d), "TLS", ("is not trusted", "AWS_CA_BUNDLE")),
    "no S3 server": (lambda d, _: _answering(answer(200, b"<html>"))(d), "list", ("endpoint",)),
    "a clock 20 minutes ahead": (
        lambda d, _: _answering(_dated(1200))(d),
        "clock",
        ("20 minutes ahead of the server's", "NTP"),
    ),
    "a clock 20 minutes behind": (lambda d, _: _answering(_dated(-1200))(d), "clock", ("behind the server's",)),
    "wrong region": (lambda d, _: _wrong_region(d), "list", ("eu-central-1", "drop `--region us-west-2`")),
    "public it is not": (lambda d, s: d(_source(s) + "&anonymous=1"), "list", ("not public", "--anonymous")),
    "may not list": (
        lambda d, s: d(
            _source(s, "other"),
            AWS_ACCESS_KEY_ID=s.lister_access_key,
            AWS_SECRET_ACCESS_KEY=s.lister_secret_key,
        ),
        "list",
        ("may not list", "s3:ListBucket"),
    ),
    "may not read": (lambda d, _: _no_reading(d), "read", ("may not look at", "s3:GetObject")),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_the_fault_of_its_step_with_cause_and_way_out(
    examine: Examine, seaweed: SeaweedServer, name: str
) -> None:
    make, step, words = MISTAKES[name]
    found = make(examine, seaweed)
    (fault,) = (line for line in found if line.verdict is Verdict.FAULT)
    assert (fault.name, fault.exit_code) == (step, 7), fault
    assert found[-1] == fault, "nothing is asked after a fault"
    for word in words:
        assert word in f"{fault.text} {fault.way_out}", fault
    assert fault.way_out
    for secret in (_SECRET, seaweed.secret_key, seaweed.lister_secret_key):
        assert secret not in str(found)


def test_a_mistake_ends_the_command_with_the_exit_code_a_mount_would_have(
    doctor: Doctor, seaweed: SeaweedServer
) -> None:
    found = doctor(_source(seaweed), AWS_SECRET_ACCESS_KEY=_SECRET)
    assert found.code == 7
    (fault,) = found.faults
    assert "the secret does not fit" in fault["text"]
    assert _SECRET not in found.out + found.err
    assert json.loads(found.out)["would_mount"] is False


def test_a_clock_that_is_minutes_off_is_a_note(examine: Examine) -> None:
    found = _answering(_dated(130))(examine)
    (line,) = (line for line in found if line.name == "clock")
    assert line.verdict is Verdict.NOTE


def test_archived_objects_versions_and_another_region_are_told(doctor: Doctor, moto: MotoServer) -> None:
    client = moto.client(region="eu-central-1")
    moto.create_bucket("far", "eu-central-1")
    client.put_bucket_versioning(Bucket="far", VersioningConfiguration={"Status": "Enabled"})
    client.put_object(Bucket="far", Key="frozen", Body=b"x" * 9, StorageClass="DEEP_ARCHIVE")
    client.put_object(Bucket="far", Key="warm", Body=b"x" * 9)
    found = doctor(_source(moto, "far"))
    assert found.code == 0, found.out
    assert "in eu-central-1, and not in us-east-1: mountkit follows" in found.line("bucket")["text"]
    assert found.line("archived")["verdict"] == "note"
    assert "frozen" in found.line("archived")["text"]
    assert "are kept" in found.line("versions")["text"]
    assert "warm" in found.line("read")["text"]


def test_a_password_file_is_where_the_credentials_come_from(doctor: Doctor, seaweed: SeaweedServer) -> None:
    path = doctor.base / "passwd"
    path.write_text(f"{seaweed.access_key}:{seaweed.secret_key}\n")
    path.chmod(0o600)
    words = (f"s3://data/doctor?endpoint={seaweed.endpoint}", "--passwd-file", str(path))
    found = doctor(*words, **_NOBODY)
    assert found.code == 0
    assert f"from the password file {path}" in found.line("credentials")["text"]
    path.chmod(0o644)
    refused = doctor(*words, **_NOBODY)
    assert refused.code == 2
    assert "chmod 600" in refused.faults[0]["way_out"]


def test_a_profile_is_named(doctor: Doctor, seaweed: SeaweedServer) -> None:
    (doctor.base / ".aws").mkdir()
    text = f"[train]\naws_access_key_id={seaweed.access_key}\naws_secret_access_key={seaweed.secret_key}\n"
    (doctor.base / ".aws/credentials").write_text(text)
    found = doctor(_source(seaweed), "--profile", "train", **_NOBODY)
    assert "(~/.aws/credentials), profile train" in found.line("credentials")["text"]


def test_text_keeps_to_80_columns_and_has_no_colour_in_a_pipe(doctor: Doctor, tmp_path: Path) -> None:
    found = doctor("s3://data?endpoint=http://no-such-host.invalid", text=True)
    assert found.code == 7
    assert "\x1b" not in found.out
    assert max(map(len, found.out.splitlines())) <= 80 or str(tmp_path) in found.out
    assert "  ✗ name " in found.out
    assert "→ check the endpoint, the network and the DNS" in found.out


def test_writing_is_tried_and_taken_back(examine: Examine, seaweed: SeaweedServer) -> None:
    found = examine(_source(seaweed, "data/doctor"), writable=True)
    assert {line.verdict for line in found} == {Verdict.FINE}, found
    assert [line.name for line in found][-4:] == ["put", "exclusive put", "multipart", "delete"]
    kept = seaweed.client().list_objects_v2(Bucket="data", Prefix="doctor/.mountkit-doctor")
    assert kept["KeyCount"] == 0
    assert "Uploads" not in seaweed.client().list_multipart_uploads(Bucket="data", Prefix="doctor/")


@pytest.mark.parametrize("step", ["put", "multipart", "delete"])
def test_a_right_to_write_that_is_lacking_is_the_fault_of_its_step(
    examine: Examine, seaweed: SeaweedServer, step: str
) -> None:
    def refuse(method: str, target: str) -> bytes | None:
        wanted = {"put": method == "PUT", "multipart": "uploads" in target, "delete": method == "DELETE"}[step]
        return answer(403, code="AccessDenied") if wanted and "doctor-" in target else None

    with LoggingProxy(int(seaweed.endpoint.rsplit(":", 1)[1])) as proxy:
        proxy.fault = refuse
        found = examine(f"s3://data/doctor?endpoint={proxy.url}", writable=True)
    assert (found[-1].name, found[-1].verdict) == (step, Verdict.FAULT), found[-1]
    assert found[-1].way_out
    client = seaweed.client()
    for left in client.list_objects_v2(Bucket="data", Prefix="doctor/.mountkit-doctor").get("Contents", []):
        assert step == "delete", "the probe was left behind"
        client.delete_object(Bucket="data", Key=left["Key"])
