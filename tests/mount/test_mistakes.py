"""The common mistakes: each ends soon, names its cause and a way out, and leaves nothing behind.

Other suites may mount on this machine at the same time, so "nothing left" is about our own: every process of a mount
inherits PATH, and the PATH of these tests names a directory of the test's.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from email.utils import formatdate
from pathlib import Path

import psutil
import pytest

from mountkit import mountinfo
from mountkit.errors import HostError
from mountkit.serve import session
from tests.mount.conftest import Bucket, CommandLine, Result, held_in_another_namespace, our_processes, wait_until
from tests.servers import SeaweedServer, free_ports
from tests.store.raw_server import RawServer, answer

_LIMIT_S = 15
_RUNTIME = Path("/run/mountkit")
_SECRET = "a-secret/nobody+may=see"
_NO_CREDENTIALS = dict.fromkeys(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"))


@dataclass
class Scene:
    """What a mistake is made with. `mounts` are those a test has made on purpose."""

    line: CommandLine
    bucket: Bucket
    server: SeaweedServer
    directory: Path
    sockets: set[str]
    silent: socket.socket
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def base(self) -> Path:
        return self.line.base

    @property
    def black_hole(self) -> str:
        """An endpoint that takes connections and never says a word."""
        return f"http://127.0.0.1:{self.silent.getsockname()[1]}"

    def run(self, *words: str, **changed: str | None) -> Result:
        merged = {**self.line.environment, **changed}
        environment = {name: value for name, value in merged.items() if value is not None}
        return self.line.run(*words, environment=environment)

    def mount(self, source: str, *flags: str, at: Path | None = None, **changed: str | None) -> Result:
        cache = () if "--cache" in flags else ("--cache", str(self.line.cache))
        at = at or self.directory
        result = self.run("mount", source, str(at), *cache, *flags, **changed)
        if result.code == 0 and at not in self.line.mounted:
            self.line.mounted.append(at)  # taken down whatever the test says of it
        return result

    def at(self, endpoint: str, *flags: str, **changed: str | None) -> Result:
        return self.mount(f"s3://data?endpoint={endpoint}", *flags, at=None, **changed)

    def processes(self) -> list[str]:
        """The processes of this test's mounts."""
        return [f"{pid}: {line}" for pid, line in our_processes(self.base).items()]

    def mounts(self) -> list[str]:
        return [m.directory for m in mountinfo.ours() if m.directory.startswith(f"{self.base}/")]

    def dead_sockets(self) -> list[str]:
        """Sockets that came since the test began and lead to nobody."""
        return sorted(name for name in _socket_names() - self.sockets if _leads_nowhere(_RUNTIME / name))

    def assert_nothing_is_left(self) -> None:
        wait_until(lambda: not self.processes(), seconds=5)
        assert self.mounts() == []
        wait_until(lambda: not self.dead_sockets(), seconds=5)


def _socket_names() -> set[str]:
    return {path.name for path in _RUNTIME.glob("*.sock")}


