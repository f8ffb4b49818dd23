"""The other commands on real mounts: warm, refresh of a part, run with a real container, unmount of a busy mount."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mount.conftest import Bucket, CommandLine, content, held_in_another_namespace, kill, settled, wait_until


def test_warm_brings_a_tree_into_the_cache_and_nothing_else(bucket: Bucket, mountkit: CommandLine) -> None:
    objects = {f"train/c{n % 3}/{n}": content(n, 40_000) for n in range(60)} | {"train/big": content(1, 20_000_000)}
    for key, data in (objects | {"other/x": b"no"}).items():
        bucket.put(key, data)
    root = mountkit.mount(bucket.source)
    result = mountkit.run("warm", str(root / "train"))
    assert result.code == 0, result.err
    assert "61 files" in result.err
    bucket.proxy.requests.clear()
    for key, data in objects.items():
        assert (root / key).read_bytes() == data
    assert bucket.proxy.count("GET") == 0
    assert (root / "other/x").read_bytes() == b"no"
    assert bucket.proxy.count("GET") == 1


def test_ctrl_c_stops_a_warm_and_keeps_what_has_arrived(bucket: Bucket, mountkit: CommandLine) -> None:
    """The network stands still meanwhile: what comes after it moves again was on its way before."""
    files = 600
    for n in range(files):
        bucket.put(f"d/{n}", content(n, 20_000))
    root = mountkit.mount(bucket.source)
    command = [sys.executable, "-m", "mountkit", "warm", str(root)]
    warm = subprocess.Popen(command, env=mountkit.environment, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: bucket.proxy.count("GET") >= 20)
    bucket.proxy.freeze()
    try:
        warm.send_signal(signal.SIGINT)
        _, err = warm.communicate(timeout=30)
    finally:
        bucket.proxy.thaw()
    assert warm.returncode == 130
    assert "Traceback" not in err
    assert settled(lambda: bucket.proxy.count("GET")) < files, "the mover went on after Ctrl-C"
    assert mountkit.status(root)["state"] == "ok"


def test_a_file_that_cannot_be_fetched_is_named_and_the_rest_is_warm(bucket: Bucket, mountkit: CommandLine) -> None:
    for n in range(5):
        bucket.put(f"d/{n}", content(n, 1000))
    root = mountkit.mount(bucket.source)
    os.listdir(root / "d")
    bucket.delete("d/3")
    result = mountkit.run("warm", str(root))
    assert result.code != 0
    assert "d/3" in result.err
    assert "Traceback" not in result.err
    for n in (0, 1, 2, 4):
        assert (root / f"d/{n}").read_bytes() == content(n, 1000)


def test_refresh_of_a_part_leaves_the_rest(bucket: Bucket, mountkit: CommandLine) -> None:
    for key in ("a/x", "b/x"):
        bucket.put(key, b"old")
    root = mountkit.mount(bucket.source, "--ttl", "1h")
    assert [(root / d / "x").read_bytes() for d in "ab"] == [b"old"] * 2
    for key in ("a/x", "b/x"):
        bucket.put(key, b"newer")
    result = mountkit.run("refresh", str(root / "a"))
    assert result.code == 0, result.err
    assert (root / "a/x").read_bytes() == b"newer"
    assert (root / "b/x").read_bytes() == b"old"


def test_a_container_reads_the_bucket_and_its_exit_code_comes_through(
    bucket: Bucket, mountkit: CommandLine, tiny_image: str, tmp_path: Path
) -> None:
    bucket.put("train/a.txt", b"hello from the bucket\n")
    script = "cat /in/a.txt; cp /in/a.txt /out/b.txt; touch /in/no 2>/dev/null && exit 1; exit 42"
    out = tmp_path / "out"
    source = bucket.source.replace("?", "/train?")
    words = ("--cache", str(mountkit.cache), "--input", f"{source}:/in", "--output", f"{out}:/out")
    result = mountkit.run("run", *words, tiny_image, "sh", "-c", script, timeout=90)
    assert result.code == 42, result.err
    assert result.out == "hello from the bucket\n"
    assert (out / "b.txt").read_text() == "hello from the bucket\n"
    wait_until(lambda: not mountkit.processes())


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("files", "epochs", "deaths"), [(400, 6, 3), pytest.param(5000, 2, 5, marks=pytest.mark.soak)], ids=["400", "5000"]
)
def test_a_container_does_not_notice_that_servers_mover_and_keeper_are_killed(
    bucket: Bucket, mountkit: CommandLine, tiny_image: str, files: int, epochs: int, deaths: int
) -> None:
    right = hashlib.sha256()
    for n in range(files):
        bucket.put(f"{n:04d}", content(n, 60_000))
        right.update(content(n, 60_000))
    root = mountkit.mount(bucket.source, "--allow-other")
    script = f"i=0; while [ $i -lt {epochs} ]; do cat /in/* | sha256sum || exit 9; i=$((i+1)); done"
    command = [sys.executable, "-m", "mountkit", "run", "--input", f"{root}:/in", tiny_image, "sh", "-c", script]
    container = subprocess.Popen(
        command, env=mountkit.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    for death in range(deaths):
        opened = files * epochs * death // (2 * deaths)
        wait_until(lambda least=opened: mountkit.status(root)["reads"]["opens"] >= least, seconds=60)  # type: ignore[misc]
        before = mountkit.status(root)
        kill(before["server_pids"][1])
        kill(before["mover_pid"])
        if death == deaths - 1:
            kill(before["keeper_pid"])
        gone = {None, before["mover_pid"]}  # None: no keeper is there to tell
        wait_until(lambda gone=gone: mountkit.status(root).get("mover_pid") not in gone)  # type: ignore[misc]
    out, err = container.communicate(timeout=120)
    assert container.returncode == 0, err
    assert out.splitlines() == [f"{right.hexdigest()}  -"] * epochs


def test_unmount_names_the_container_that_holds_the_mount(
    bucket: Bucket, mountkit: CommandLine, tiny_image: str
) -> None:
    bucket.put("x", b"x")
    root = mountkit.mount(bucket.source, "--allow-other")
    command = [sys.executable, "-m", "mountkit", "run", "--input", f"{root}:/in", "--name", f"held-{os.getpid()}"]
    holder = subprocess.Popen(
        [*command, tiny_image, "sh", "-c", "echo ready; sleep 60"],
        env=mountkit.environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "ready\n"
    result = mountkit.run("unmount", str(root))
    assert result.code == 4
    assert "container" in result.err
    holder.send_signal(signal.SIGTERM)
    holder.communicate(timeout=30)
    mountkit.unmount(root)


def test_a_mount_whose_keeper_was_just_killed_is_not_taken_for_dead(bucket: Bucket, mountkit: CommandLine) -> None:
    bucket.put("x", b"still here")
    root = mountkit.mount(bucket.source)
    with open(root / "x", "rb") as file:
        kill(mountkit.status(root)["keeper_pid"])
        mountkit.run("mount", bucket.source, str(root), "--cache", str(mountkit.cache))
        assert file.read() == b"still here"
        assert (root / "x").read_bytes() == b"still here"
    wait_until(lambda: mountkit.run("status", str(root)).out.splitlines()[0].endswith(": ok"))


def test_a_mount_point_behind_a_link_is_mounted_where_it_leads(bucket: Bucket, mountkit: CommandLine) -> None:
    bucket.put("x", b"x")
    (mountkit.base / "real").mkdir()
    (mountkit.base / "link").symlink_to(mountkit.base / "real")
    result = mountkit.run("mount", bucket.source, str(mountkit.base / "link"), "--cache", str(mountkit.cache))
    assert result.code == 0, result.err
    mountkit.mounted.append(mountkit.base / "real")
    assert (mountkit.base / "link/x").read_bytes() == b"x"


def test_the_mover_gets_its_credentials_also_after_the_keeper_was_replaced(
    bucket: Bucket, mountkit: CommandLine
) -> None:
    for n in range(2):
        bucket.put(f"{n}", b"%d" % n)
    root = mountkit.mount(bucket.source)
    for who in ("keeper_pid", "mover_pid"):
        gone = mountkit.status(root)[who]
        kill(gone)
        wait_until(lambda: '"state": "ok"' in mountkit.run("status", str(root), "--json").out, seconds=20)
        wait_until(lambda gone=gone, who=who: mountkit.status(root)[who] != gone, seconds=20)  # type: ignore[misc]
    assert (root / "1").read_bytes() == b"1"


def test_a_namespace_that_follows_our_unmounts_holds_nothing_and_one_that_does_not_is_named(
    bucket: Bucket, mountkit: CommandLine
) -> None:
    """Most services of systemd live in the first kind: PrivateTmp=, ProtectSystem= and the like make it."""
    bucket.put("a", b"x")
    base = mountkit.base / "shared"
    base.mkdir()
    for words in (("--bind", str(base), str(base)), ("--make-shared", str(base))):
        subprocess.run(["mount", *words], check=True)
    try:
        for propagation, code in (("slave", 0), ("private", 4)):
            root = mountkit.mount(bucket.source, name="shared/m")
            with held_in_another_namespace(root, propagation) as pid:
                result = mountkit.run("unmount", str(root))
                assert result.code == code, result.err
                assert code == 0 or f"sleep (pid {pid})" in result.err
        mountkit.unmount(root)
    finally:
        subprocess.run(["umount", "-l", str(base)], check=True)
