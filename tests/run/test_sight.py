"""Engines with a view of their own of what is mounted: rootless Docker, and the system's from another namespace."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
import pytest

from tests.mount.conftest import Bucket, Result, content, our_processes, wait_until
from tests.mount.conftest import bucket as bucket
from tests.mount.conftest import proxy as proxy

_ROOTLESS = shutil.which("dockerd-rootless.sh") or "/usr/share/docker.io/contrib/dockerd-rootless.sh"
_BUILD = Path(__file__).parents[2] / "containers" / "tiny" / "build.py"
IMAGE = "mountkit/tiny:latest"
_UID = 4711
_LET_GO = """
set -e
findmnt -rn -t fuse.mountkit -o TARGET | while read -r mount; do
    umount -l "$(printf %b "$mount")"
done
"""
"""In a new mount namespace, which would hold the mounts other tests have meanwhile."""
_WORLD = f"""{_LET_GO}
mount --make-rshared /
for file in passwd subuid subgid fuse.conf; do
    touch /etc/$file
    mount --bind "$1/etc/$file" /etc/$file
done
if [ "$(stat -c %a /dev/fuse)" != 666 ]; then
    mount -t tmpfs tmpfs "$1/dev"
    mknod -m 666 "$1/dev/fuse" c 10 229
    mount --bind "$1/dev/fuse" /dev/fuse
