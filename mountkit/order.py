"""Announcing: tells a running mount which files will be read next, so that it fetches them meanwhile.

    from mountkit.order import announce

    class AnnouncingSampler(torch.utils.data.Sampler):
        '''A shuffled order whose files are fetched 1,000 ahead of the loader. `paths[i]` is the file of item i.'''

        def __init__(self, mount_dir, paths):
            self.mount_dir, self.paths = mount_dir, paths

        def __len__(self):
            return len(self.paths)

        def __iter__(self):
            order = torch.randperm(len(self.paths)).tolist()
            for start in range(0, len(order), 1000):
                announce(self.mount_dir, [self.paths[i] for i in order[start + 1000 : start + 2000]])
                yield from order[start : start + 1000]

Call it where the mount's processes can be reached: on the host, by the mounting user or root; the sampler runs in the
training process, not in the DataLoader's workers. Knows no torch.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from mountkit import mountinfo, mounts


def announce(mount_dir: str, paths: Iterable[str]) -> None:
    """Has these files fetched in the background, in this order, readers first; returns at once.

    Paths are absolute or relative to `mount_dir`. What does not exist or does not fit the cache is passed over: an
    announcement can make reading faster, never fail it. Raises UsageError, MountError where there is no mount.
    """
    mover, info = mounts.mover_client(mount_dir)
    with mover:
        mover.call("announce", paths=below_mount(mount_dir, info.directory, paths), timeout_s=10.0)


def below_mount(directory: str, mount_point: str, paths: Iterable[str]) -> list[str]:
    """The paths, absolute or relative to `directory`, as they are below the mount; none of them is touched."""
    base = mountinfo.resolve(directory)
    found = [os.path.relpath(os.path.join(base, path), mount_point) for path in paths]
    return [path for path in found if not path.startswith("../")]
