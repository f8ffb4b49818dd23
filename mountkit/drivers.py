"""Drivers: who serves a mount, mountkit itself (`fuse`) or s3fs, and what the second cannot do.

Looks at this machine, starts nothing. `auto` is `fuse` wherever that can work; where it falls back, it says why.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import shutil
from dataclasses import dataclass, fields

from mountkit.config import MountSettings
from mountkit.errors import HostError, UsageError

AUTO, FUSE, S3FS = "auto", "fuse", "s3fs"
_INSTALL_FUSE = "`apt-get install fuse3 libfuse3-dev` and `pip install pyfuse3`; or `apt-get install s3fs`"
_UNHONOURED = {
    "cache_size_bytes": "--cache-size",
    "verify_always": "--verify",
    "servers": "--servers",
    "sweep": "--no-sweep",
    "passthrough": "--no-passthrough",
    "resend": "--no-resend",
    "data_budget_s": "--data-budget",
    "metadata_budget_s": "--metadata-budget",
}
"""What s3fs has no counterpart for, by field of the settings. The free share of the disk bounds its cache instead."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The driver of a mount; `why` is not empty where it is another one than a user would expect."""

    driver: str
    why: str = ""


def choose(wanted: str, *, writable: bool = False) -> Choice:
    """The driver that `wanted` (auto, fuse, s3fs) means on this machine.

    Raises HostError if it cannot work here; UsageError for s3fs and `writable`: s3fs keeps no promise about outputs.
    """
    if wanted == S3FS and writable:
        raise UsageError("s3fs serves mounts to read only", "leave out --driver s3fs, or --writable")
    if wanted == S3FS:
        if not shutil.which("s3fs"):
            raise HostError("s3fs is not installed", "install it: `apt-get install s3fs`")
        return Choice(S3FS)
    lack = fuse_lacks()
    if not lack:
        return Choice(FUSE)
    if wanted == AUTO and writable:
        raise HostError(f"{lack}, and s3fs, which could serve instead, serves no writable mounts", _INSTALL_FUSE)
    if wanted == AUTO and shutil.which("s3fs"):
        return Choice(S3FS, lack)
    also = ", and s3fs, which could serve instead, is not installed" if wanted == AUTO else ""
    raise HostError(f"{lack}{also}", _INSTALL_FUSE)


def fuse_lacks() -> str:
    """What keeps mountkit from serving mounts itself here, as a sentence; "" if nothing does."""
    found = importlib.util.find_spec("pyfuse3")
    if found is None:
        return "the Python package pyfuse3 is not installed"
    if found.origin and found.origin.endswith(".so"):
        try:
            ctypes.CDLL(found.origin)  # with what it is linked to; importing it would take far longer
        except OSError as exc:
            return f"pyfuse3 cannot be loaded: {exc}"
    if not shutil.which("fusermount3"):
        return "fusermount3 is not installed"
    return ""


def unhonoured(settings: MountSettings) -> list[str]:
    """The options that `settings` carry and s3fs cannot honour, as a user writes them."""
    defaults = {field.name: field.default for field in fields(MountSettings)}
    defaults["servers"] = max(2, min(4, os.cpu_count() or 1))
    if settings.verify_always:
        defaults["passthrough"] = False  # follows from it
    return [flag for name, flag in _UNHONOURED.items() if getattr(settings, name) != defaults[name]]