fi
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
mount -t tmpfs -o mode=700,uid=$2,gid=$2 tmpfs "$1/unseen"
mount --make-private "$1/unseen"
echo ready
exec sleep infinity
"""
"""An ordinary user who may use FUSE and has user numbers to give away; what is mounted below `unseen` stays here."""


class Rootless:
    """Rootless Docker of an ordinary user, in namespaces of their own that end with us."""

    def __init__(self, base: Path) -> None:
        self._base = base
        for name in ("home", "run", "seen", "unseen", "state"):
            (base / name).mkdir(mode=0o700)
            os.chown(base / name, _UID, _UID)
        for name in ("etc", "dev"):
            (base / name).mkdir()
        passwd = Path("/etc/passwd").read_text()
        (base / "etc/passwd").write_text(f"{passwd}rootless:x:{_UID}:{_UID}::{base}/home:/bin/sh\n")
        for name in ("subuid", "subgid"):
            (base / "etc" / name).write_text("rootless:200000:65536\n")
        (base / "etc/fuse.conf").write_text("user_allow_other\n")
        own = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        words = ["setpriv", "--pdeathsig", "KILL", *own, "sh", "-c", _WORLD, "sh", str(base), str(_UID)]
        self._world = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        assert self._world.stdout and self._world.stdout.readline() == "ready\n"
        (self._init,) = psutil.Process(self._world.pid).children()
        self._log = (base / "log").open("w")
        flags = ["--storage-driver=vfs", "--bridge=none", "--iptables=false"]
        self._engine = subprocess.Popen(
            self._words(["sh", _ROOTLESS, *flags]), env=self.environment("run"), stdout=self._log, stderr=self._log
        )
        wait_until((base / "run" / "docker.sock").exists, seconds=90)

    def environment(self, runtime: str) -> dict[str, str]:
        return {
            "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin:{self._base}",
            "HOME": f"{self._base}/home",
            "XDG_RUNTIME_DIR": f"{self._base}/{runtime}",
            "XDG_STATE_HOME": f"{self._base}/state",
            "TMPDIR": f"{self._base}/run",
            "DOCKER_HOST": f"unix://{self._base}/run/docker.sock",
            # No network: neither slirp4netns nor /dev/net/tun is needed.
            "DOCKERD_ROOTLESS_ROOTLESSKIT_NET": "host",
            "DOCKERD_ROOTLESS_ROOTLESSKIT_PORT_DRIVER": "none",
        }

    def python(self, *words: str, runtime: str = "seen", environment: dict[str, str] | None = None) -> Result:
        # The Python of the tests may lie where an ordinary user may not look.
        looking = ["--inh-caps", "+dac_read_search", "--ambient-caps", "+dac_read_search"]
        done = subprocess.run(
            self._words([sys.executable, *words], looking),
            env={**(environment or {}), **self.environment(runtime)},
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )
        return Result(done.returncode, done.stdout, done.stderr, 0.0)

    def close(self) -> None:
        self._world.kill()  # and with it every process in there
        self._world.communicate()
        self._engine.wait()
        self._log.close()

    def _words(self, words: Sequence[str], caps: Sequence[str] = ()) -> list[str]:
        inside = ["nsenter", f"--target={self._init.pid}", "--mount", "--pid", f"--wd={self._base}"]
        user = ["setpriv", f"--reuid={_UID}", f"--regid={_UID}", "--clear-groups", *caps]
        return [*inside, *user, *words]


@pytest.fixture(scope="module")
def rootless() -> Iterator[Rootless]:
    base = Path(tempfile.mkdtemp(prefix="rootless-"))  # pytest's own directories are closed to ordinary users
    base.chmod(0o755)
    engine = Rootless(base)
    try:
        built = engine.python(str(_BUILD))
        assert built.code == 0, built.err
        yield engine
    finally:
        engine.close()
        shutil.rmtree(base)


def test_a_container_of_rootless_docker_reads_and_writes_the_bucket(bucket: Bucket, rootless: Rootless) -> None:
    bucket.put("in/a", content(1, 100_000))
    words = ("--input", f"{_below(bucket, 'in')}:/in", "--output", f"{_below(bucket, 'out')}:/out", IMAGE)
    script = "id -u; cp /in/a /out/b; exit 42"
    result = rootless.python("-m", "mountkit", "run", *words, "sh", "-c", script, environment=bucket.environment)
    assert (result.code, result.out) == (42, "0\n"), result.err
    assert bucket.head("out/b")["ContentLength"] == 100_000


def test_a_user_of_a_container_of_rootless_docker_who_is_neither_root_nor_we_reads_the_bucket(
    bucket: Bucket, rootless: Rootless
) -> None:
    bucket.put("in/a", b"read by another")
    words = ("--input", f"{_below(bucket, 'in')}:/in", "--user", "1234", IMAGE, "cat", "/in/a")
    result = rootless.python("-m", "mountkit", "run", *words, environment=bucket.environment)
    assert (result.code, result.out) == (0, "read by another"), result.err


def test_an_engine_that_does_not_see_the_mount_starts_nothing(bucket: Bucket, rootless: Rootless) -> None:
    bucket.put("in/a", b"a")
    words = ("-m", "mountkit", "run", "--input", f"{_below(bucket, 'in')}:/in", IMAGE, "ls", "/in")
    result = rootless.python(*words, runtime="unseen", environment=bucket.environment)
    _assert_unseen(result)


def test_an_engine_whose_process_is_out_of_sight_is_asked_what_it_sees(
    bucket: Bucket, tiny_image: str, tmp_path: Path
) -> None:
    bucket.put("in/a", b"a")
    environment = {**bucket.environment, "XDG_STATE_HOME": str(tmp_path / "state")}
    environment["PATH"] = f"{environment.get('PATH', os.defpath)}:{tmp_path}"
    words = ["--cache", str(tmp_path / "cache"), "--output", f"{_below(bucket, 'out')}:/out", tiny_image, "ls", "/out"]
    own = ["unshare", "--mount", "--pid", "--fork", "--mount-proc", "sh", "-c", f'{_LET_GO} exec "$@"', "sh"]
    done = subprocess.run(
        [*own, sys.executable, "-m", "mountkit", "run", *words],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    _assert_unseen(Result(done.returncode, done.stdout, done.stderr, 0.0))
    wait_until(lambda: not our_processes(tmp_path), seconds=15)


def _below(bucket: Bucket, name: str) -> str:
    place, separator, settings = bucket.source.partition("?")
    return f"{place}/{name}{separator}{settings}"


def _assert_unseen(result: Result) -> None:
    assert (result.code, result.out) == (6, ""), result.err
    error, hint = result.err.splitlines()
    assert error.startswith("error: the container engine at unix://")
    assert "does not see the mount of s3://" in error
    assert "mount --make-rshared" in hint
