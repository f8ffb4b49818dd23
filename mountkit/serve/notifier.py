"""A short-lived process that tells the kernel to forget directory entries.

Such a write can block behind an operation in flight (an INVAL_INODE waited 1.7 s behind one READ), so neither a server
nor the keeper may do it. Standard library only: it starts in 30 ms.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sys

from mountkit.serve import messages


def main() -> None:
    """`python -I -m mountkit.serve.notifier FUSE_FD`, a JSON list of [parent inode, name] on stdin."""
    fd = int(sys.argv[1])
    for parent, name in json.load(sys.stdin):
        with contextlib.suppress(FileNotFoundError):  # the kernel did not know that name
            try:
                os.write(fd, messages.invalidate_entry(parent, name.encode("latin-1")))
            except OSError as exc:
                if exc.errno == errno.ENODEV:
                    return
                if exc.errno != errno.ENOTDIR:
                    raise


if __name__ == "__main__":
    main()
