"""The programs that are compared: how each is started on a bucket, what it costs, how it is stopped.

Peers run with the settings under which they did best in this work, not with their defaults.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.bench.endpoint import NotInstalledError

_MOUNT_S, _UNMOUNT_S = 30.0, 60.0
_COMMANDS = {
    "mountkit": "mountkit mount s3://{bucket} {dir} --cache {cache} --endpoint {url} --region us-east-1 --foreground",
    "s3fs": "s3fs {bucket} {dir} -f -o ro,passwd_file={password},url={url},use_path_request_style,use_cache={cache},"
    "max_stat_cache_size=2000000",
    "rclone": "rclone mount bench:{bucket} {dir} --read-only --vfs-cache-mode full --cache-dir {cache} "
    "--vfs-read-chunk-streams 16 --vfs-read-chunk-size 8M --dir-cache-time 1h --transfers 16 --use-server-modtime",
}
_COPY = "s5cmd --endpoint-url {url} --numworkers 128 cp {flags} s3://{bucket}/{what} {to}/"


def environment(url: str) -> dict[str, str]:
    """The variables under which all of them find the endpoint; it checks no signature."""
    return {
        **os.environ,
        "AWS_ACCESS_KEY_ID": "BENCH",
        "AWS_SECRET_ACCESS_KEY": "BENCH",
        "AWS_REGION": "us-east-1",
        "RCLONE_CONFIG_BENCH_TYPE": "s3",
        "RCLONE_CONFIG_BENCH_PROVIDER": "Other",
        "RCLONE_CONFIG_BENCH_ENV_AUTH": "true",
        "RCLONE_CONFIG_BENCH_ENDPOINT": url,
        "RCLONE_CONFIG_BENCH_REGION": "us-east-1",
        "RCLONE_CONFIG_BENCH_LIST_VERSION": "2",
    }


def require(names: list[str]) -> None:
    """Raises NotInstalledError for the first program that is not on the PATH."""
    for name in names:
        if not shutil.which(name):
            raise NotInstalledError(f"`{name}` is not installed; leave it out with --peers")


def drop_page_cache() -> None:
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


@dataclass(frozen=True)
class Cost:
    """CPU seconds so far and memory now (proportional set size) of a mounter's processes."""

    cpu_s: float
    pss_mb: float


class Mount:
    """One mounter on one bucket, with an empty cache unless it is told to `keep` the last one's."""

    def __init__(
        self, who: str, bucket: str, url: str, base: Path, *, keep: bool = False, flags: tuple[str, ...] = ()
    ) -> None:
        self.who, self.directory, cache = who, base / f"mnt-{who}", base / f"cache-{who}"
        self.url = url
        self.directory.mkdir(exist_ok=True)
        if not keep:
            shutil.rmtree(cache, ignore_errors=True)
        cache.mkdir(exist_ok=True)
        password = base / "password"
        password.write_text("BENCH:BENCH\n")
        password.chmod(0o600)
        command = _COMMANDS[who].format(bucket=bucket, dir=self.directory, cache=cache, url=url, password=password)
        began = time.perf_counter()
        with (base / f"{who}.log").open("ab") as log:
            words = [*shlex.split(command), *flags]
            self.process = subprocess.Popen(words, env=environment(url), stdout=log, stderr=log)
        while not os.path.ismount(self.directory):
            if self.process.poll() is not None or time.perf_counter() - began > _MOUNT_S:
                raise RuntimeError(f"{who} did not mount; see {base}/{who}.log")
            time.sleep(0.01)
        self.mount_s = time.perf_counter() - began

    def __enter__(self) -> Mount:
        return self

    def __exit__(self, *exc: object) -> None:
        subprocess.run(["umount", self.directory], check=False)
        try:
            self.process.wait(_UNMOUNT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def cost(self) -> Cost:
        top = psutil.Process(self.process.pid)
        cpu_s = pss_mb = 0.0
        for process in [top, *top.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):  # helpers of the start come and go
                cpu_s += sum(process.cpu_times()[:2])
                pss_mb += process.memory_full_info().pss / 1e6
        return Cost(cpu_s, pss_mb)


def copy(bucket: str, what: str, url: str, base: Path, *, flags: str = "") -> float:
    """How many seconds s5cmd takes to copy objects to disk: the limit for a cold epoch and a cold file."""
    to = base / "copied"
    shutil.rmtree(to, ignore_errors=True)
    to.mkdir()
    words = shlex.split(_COPY.format(url=url, bucket=bucket, what=what, to=to, flags=flags))
    began = time.perf_counter()
    subprocess.run(words, env=environment(url), check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - began
    shutil.rmtree(to)
    return seconds
