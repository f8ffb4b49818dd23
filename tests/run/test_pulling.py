"""Images from a registry: fetched with progress, interrupted, missing. The registry is real, and on this machine."""

from __future__ import annotations

import io
import os
import pty
import re
import secrets
import signal
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from docker import APIClient

from mountkit.run.docker_engine import DockerEngine
from tests.mount.conftest import CommandLine

_START_TIMEOUT_S = 60.0
_CONFIG = """
version: 0.1
storage: {{filesystem: {{rootdirectory: {root}}}}}
http: {{addr: "127.0.0.1:0"}}
"""


@dataclass(frozen=True)
class Registry:
    port: int
    pid: int

    def name(self, tag: str) -> str:
        return f"localhost:{self.port}/mountkit-test:{tag}"


@pytest.fixture(scope="module")
def client() -> Iterator[APIClient]:
    with DockerEngine().client(timeout_s=None) as client:
        yield client


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    base = tmp_path_factory.mktemp("registry")
    (base / "config.yml").write_text(_CONFIG.format(root=base / "images"))
    process = subprocess.Popen(
        ["docker-registry", "serve", str(base / "config.yml")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr
    timer = threading.Timer(_START_TIMEOUT_S, process.kill)
    timer.start()
    found = next(filter(None, (re.search(r"listening on 127\.0\.0\.1:(\d+)", line) for line in process.stderr)), None)
    timer.cancel()
    drain = threading.Thread(target=process.stderr.read, daemon=True)
    drain.start()
    try:
        assert found, "the registry ended before it listened"
        yield Registry(int(found[1]), process.pid)
    finally:
        process.kill()
        process.wait()
        drain.join()
        process.stderr.close()


@pytest.fixture
def image(registry: Registry, client: APIClient, tiny_image: str) -> Iterator[str]:
    """The name of an image of two layers that only the registry has."""
    tag = secrets.token_hex(6)
    name = registry.name(tag)
    container = client.create_container(tiny_image, ["true"])["Id"]
    try:
        rootfs = b"".join(client.export(container))
    finally:
        client.remove_container(container)
    client.import_image_from_data(_with_random_file(rootfs), repository=name.rpartition(":")[0], tag=tag)
    container = client.create_container(name, ["true"])["Id"]
    try:
        client.put_archive(container, "/", _with_random_file(b""))
        client.commit(container, name.rpartition(":")[0], tag)
    finally:
        client.remove_container(container)
    for line in client.push(name, stream=True, decode=True):
        assert "error" not in line, line
    client.remove_image(name)
    yield name
    if client.images(name):
        client.remove_image(name, force=True)


def _with_random_file(archive: bytes) -> bytes:
    """The tar archive, and in it one file more that no layer of any image has: nothing of it is there already."""
    made = io.BytesIO(archive)
    with tarfile.open(fileobj=made, mode="a" if archive else "w") as archive_file:
        entry = tarfile.TarInfo(f"random-{secrets.token_hex(4)}")
        entry.size = 3 << 20
        archive_file.addfile(entry, io.BytesIO(os.urandom(entry.size)))
    return made.getvalue()


@pytest.fixture
def line(tmp_path: Path) -> CommandLine:
    return CommandLine(tmp_path, {**os.environ, "XDG_STATE_HOME": str(tmp_path / "state")})


def test_a_missing_image_is_fetched_and_run_with_a_line_for_each_layer(
    line: CommandLine, image: str, client: APIClient
) -> None:
    result = line.run("run", image, "sh", "-c", "exit 42", timeout=120)
    assert result.code == 42, result.err
    assert f"fetching the image {image}" in result.err
    assert len(re.findall(r"^mountkit: layer [0-9a-f]{12}: pull complete, \d", result.err, re.MULTILINE)) == 2
    assert client.images(image)
    again = line.run("run", image, "true", timeout=60)
    assert (again.code, again.err) == (0, ""), "it is here: nobody is asked"
    always = line.run("run", "--pull", "always", image, "true", timeout=60)
    assert always.code == 0 and "fetching the image" in always.err


def test_at_a_terminal_there_is_a_bar_for_each_layer(line: CommandLine, image: str) -> None:
    code, shown = at_a_terminal(line, "run", "--no-tty", image, "sh", "-c", "exit 7")
    assert code == 7, shown
    layers = set(re.findall(r"([0-9a-f]{12}) (?:downloading|extracting|pull complete)", shown))
    assert len(layers) == 2, shown
    assert "pull complete" in shown


def test_an_interrupted_fetch_leaves_nothing(
    line: CommandLine, image: str, registry: Registry, client: APIClient
) -> None:
    os.kill(registry.pid, signal.SIGSTOP)
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "mountkit", "run", image, "true"],
            env=line.environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stderr and "fetching the image" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        os.kill(registry.pid, signal.SIGCONT)
    assert process.returncode == 130, err
    assert not client.images(image)
    assert line.run("runs").out.strip() == "no runs"
    assert line.run("run", image, "true", timeout=120).code == 0, "the next one fetches it"


def test_a_tag_that_the_registry_does_not_have_is_said(line: CommandLine, registry: Registry) -> None:
    name = registry.name("nosuch")
    result = line.run("run", name, "true")
    assert result.code == 8
    error, hint = result.err.strip().splitlines()[-2:]
    assert error.startswith(f"error: the image `{name}` is not on this machine and cannot be pulled: ")
    assert "not found" in error or "unknown" in error
    assert hint.startswith("hint: check its name and tag")


def at_a_terminal(line: CommandLine, *words: str) -> tuple[int, str]:
    """The exit code, and what a terminal of 120 columns shows of stderr."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "mountkit", *words],
        env={**line.environment, "TERM": "xterm", "COLUMNS": "120"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=theirs,
    )
    os.close(theirs)
    shown = b"".join(iter(_until_closed(ours), b""))
    os.close(ours)
    return process.wait(timeout=120), shown.decode(errors="replace")


def _until_closed(fd: int) -> Callable[[], bytes]:
    def read() -> bytes:
        try:
            return os.read(fd, 1 << 16)
        except OSError:  # EIO: the other end is closed
            return b""

    return read
