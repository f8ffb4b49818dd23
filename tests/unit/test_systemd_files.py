"""Unit files and helpers as text: what stands in them, what changes, what is refused; systemd itself is not asked."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from mountkit import updatedb
from mountkit.errors import HostError, UsageError
from mountkit.project import NamedMount
from mountkit.systemd import install, units
from mountkit.systemd.install import Voice
from mountkit.systemd.units import File, Scope
from mountkit.yamlfile import Place

REPOSITORY = Path(__file__).parents[2]
# What would give the service a mount namespace of its own (fact of systemd.exec(5)): the host would not see the mount.
HIDING = r"^(Private(Tmp|Devices|Mounts|Users)|Protect(System|Home|Proc|Kernel\w+|ControlGroups)|ProcSubset|\w+Paths"
HIDING += (
    r"|MountFlags|RootDirectory|RootImage|BindPaths|TemporaryFileSystem|DynamicUser|MountAPIVFS|NetworkNamespacePath)="
)


def named(**options: str) -> NamedMount:
    return NamedMount("train", "s3://data/100%?a=b", "/mnt/my data", options, Place("f", 1, 1))


def voice(said: list[str], *, agrees: bool = True) -> Voice:
    return Voice(said.append, lambda _question: agrees)


@pytest.mark.parametrize("user", [False, True])
def test_the_templates_name_this_very_mountkit_and_nothing_that_hides_the_mount(user: bool) -> None:
    service, target = units.shared_files(Scope(user))
    assert f"ExecStart={sys.executable} -I -m mountkit mount %i --foreground" in service.text
    assert "@" not in service.text.replace("mountkit@", "").replace("@system-service", "").replace("@mount\n", "\n")
    assert not re.search(HIDING, service.text, re.MULTILINE)
    assert "WantedBy=" in target.text


def test_a_wheel_carries_the_templates(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    names = zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist()
    for path in (REPOSITORY / "systemd").rglob("*.*"):
        assert f"mountkit/systemd/templates/{path.relative_to(REPOSITORY / 'systemd')}" in names


def test_what_holds_for_one_mount_stands_in_its_drop_in_with_percents_and_blanks_as_systemd_reads_them() -> None:
    found = units.drop_in(named(passwd_file="/etc/pw", cache="/c"), "/etc/my 5%/m.yaml", "/etc/aws", Scope(user=False))
    assert found.path == "/etc/systemd/system/mountkit@train.service.d/50-mountkit.conf"
    assert "Description=mountkit: s3://data/100%%?a=b at /mnt/my data" in found.text
    assert 'RequiresMountsFor="/mnt"' in found.text
    assert 'RequiresMountsFor="/c"' in found.text
    assert 'Environment="MOUNTKIT_CONFIG=/etc/my 5%%/m.yaml"' in found.text
    assert "LoadCredential=mountkit-aws-credentials:/etc/aws" in found.text
    assert "LoadCredential=mountkit-passwd:/etc/pw" in found.text


def test_a_file_that_is_right_is_left_alone_and_one_that_is_not_is_shown_first(tmp_path: Path) -> None:
    path = str(tmp_path / "d" / "unit")
    said: list[str] = []
    assert install.write([File(path, "a\nb\n")], voice(said))
    assert said == [f"writing {path}"]
    said.clear()
    assert not install.write([File(path, "a\nb\n")], voice(said))
    assert said == []
    assert install.write([File(path, "a\nc\n")], voice(said))
    assert "-b\n+c" in said[0]
    assert said[1] == f"changing {path}"
    assert Path(path).read_text() == "a\nc\n"


def test_who_says_no_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "unit"
    path.write_text("mine\n")
    with pytest.raises(UsageError, match="nothing was changed"):
        install.write([File(str(path), "a\n", 0o600), File(str(tmp_path / "other"), "b")], voice([], agrees=False))
    assert path.read_text() == "mine\n"
    assert not (tmp_path / "other").exists()


def test_the_credentials_of_a_shell_go_into_a_private_file_and_are_never_shown(tmp_path: Path) -> None:
    shell = {"AWS_ACCESS_KEY_ID": "AKIA", "AWS_SECRET_ACCESS_KEY": "s3cr3t", "AWS_SESSION_TOKEN": "t0ken"}
    found = install.credentials_file(named(profile="p"), "env", Scope(user=False), shell)
    assert found
    assert found.path == "/etc/mountkit/credentials/train"
    assert found.text.splitlines()[0] == "[p]"
    path = str(tmp_path / "c" / "train")
    said: list[str] = []
    for text in (found.text, found.text.replace("s3cr3t", "0ther")):
        install.write([File(path, text, 0o600, secret=True)], voice(said))
    assert os.stat(path).st_mode & 0o777 == 0o600
    assert os.stat(os.path.dirname(path)).st_mode & 0o777 == 0o700
    assert "s3cr3t" not in "".join(said)
    assert "0ther" not in "".join(said)


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "cannot be read"), ("AKIA:secret\n", "holds no credentials"), ("[default]\nx = 1\n", "")],
)
def test_a_file_of_credentials_is_looked_into_before_a_unit_depends_on_it(
    tmp_path: Path, content: str | None, words: str
) -> None:
    path = tmp_path / "aws"
    if content is not None:
        path.write_text(content)
    if not words:
        found = install.credentials_file(named(), str(path), Scope(user=False), {})
        assert found == File(str(path), "")
        return
    with pytest.raises(UsageError, match=words):
        install.credentials_file(named(), str(path), Scope(user=False), {})
    with pytest.raises(UsageError, match="no credentials in this shell"):
        install.credentials_file(named(), "env", Scope(user=False), {"AWS_ACCESS_KEY_ID": "AKIA"})


def test_a_helper_says_which_of_the_two_was_called(tmp_path: Path) -> None:
    found = {os.path.basename(file.path): file for file in install.helper_files(str(tmp_path))}
    assert set(found) == {"mount.fuse.mountkit", "mount.mountkit", "umount.fuse.mountkit", "umount.mountkit"}
    assert "mount_helper umount " in found["umount.fuse.mountkit"].text
    install.write(list(found.values()), voice([]))
    done = subprocess.run(
        [str(tmp_path / "umount.mountkit"), str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr.splitlines()[0]) == (1, f"error: {tmp_path} is not a mount of mountkit")


OF_DEBIAN = """PRUNE_BIND_MOUNTS="yes"
# PRUNENAMES=".git .bzr"
PRUNEPATHS="/tmp /var/spool"
PRUNEFS="NFS afs autofs fuse.sshfs"
"""


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (OF_DEBIAN, OF_DEBIAN.replace('sshfs"', 'sshfs fuse.mountkit"')),
        ('PRUNEFS = ""\n', 'PRUNEFS = "fuse.mountkit"\n'),
        ('# PRUNEFS="NFS"', '# PRUNEFS="NFS"\nPRUNEFS="fuse.mountkit"\n'),
        ("", 'PRUNEFS="fuse.mountkit"\n'),
        ('PRUNEFS="NFS Fuse.Mountkit proc"\n', 'PRUNEFS="NFS Fuse.Mountkit proc"\n'),
        ("PRUNEFS=NFS # no quotes: not for us to mend\n", "PRUNEFS=NFS # no quotes: not for us to mend\n"),
    ],
)
def test_updatedb_is_told_once_to_pass_our_mounts_over_and_nothing_else(before: str, after: str) -> None:
    assert updatedb.with_ours(before) == after
    assert updatedb.with_ours(after) == after


def test_updatedbs_file_is_shown_before_it_changes_and_keeps_its_mode_and_its_other_bytes(tmp_path: Path) -> None:
    path = tmp_path / "updatedb.conf"
    path.write_bytes(b"# caf\xe9\n" + OF_DEBIAN.encode())
    path.chmod(0o640)
    (tmp_path / "link").symlink_to(path)
    said: list[str] = []
    assert install.write(install.pruning(str(tmp_path / "link")), voice(said))
    assert '-PRUNEFS="NFS afs autofs fuse.sshfs"\n+PRUNEFS="NFS afs autofs fuse.sshfs fuse.mountkit"' in said[0]
    said[0].encode()
    assert path.read_bytes() == b"# caf\xe9\n" + OF_DEBIAN.replace('sshfs"', 'sshfs fuse.mountkit"').encode()
    assert path.stat().st_mode & 0o777 == 0o640
    assert not install.write(install.pruning(str(path)), voice(said))
    assert install.pruning(str(tmp_path / "not-there")) == []


@pytest.mark.parametrize(("directory", "told"), [("sbin", True), ("elsewhere", False)])
def test_the_helpers_bring_it_where_mount_looks_for_them_and_a_package_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, directory: str, told: bool
) -> None:
    configuration = tmp_path / "updatedb.conf"
    configuration.write_text(OF_DEBIAN)
    monkeypatch.setattr(install, "HELPER_DIRECTORY", str(tmp_path / "sbin"))
    monkeypatch.setattr(install, "CONFIGURATION", str(configuration))
    assert install.install_helpers(str(tmp_path / directory), voice([]))
    assert ("fuse.mountkit" in configuration.read_text()) == told
    assert not install.install_helpers(str(tmp_path / directory), voice([]))


def test_a_directory_nobody_may_write_to_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(HostError, match="cannot be written"):
        install.write([File(str(tmp_path / "file" / "unit"), "x")], voice([]))
