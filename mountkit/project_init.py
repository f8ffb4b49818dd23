"""A first mountkit.yaml: answers in, a file out that passes its own check."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping

from mountkit import project, yamlfile
from mountkit.config import option_values
from mountkit.errors import HostError, UsageError
from mountkit.sources import parse_source

_HEAD = "# Mounts and runs of mountkit; docs/configuration.md names every key. `mountkit config check` reads it.\n"


def checked_source(text: str) -> str:
    """`text`, if it names a bucket. Raises UsageError."""
    parse_source(text)
    return text


def checked_name(text: str) -> str:
    """`text`, if a mount may be called so. Raises UsageError."""
    if not project.is_name(text):
        raise UsageError(f"`{text}` is no name of a mount", "two or more letters, digits, `.`, `_` or `-`")
    return text


def suggested_name(source: str) -> str:
    """The last part of the source, if it can be a name."""
    url = parse_source(source)
    last = os.fsdecode(url.prefix).rstrip("/").rpartition("/")[2] or url.bucket
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", last).strip("._-")
    return name if project.is_name(name) else "data"


def text(name: str, source: str, directory: str, options: Mapping[str, str | bool]) -> str:
    """The file with this one mount. Raises UsageError where an option makes no sense."""
    option_values(options)
    words = {"source": source, "directory": directory}
    for option, value in options.items():
        words[option.replace("_", "-")] = ("true" if value else "false") if isinstance(value, bool) else value
    lines = "".join(f"    {key}: {yamlfile.quoted(value)}\n" for key, value in words.items())
    return f"{_HEAD}mounts:\n  {name}:\n{lines}"


def write(path: str, content: str) -> None:
    """Writes it where no file is yet. Raises UsageError, HostError; then nothing is left."""
    if os.path.lexists(path):
        raise UsageError(f"{path} is there already", "add to it with an editor, or name another file")
    temporary = f"{path}.new"
    try:
        with open(temporary, "x", encoding="utf-8") as file:
            os.fchmod(file.fileno(), 0o644)
            file.write(content)
        project.load(temporary).check()
        os.rename(temporary, path)
    except OSError as exc:
        raise HostError(f"{path} cannot be written: {os.strerror(exc.errno or 0)}", "choose another directory") from exc
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
