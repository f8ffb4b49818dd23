"""A machine with systemd as its first process: a container whose programs, Python and mountkit are this host's own.

    with Machine() as machine:
        machine.sh("systemctl start mountkit@train")

/usr, the Python that runs the tests and the checkout are bound read-only; /etc is made here, /usr/sbin may be written
to (in memory). The network is the host's, so the S3 servers of the tests are at hand.
"""

from __future__ import annotations

import io
import os
import shlex
import subprocess
import sys
import tarfile
import time
import uuid
from pathlib import Path
from types import TracebackType
from typing import Self

REPOSITORY = Path(__file__).parents[2]
IMAGE = "mountkit/systemd-test:latest"
USER, USER_ID = "alice", 1000
_BOOT_S = 60.0
_OWNER = "mountkit.test-process"
_ACCOUNTS = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\nmessagebus:x:101:101::/nonexistent:/usr/sbin/nologin\n"
    f"systemd-network:x:102:102::/:/usr/sbin/nologin\n{USER}:x:{USER_ID}:{USER_ID}::/home/{USER}:/bin/sh\n"
    "nobody:x:65534:65534:nobody:/:/usr/sbin/nologin\n",
    "etc/group": f"root:x:0:\ntty:x:5:\nmessagebus:x:101:\nsystemd-network:x:102:\n"
    f"docker:x:103:{USER}\n{USER}:x:{USER_ID}:\nnogroup:x:65534:\n",
    "etc/shadow": f"root:*:19000:0:99999:7:::\n{USER}:*:19000:0:99999:7:::\n",
    "etc/machine-id": "",
    "etc/fstab": "",
    "etc/fuse.conf": "user_allow_other\n",
    "etc/docker/daemon.json": '{"iptables": false, "ip6tables": false, "bridge": "none"}\n',
    # An engine without a bridge takes away the one it finds: in the host's network that is the host engine's.
    "etc/systemd/system/docker.service.d/network.conf": "[Service]\nExecStart=\nExecStart=/usr/bin/unshare --net -- "
    "/usr/sbin/dockerd -H fd:// --containerd=/run/containerd/containerd.sock\n",
}
_COPIED = (
    "/etc/alternatives",
    "/etc/pam.d",
    "/etc/security",
    "/etc/nsswitch.conf",
    "/etc/ld.so.cache",
    "/etc/login.defs",
    "/etc/ssl/certs",
)
_LINKS = {"bin": "usr/bin", "sbin": "usr/sbin", "lib": "usr/lib", "lib64": "usr/lib64"}
_INIT = """
chmod 666 /dev/fuse && mount --make-rshared / &&
for c in /sys/fs/cgroup /sys/fs/cgroup/*; do
    if mountpoint -q $c; then mount -o remount,bind,rw $c; fi
done
mkdir -p /writable/upper /writable/work &&
mount -t overlay -o lowerdir=/usr/sbin,upperdir=/writable/upper,workdir=/writable/work overlay /usr/sbin &&
exec /lib/systemd/systemd --log-target=journal
"""