def _leads_nowhere(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return True
        except OSError:
            return False  # gone meanwhile
    return False


@pytest.fixture
def scene(bucket: Bucket, mountkit: CommandLine, seaweed: SeaweedServer) -> Iterator[Scene]:
    directory = mountkit.base / "m"
    directory.mkdir()
    mountkit.environment = {
        **mountkit.environment,
        "HOME": str(mountkit.base),  # no ~/.aws of whoever runs the tests
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    with socket.create_server(("127.0.0.1", 0), backlog=64) as silent:
        yield Scene(mountkit, bucket, seaweed, directory, _socket_names(), silent)


def _assert_refused(result: Result, code: int, *names: str) -> None:
    """The form every failure has: soon, its exit code, one `error:` line, one `hint:` line, no secret."""
    lines = result.err.splitlines()
    assert result.code == code, result.err
    assert result.seconds < _LIMIT_S
    assert len(lines) == 2, result.err
    assert lines[0].startswith("error: ")
    assert lines[1].startswith("hint: ")
    assert len(lines[1]) > len("hint: ")
    for name in names:
        assert name.lower() in result.err.lower(), result.err
    for secret in (_SECRET, SeaweedServer.secret_key):
        assert secret not in result.err + result.out
    assert "Traceback" not in result.err
    assert result.out == ""


# ---- the bucket ----------------------------------------------------------------------------------------------
def _wrong_region(scene: Scene) -> Result:
    """moto and SeaweedFS take any region; this says what S3 says."""
    said = answer(400, code="AuthorizationHeaderMalformed", region="eu-central-1")
    with RawServer(lambda _: [said]) as server:
        return scene.at(server.endpoint, "--region", "us-west-2")


def _no_credentials(scene: Scene) -> Result:
    empty = scene.base / "empty-home"
    empty.mkdir()
    return scene.mount(scene.bucket.source, **_NO_CREDENTIALS, HOME=str(empty))


def _says(scene: Scene, status: int, code: str, *, minutes_off: float = 0) -> Result:
    """A bucket whose every answer is this refusal, dated so that our clock is off by so much."""
    date = formatdate(time.time() - 60 * minutes_off, usegmt=True)
    with RawServer(lambda _: [answer(status, code=code, headers={"Date": date})]) as server:
        return scene.at(server.endpoint)


def _over_tls(scene: Scene, scheme: str) -> Result:
    """A server with a certificate of its own making."""
    path = scene.base / "certificate.pem"
    subject = ("-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1")
    made = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", path, "-out", f"{path}.crt")
    subprocess.run(["openssl", "req", "-x509", *made, *subject, "-days", "2"], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(f"{path}.crt", path)
    with RawServer(lambda _: [answer(200)], context) as server:
        return scene.at(f"{scheme}://127.0.0.1:{server.port}")


def _bundle_of_nothing(scene: Scene) -> Result:
    path = scene.base / "bundle.pem"
    path.write_text("no certificate")
    return scene.at("https://127.0.0.1:1", AWS_CA_BUNDLE=str(path))


STORE: dict[str, tuple[Callable[[Scene], Result], tuple[str, ...]]] = {
    "unknown bucket": (
        lambda s: s.mount(f"s3://not-there-at-all?endpoint={s.server.endpoint}"),
        ("there is no bucket `not-there-at-all`",),
    ),
    "wrong access key": (
        lambda s: s.mount(s.bucket.source, AWS_ACCESS_KEY_ID="AKIANOBODYKNOWSTHIS"),
        ("does not know the access key", "AWS_ACCESS_KEY_ID"),
    ),
    "wrong secret": (
        lambda s: s.mount(s.bucket.source, AWS_SECRET_ACCESS_KEY=_SECRET),
        ("the secret does not fit the access key", "AWS_SECRET_ACCESS_KEY"),
    ),
    "no credentials": (_no_credentials, ("no credentials",)),
    "unknown profile": (
        lambda s: s.mount(s.bucket.source, "--profile", "nobody-has-it", **_NO_CREDENTIALS),
        ("profile", "nobody-has-it"),
    ),
    "refused port": (lambda s: s.at(f"http://127.0.0.1:{free_ports(1)[0]}"), ("connection refused", "port")),
    "unknown host": (lambda s: s.at("http://no-such-host.invalid:9000"), ("no-such-host.invalid", "not resolve")),
    "black hole": (lambda s: s.at(s.black_hole), ("127.0.0.1",)),
    "TLS against a plain port": (
        lambda s: s.at(s.server.endpoint.replace("http:", "https:")),
        ("does not speak TLS", "http://"),
    ),
    "no TLS against a TLS port": (lambda s: _over_tls(s, "http"), ("127.0.0.1", "speaks TLS", "https://")),
    "bad certificate": (lambda s: _over_tls(s, "https"), ("certificate", "not trusted", "AWS_CA_BUNDLE")),
    "expired token": (lambda s: _says(s, 400, "ExpiredToken"), ("has expired", "log in again")),
    "no permission to list": (lambda s: _says(s, 403, "AccessDenied"), ("may not list", "s3:ListBucket")),
    "clock 20 minutes ahead": (
        lambda s: _says(s, 403, "RequestTimeTooSkewed", minutes_off=20),
        ("clock is off by 20 minutes (ahead)", "NTP"),
    ),
    "clock 20 minutes behind": (
        lambda s: _says(s, 403, "RequestTimeTooSkewed", minutes_off=-20),
        ("clock is off by 20 minutes (behind)", "NTP"),
    ),
    "wrong region": (_wrong_region, ("eu-central-1", "us-west-2", "drop `--region us-west-2`")),
}


@pytest.mark.parametrize("name", STORE)
def test_a_bucket_that_cannot_be_had_is_a_sentence_and_a_hint(scene: Scene, name: str) -> None:
    """What may stay is the state directory: its log says more, and the next mount uses it."""
    make, words = STORE[name]
    result = make(scene)
    _assert_refused(result, 7, f"at `{scene.directory}`", *words)
    scene.assert_nothing_is_left()
    left = {path.name for path in scene.line.cache.rglob("*") if path.is_file()}
    assert left <= {"mountkit.log", "mover.lock"}


# ---- words ---------------------------------------------------------------------------------------------------
_CREDENTIALS_URL = f"AKIAKEY:{_SECRET}@host"
FLAGS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "malformed size": (("--cache-size", "lots"), ("--cache-size", "`lots`", "50GB")),
    "negative size": (("--cache-size", "-5GB"), ("--cache-size", "`-5GB`")),
    "malformed TTL": (("--ttl", "soon"), ("--ttl", "`soon`", "60s")),
    "malformed share": (("--cache-free", "5"), ("--cache-free", "5%")),
    "malformed uid": (("--uid", "nobody"), ("--uid", "`nobody`")),
    "malformed umask": (("--umask", "999"), ("--umask", "`999`")),
    "malformed choice": (("--verify", "never"), ("--verify", "`never`", "once", "always")),
    "too many servers": (("--servers", "99"), ("--servers", "99")),
    "endpoint without scheme": (("--endpoint", "127.0.0.1:9000"), ("127.0.0.1:9000", "has no scheme", "http://")),
    "endpoint with credentials": (("--endpoint", f"http://{_CREDENTIALS_URL}:90"), ("endpoint", "credentials")),
    "the same without scheme": (("--endpoint", _CREDENTIALS_URL), ("endpoint", "credentials")),
    "the same with a bad port": (("--endpoint", "http://k:topsecret@host:port"), ("endpoint", "credentials")),
    "unknown option": (("--cache-sice", "5GB"), ("--cache-sice", "mount --help")),
    "option without value": (("--ttl",), ("--ttl", "requires an argument", "--help")),
    "unknown -o word": (("-o", "cache_sice=5GB"), ("`cache-sice`", "did you mean `cache-size`")),
    "-o word like nothing": (("-o", "ro,zzz"), ("`zzz`", "mount --help")),
    "one argument too many": (("more",), ("more", "mount --help")),
}


@pytest.mark.parametrize("name", FLAGS)
def test_flags_that_make_no_sense_are_named_and_nothing_is_made(scene: Scene, name: str) -> None:
    flags, words = FLAGS[name]
    result = scene.mount(scene.bucket.source, *flags)
    _assert_refused(result, 2, *words)
    assert "topsecret" not in result.err
    scene.assert_nothing_is_left()
    assert not scene.line.cache.exists()


SOURCES: dict[str, tuple[str, tuple[str, ...]]] = {
    "scheme": ("gopher://x", ("gopher://", "s3://")),
    "setting": ("s3://data?regin=x", ("`regin`", "region")),
    "secret setting": (f"s3://data?secret_key={_SECRET}", ("`secret_key`",)),
    "no bucket": ("s3://", ("bucket name",)),
    "space": ("s3://a b", ("bucket name",)),
    "empty": ("", ("source is empty",)),
    "credentials": (f"s3://{_CREDENTIALS_URL.replace('/', '-')}", ("credentials", "AWS_ACCESS_KEY_ID")),
    "credentials and scheme": ("https://AKIAKEY:topsecret@data", ("credentials",)),
    "endpoint": ("s3://data?endpoint=ftp://x", ("ftp://x", "endpoint")),
    "truth": ("s3://data?anonymous=perhaps", ("anonymous=perhaps",)),
}


@pytest.mark.parametrize("name", SOURCES)
def test_a_source_that_makes_no_sense_is_named_without_its_secrets(scene: Scene, name: str) -> None:
    source, words = SOURCES[name]
    result = scene.mount(source)
    _assert_refused(result, 2, *words)
    assert "topsecret" not in result.err
    assert _SECRET.replace("/", "-") not in result.err
    scene.assert_nothing_is_left()
    assert not scene.line.cache.exists()


@pytest.mark.parametrize("words", [("mount",), ("mount", "data"), ("unmount",), ("refresh",), ("warm",), ("run",)])
def test_missing_arguments_are_named(scene: Scene, words: tuple[str, ...]) -> None:
    _assert_refused(scene.run(*words), 2, "missing argument", f"{words[0]} --help")


def test_an_unknown_command_is_named(scene: Scene) -> None:
    _assert_refused(scene.run("mont"), 2, "mont", "--help")


# ---- directories ---------------------------------------------------------------------------------------------
def _file(scene: Scene) -> Path:
    path = scene.base / "file"
    path.write_text("x")
    return path


def _full(scene: Scene) -> Path:
    path = scene.base / "full"
    path.mkdir()
    (path / "x").write_text("x")
    return path


POINTS: dict[str, tuple[Callable[[Scene], Path], tuple[str, ...]]] = {
    "missing": (lambda s: s.base / "none", ("does not exist", "mkdir -p")),
    "a file": (_file, ("is a file",)),
    "not empty": (_full, ("is not empty",)),
}


@pytest.mark.parametrize("name", POINTS)
def test_an_unusable_mount_point_is_named_and_nothing_is_made(scene: Scene, name: str) -> None:
    make, words = POINTS[name]
    directory = make(scene)
    _assert_refused(scene.mount(scene.bucket.source, at=directory), 2, str(directory), *words)
    scene.assert_nothing_is_left()
    assert not scene.line.cache.exists()


def test_a_bundle_without_a_certificate_is_named(scene: Scene) -> None:
    _assert_refused(_bundle_of_nothing(scene), 2, "bundle.pem", "holds no certificate", "AWS_CA_BUNDLE")
    scene.assert_nothing_is_left()


def test_a_machine_without_root_certificates_mounts_a_bucket_without_tls(scene: Scene) -> None:
    """obstore refuses to be made where the system has none: seen as `the mover ended at its start`."""
    scene.bucket.put("x", b"x")
    nowhere = str(scene.base / "nowhere")
    none = dict.fromkeys(("AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"))
    result = scene.mount(scene.bucket.source, **none, SSL_CERT_FILE=nowhere, SSL_CERT_DIR=nowhere)
    assert result.code == 0, result.err
    assert (scene.directory / "x").read_bytes() == b"x"


def test_an_object_that_may_not_be_read_is_refused_and_named_in_the_log(scene: Scene) -> None:
    scene.bucket.put("x", b"x")
    lister = {
        "AWS_ACCESS_KEY_ID": scene.server.lister_access_key,
        "AWS_SECRET_ACCESS_KEY": scene.server.lister_secret_key,
    }
    result = scene.mount(scene.bucket.source, **lister)
    assert result.code == 0, result.err
    assert os.listdir(scene.directory) == ["x"]
    with pytest.raises(PermissionError):
        (scene.directory / "x").read_bytes()
    assert "may not read" in Path(scene.line.status(scene.directory)["log"]).read_text()


# ---- this machine --------------------------------------------------------------------------------------------
def _other_users(scene: Scene) -> Path:
    cache = scene.line.cache
    (cache / f"mountkit-{os.getuid()}").mkdir(parents=True, mode=0o700)
    os.chown(cache / f"mountkit-{os.getuid()}", 65534, 65534)
    return cache


def _symlink(scene: Scene) -> Path:
    cache = scene.line.cache
    cache.mkdir()
    (scene.base / "elsewhere").mkdir()
    (cache / f"mountkit-{os.getuid()}").symlink_to(scene.base / "elsewhere")
    return cache


def _group_writable(scene: Scene) -> Path:
    cache = scene.line.cache
    (cache / f"mountkit-{os.getuid()}").mkdir(parents=True)
    (cache / f"mountkit-{os.getuid()}").chmod(0o770)
    return cache


CACHES: dict[str, tuple[Callable[[Scene], Path], tuple[str, ...]]] = {
    "below a file": (lambda s: _file(s) / "c", ("cannot be used", "writable directory")),
    "read-only": (lambda _: Path("/proc/sys/mountkit-cache"), ("cannot be used", "writable directory")),
    "another user's": (_other_users, ("belongs to user 65534",)),
    "a symlink": (_symlink, ("is a symlink",)),
    "group-writable": (_group_writable, ("may be written by others (mode 0770)",)),
}


@pytest.mark.parametrize("name", CACHES)
def test_a_cache_directory_that_is_not_safe_or_not_writable_is_refused(scene: Scene, name: str) -> None:
    make, words = CACHES[name]
    result = scene.mount(scene.bucket.source, "--cache", str(make(scene)))
    _assert_refused(result, 5, "--cache", *words)
    scene.assert_nothing_is_left()


def test_a_machine_without_fusermount3_is_told_what_to_install(scene: Scene) -> None:
    bare = scene.base / "bin"
    bare.mkdir()
    result = scene.mount(scene.bucket.source, PATH=f"{bare}:{scene.base}")
    _assert_refused(result, 5, "fusermount3 is not installed", "apt-get install fuse3")
    scene.assert_nothing_is_left()


def test_a_machine_without_dev_fuse_is_told_how_to_get_it(scene: Scene) -> None:
    """In a mount namespace of its own, whose /dev lacks it."""
    command = [sys.executable, "-m", "mountkit", "mount", scene.bucket.source, str(scene.directory)]
    hide = 'mkdir "$0" && touch "$0/null" && mount --bind /dev/null "$0/null" && mount --rbind "$0" /dev && exec "$@"'
    words = ["unshare", "-m", "sh", "-c", hide, str(scene.base / "dev"), *command, "--cache", str(scene.line.cache)]
    started = time.monotonic()
    done = subprocess.run(words, env=scene.line.environment, capture_output=True, text=True, check=False)
    result = Result(done.returncode, done.stdout, done.stderr, time.monotonic() - started)
    _assert_refused(result, 5, "no /dev/fuse", "modprobe fuse", "--device /dev/fuse")
    scene.assert_nothing_is_left()


def test_allow_other_is_refused_where_the_administrator_did_not_permit_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 1000)
    monkeypatch.setattr(os, "access", lambda *_: True)
    monkeypatch.setattr(session, "_user_allow_other", lambda: False)
    session.check_host(allow_other=False)
    with pytest.raises(HostError) as refused:
        session.check_host(allow_other=True)
    assert "user_allow_other" in refused.value.hint


def test_a_password_file_others_can_read_is_refused(scene: Scene) -> None:
    path = scene.base / "passwd"
    path.write_text(f"AKIAKEY:{_SECRET}\n")
    path.chmod(0o644)
    _assert_refused(scene.mount(scene.bucket.source, "--passwd-file", str(path)), 2, f"chmod 600 {path}")
    scene.assert_nothing_is_left()


def test_a_password_file_is_used_instead_of_the_environment(scene: Scene) -> None:
    path = scene.base / "passwd"
    path.write_text(f"{scene.server.access_key}:{scene.server.secret_key}\n")
    path.chmod(0o600)
    result = scene.mount(scene.bucket.source, "--passwd-file", str(path), AWS_SECRET_ACCESS_KEY="wrong")
    assert result.code == 0, result.err


def test_what_is_mounted_already_is_fine_and_what_would_disturb_it_is_refused(scene: Scene) -> None:
    scene.bucket.put("d/x", b"x")
    root = scene.line.mount(scene.bucket.source)
    again = scene.mount(scene.bucket.source)
    assert again.code == 0
    assert "already" in again.err
    other = scene.mount(f"s3://data/other?endpoint={scene.server.endpoint}")
    _assert_refused(other, 3, "already", f"mountkit unmount {root}")
    inside = scene.mount(scene.bucket.source, at=root / "d")
    _assert_refused(inside, 2, f"inside the mount {root}")
    elsewhere = scene.base / "elsewhere"
    elsewhere.mkdir()
    cached = scene.mount(scene.bucket.source, "--cache", str(root / "c"), at=elsewhere)
    _assert_refused(cached, 2, f"inside the mount {root}", "--cache")
    assert scene.mounts() == [str(root)]
    assert (root / "d/x").read_bytes() == b"x"
    scene.line.unmount(root)
    scene.assert_nothing_is_left()


@pytest.mark.parametrize("command", ["unmount", "status", "refresh", "warm"])
def test_commands_about_no_mount_say_so(scene: Scene, command: str) -> None:
    _assert_refused(scene.run(command, str(scene.directory)), 2, str(scene.directory), "mountkit status")


@pytest.mark.parametrize("flags", [(), ("--writable",)], ids=["read-only", "writable"])
def test_unmount_waits_for_a_container_that_only_just_starts(scene: Scene, flags: tuple[str, ...]) -> None:
    """Until it has changed its root, a container that has nothing to do with us has all mounts of the host."""
    root = scene.line.mount(scene.bucket.source, *flags)
    with held_in_another_namespace(root, "private", seconds=0.5):
        scene.line.unmount(root)


def test_unmount_names_the_process_that_holds_the_mount(scene: Scene) -> None:
    root = scene.line.mount(scene.bucket.source)
    with subprocess.Popen(["sleep", "60"], cwd=root) as holder:
        try:
            _assert_refused(scene.run("unmount", str(root)), 4, f"sleep (pid {holder.pid})", "--force")
            assert os.listdir(root) == []
        finally:
            holder.kill()
    scene.line.unmount(root)
    scene.assert_nothing_is_left()


# ---- ends ----------------------------------------------------------------------------------------------------
def test_ctrl_c_while_mounting_leaves_nothing(scene: Scene) -> None:
    source = f"s3://data?endpoint={scene.black_hole}"
    command = [sys.executable, "-m", "mountkit", "mount", source, str(scene.directory)]
    mounting = subprocess.Popen(
        [*command, "--cache", str(scene.line.cache)], env=scene.line.environment, stderr=subprocess.PIPE, text=True
    )
    scene.silent.settimeout(20)
    asked, _ = scene.silent.accept()  # the mover waits for the bucket now
    with asked:
        mounting.send_signal(signal.SIGINT)
        _, err = mounting.communicate(timeout=_LIMIT_S)
        assert mounting.returncode == 130
        assert err.split() == ["stopped"]
        scene.assert_nothing_is_left()


def test_secrets_are_in_no_arguments_environment_log_or_status(scene: Scene) -> None:
    scene.bucket.put("x", b"x")
    root = scene.line.mount(scene.bucket.source)
    assert (root / "x").read_bytes() == b"x"
    secret = scene.server.secret_key.encode()
    status = scene.line.status(root)
    pids = (status["keeper_pid"], status["mover_pid"], *status["server_pids"])
    assert len(set(pids)) == len(pids) >= 4
    for pid in pids:
        for name in ("cmdline", "environ"):
            assert secret not in Path(f"/proc/{pid}/{name}").read_bytes(), (pid, name)
    for path in scene.line.cache.rglob("*"):
        assert not path.is_file() or secret not in path.read_bytes(), path
    assert Path(status["log"]).stat().st_size > 0
    for words in (("status",), ("status", "--json")):
        assert secret.decode() not in scene.run(*words).out


def _two_mounts(scene: Scene) -> tuple[Path, Path, int]:
    scene.bucket.put("x", b"x")
    scene.bucket.put("y", b"y")
    one, two = scene.line.mount(scene.bucket.source), scene.line.mount(scene.bucket.source, name="m2")
    movers = {scene.line.status(root)["mover_pid"] for root in (one, two)}
    assert len(movers) == 1
    return one, two, movers.pop()


@contextlib.contextmanager
def _ended_at_last(pid: int) -> Iterator[None]:
    """A mover that stays for ever must not disturb the tests that follow."""
    mover = psutil.Process(pid)
    try:
        yield
    finally:
        if mover.is_running():  # this very process, not another one with its number
            mover.kill()


def test_two_mounts_of_one_source_share_a_mover_and_one_outlives_the_other(scene: Scene) -> None:
    one, two, mover = _two_mounts(scene)
    with _ended_at_last(mover):
        assert (two / "x").read_bytes() == b"x"
        scene.line.unmount(one)
        assert (two / "y").read_bytes() == b"y", "a cold read needs the mover"
        assert scene.line.status(two)["mover_pid"] == mover
        scene.line.unmount(two)


def test_a_shared_mover_ends_with_its_last_mount(scene: Scene) -> None:
    one, two, mover = _two_mounts(scene)
    with _ended_at_last(mover):
        scene.line.unmount(one)
        scene.line.unmount(two)
        scene.assert_nothing_is_left()
