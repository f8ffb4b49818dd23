"""What mount(8) and umount(8) call for `-t fuse.mountkit`: their arguments in, their exit codes out.

mount.fuse.mountkit SOURCE DIR [-sfnv] [-o OPTIONS] [-t TYPE]
umount.fuse.mountkit DIR [-flnrv] [-t TYPE]
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from mountkit import errors
from mountkit.errors import MountBusy, MountkitError, UsageError

WRONG_WORDS, FAILED = 1, 32
"""Exit codes of mount(8)."""
_SYSTEM_CACHE = "/var/cache"


def main(words: Sequence[str] | None = None) -> int:
    """The exit code. The first word says which of the two was called."""
    action, *rest = sys.argv[1:] if words is None else words
    try:
        flags, values, places = _parse(rest)
        if action == "mount":
            _mount(flags, values, places)
        else:
            _unmount(flags, places)
    except UsageError as exc:
        print(errors.two_lines(exc), file=sys.stderr)  # noqa: T201
        return WRONG_WORDS
    except MountkitError as exc:
        print(errors.two_lines(exc), file=sys.stderr)  # noqa: T201
        return FAILED
    return 0


def _parse(words: Sequence[str]) -> tuple[set[str], dict[str, str], list[str]]:
    """Flags, values by their letter, and the rest; as getopt reads them."""
    import getopt

    try:
        found, places = getopt.gnu_getopt(list(words), "sfnvlro:t:N:")
    except getopt.GetoptError as exc:
        raise UsageError(f"mount(8) called us in a way we do not know: {exc}", "is it newer than mountkit?") from None
    if any(name == "-N" for name, _ in found):
        raise UsageError("mountkit does not mount in another namespace", "enter it first: `nsenter -m`")
    values: dict[str, str] = {}
    for name, value in found:
        if value:
            values[name] = f"{values[name]},{value}" if name in values else value
    return {name for name, value in found if not value}, values, places


def _mount(flags: set[str], values: dict[str, str], places: list[str]) -> None:
    from mountkit.commands.mount import mount_one
    from mountkit.config import parse_mount_options

    if len(places) != 2:
        raise UsageError("say what to mount, and where", "mount -t fuse.mountkit s3://bucket /mnt/bucket")
    words = values.get("-o", "").split(",")
    if "remount" in words:
        raise UsageError("a bucket cannot be remounted with other options", "unmount it and mount it again")
    given: dict[str, Any] = {}
    for word in words:
        try:
            parsed = parse_mount_options(word)
        except UsageError:
            if "-s" not in flags:  # sloppy: mount(8) wants what we do not know to be passed over
                raise
        else:
            given |= {name.replace("-", "_"): value for name, value in parsed.items()}
    if os.getuid() == 0 and not os.environ.get("XDG_CACHE_HOME"):
        given.setdefault("cache", _SYSTEM_CACHE)  # as units have it; at boot there is no HOME either
    if "-f" not in flags:
        mount_one(places[0], places[1], given)


def _unmount(flags: set[str], places: list[str]) -> None:
    """Ends the mount and its processes, uploads first. With -l it is out of sight at once and ends by itself."""
    from mountkit import mountinfo, unmounting

    if len(places) != 1:
        raise UsageError("say what to unmount", "umount /mnt/bucket")
    directory = mountinfo.resolve(places[0])
    if "-l" in flags:
        _plain_umount(directory, "-l")
        return
    try:
        unmounting.unmount(directory, force="-f" in flags)
    except MountBusy as exc:
        raise MountBusy(exc.sentence, "end what works in it; `umount -l` takes it out of sight at once") from None
    if any(point.directory == directory for point in mountinfo.ours()):
        _plain_umount(directory)


def _plain_umount(directory: str, *flags: str) -> None:
    """umount(8) without asking us again."""
    done = subprocess.run(["umount", "-i", *flags, "--", directory], capture_output=True, text=True, check=False)
    if done.returncode:
        raise errors.MountError(f"cannot unmount {directory}: {done.stderr.strip().removeprefix('umount: ')}")


if __name__ == "__main__":
    sys.exit(main())