class Machine:
    """One booted container. `sh` runs as root in it, `as_user` as an ordinary user with a manager of his own."""

    def __init__(self) -> None:
        self.name = f"mountkit-systemd-{uuid.uuid4().hex[:8]}"
        _ensure_image()
        _remove_left_over()
        devices = [path for path in ("/dev/fuse", "/dev/autofs") if os.path.exists(path)]
        shown = {
            "/usr",
            str(REPOSITORY),
            sys.prefix,
            sys.base_prefix,
            os.path.dirname(os.path.realpath(sys.executable)),
        }
        command = [
            *(
                "docker",
                "run",
                "--detach",
                "--tty",
                "--name",
                self.name,
                "--label",
                f"{_OWNER}={os.getpid()}",
                "--hostname",
                "tests",
                "--network",
                "host",
            ),
            *(
                "--cgroupns",
                "private",
                "--cap-add",
                "SYS_ADMIN",
                "--cap-add",
                "NET_ADMIN",
                "--security-opt",
                "seccomp=unconfined",
            ),
            *("--security-opt", "apparmor=unconfined", "--stop-signal", "SIGRTMIN+3", "--env", "container=docker"),
            *(word for path in devices for word in ("--device", path)),
            *(
                word
                for path in ("/run:exec", "/tmp", "/writable", "/var/lib/docker:exec")
                for word in ("--tmpfs", path)
            ),
            *(word for path in _outermost(shown) for word in ("--volume", f"{path}:{path}:ro")),
            *(IMAGE, "sh", "-c", _INIT),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        try:
            self._wait_for_boot()
        except BaseException:
            self.stop()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    def stop(self) -> None:
        subprocess.run(["docker", "rm", "--force", "--volumes", self.name], capture_output=True, check=True)

    def reboot(self) -> None:
        """Shuts down in order and boots again: what lies in /etc stays, what lies in memory does not."""
        subprocess.run(["docker", "restart", "--time", "60", self.name], capture_output=True, check=True)
        self._wait_for_boot()

    def run(self, script: str, *, user: bool = False, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """What a shell in the machine does with `script`; with `user` it is the ordinary user's."""
        path = f"{os.path.dirname(sys.executable)}:/usr/local/bin:/usr/bin:/bin:/usr/sbin"
        script = f"export PATH={path}; cd /; {script}"
        words = ["sh", "-c", script]
        if user:
            environment = [f"XDG_RUNTIME_DIR=/run/user/{USER_ID}", f"HOME=/home/{USER}"]
            words = [
                "setpriv",
                f"--reuid={USER_ID}",
                f"--regid={USER_ID}",
                "--init-groups",
                "env",
                *environment,
                *words,
            ]
        command = ["docker", "exec", self.name, *words]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout)

    def sh(self, script: str, *, user: bool = False, timeout: float = 120) -> str:
        """What it prints. Fails the test where the script fails, or does not end."""
        try:
            done = self.run(script, user=user, timeout=timeout)
        except subprocess.TimeoutExpired as exc:
            raise AssertionError(f"`{script}` does not end:\n{exc.stdout!r}{exc.stderr!r}\n{self._state()}") from None
        assert done.returncode == 0, (
            f"`{script}` ended with {done.returncode}:\n{done.stdout}{done.stderr}{self.journal()}"
        )
        return done.stdout

    def _state(self) -> str:
        """Who runs and waits where, and the last words of the mounts."""
        logs = "find / -xdev -name mountkit.log -exec tail -n 40 {} +"
        return self.run(f"ps -eo user,pid,ppid,stat,wchan:24,etimes,args; {logs}", timeout=30).stdout

    def start(self, script: str, *, user: bool = False) -> subprocess.Popen[str]:
        """Starts it; whoever asks reads its output later."""
        path = f"{os.path.dirname(sys.executable)}:/usr/bin:/bin"
        who = ["--user", f"{USER_ID}:{USER_ID}"] if user else []
        command = ["docker", "exec", *who, self.name, "sh", "-c", f"export PATH={path}; cd /; {script}"]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def write(self, path: str, text: str, *, mode: int = 0o644, user: bool = False) -> None:
        """Puts a whole file in the place of the old one: a unit that is restarting may read it at any moment."""
        script = (
            f"mkdir -p {os.path.dirname(path)} && cat >{path}.new && chmod {mode:o} {path}.new && mv {path}.new {path}"
        )
        who = ["--user", f"{USER_ID}:{USER_ID}"] if user else []
        command = ["docker", "exec", "--interactive", *who, self.name, "sh", "-c", script]
        subprocess.run(command, input=text, text=True, check=True, capture_output=True)

    def show(self, unit: str, name: str, *, user: bool = False) -> str:
        """A property of a unit."""
        scope = "--user " if user else ""
        return self.sh(f"systemctl {scope}show --value --property {name} {shlex.quote(unit)}", user=user).strip()

    def wait_for(self, unit: str, name: str, value: str, *, seconds: float = 30.0, user: bool = False) -> None:
        deadline = time.monotonic() + seconds
        while (found := self.show(unit, name, user=user)) != value:
            assert time.monotonic() < deadline, f"{name} of {unit} is {found}, not {value}\n{self.journal()}"
            time.sleep(0.1)

    def mounted(self, directory: str) -> bool:
        """Whether a mount of ours is there; the directory itself is not touched."""
        lines = Path(f"/proc/{self._first_process()}/mountinfo").read_text(encoding="utf-8").splitlines()
        return any(words[4] == directory and "fuse.mountkit" in words for words in map(str.split, lines))

    def journal(self) -> str:
        done = self.run("journalctl --no-pager --lines 60 --output short-monotonic")
        return done.stdout

    def start_user_manager(self) -> None:
        """What a login does."""
        self.sh(f"install -d -o {USER} -g {USER} /home/{USER} && systemctl start user@{USER_ID}.service")

    def start_engine(self, image: str) -> None:
        """Starts a container engine of the machine's own, which has `image` from this host's."""
        self.sh("systemctl start docker.service")
        save = subprocess.Popen(["docker", "save", image], stdout=subprocess.PIPE)
        command = ["docker", "exec", "--interactive", self.name, "docker", "load"]
        subprocess.run(command, stdin=save.stdout, capture_output=True, check=True)
        assert save.stdout
        save.stdout.close()
        assert save.wait() == 0

    def processes(self) -> list[str]:
        """The command lines of mountkit's processes."""
        shown = self.sh("for f in /proc/[0-9]*/cmdline; do tr '\\0' ' ' <$f; echo; done 2>/dev/null")
        return [line for line in shown.splitlines() if " mountkit.serve." in line or " mountkit.mover." in line]

    def _first_process(self) -> str:
        command = ["docker", "inspect", "--format", "{{.State.Pid}}", self.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    def _wait_for_boot(self) -> None:
        deadline = time.monotonic() + _BOOT_S
        while True:
            state = self.run("systemctl is-system-running").stdout.strip()
            if state in ("running", "degraded"):
                return
            if time.monotonic() > deadline:
                logs = subprocess.run(["docker", "logs", self.name], capture_output=True, text=True, check=False)
                raise AssertionError(f"systemd does not boot ({state or 'no answer'}):\n{logs.stdout}{logs.stderr}")
            time.sleep(0.2)


def _outermost(paths: set[str]) -> list[str]:
    """Those of `paths` that lie in no other of them."""
    return [
        path for path in sorted(paths) if not any(path != other and path.startswith(f"{other}/") for other in paths)
    ]


def _remove_left_over() -> None:
    """Takes away machines whose test run was killed."""
    listed = [
        "docker",
        "ps",
        "--all",
        "--filter",
        f"label={_OWNER}",
        "--format",
        f'{{{{.ID}}}} {{{{.Label "{_OWNER}"}}}}',
    ]
    for line in subprocess.run(listed, capture_output=True, text=True, check=True).stdout.splitlines():
        container, owner = line.split()
        if not os.path.exists(f"/proc/{owner}"):
            subprocess.run(["docker", "rm", "--force", "--volumes", container], capture_output=True, check=False)


def _ensure_image() -> None:
    """Accounts, links and configuration; everything else is bound in."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for path in (
            "etc/systemd/system",
            "var/lib/systemd",
            "var/log/journal",
            "home",
            "mnt",
            "root",
            "usr",
            "run",
            "tmp",
        ):
            entry = tarfile.TarInfo(path)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755  # also /root: the Python of the tests may lie there
            tar.addfile(entry)
        for path, text in _ACCOUNTS.items():
            entry = tarfile.TarInfo(path)
            entry.size = len(text)
            tar.addfile(entry, io.BytesIO(text.encode()))
        for path, target in _LINKS.items():
            if os.path.islink(f"/{path}"):
                entry = tarfile.TarInfo(path)
                entry.type, entry.linkname = tarfile.SYMTYPE, target
                tar.addfile(entry)
        masked = tarfile.TarInfo("etc/systemd/system/tmp.mount")  # it would hide a checkout below /tmp
        masked.type, masked.linkname = tarfile.SYMTYPE, "/dev/null"
        tar.addfile(masked)
        for path in _COPIED:
            if os.path.exists(path):
                tar.add(path, path.lstrip("/"))
    done = subprocess.run(["docker", "import", "-", IMAGE], input=archive.getvalue(), capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
