"""Runs `mountkit.run.command.run` in a process of its own, for tests that send it signals: arguments as JSON."""

from __future__ import annotations

import json
import os
import sys
from typing import Any, BinaryIO

from mountkit.errors import MountkitError
from mountkit.run import options
from mountkit.run.command import run
from mountkit.run.plan import merge
from mountkit.run.shared_mounts import Options
from tests.fakes.tracer import FakeTracer


class DirectoryMounter:
    """Mounts by putting one file there; waits in `mount` for ever if the source says so."""

    def key(self, source: str, options: Options) -> str:
        return source

    def mount(self, source: str, directory: str, options: Options) -> None:
        if source.startswith("slow"):
            print("mounting", flush=True)
            import time

            time.sleep(60)
        with open(os.path.join(directory, "file"), "w", encoding="utf-8") as file:
            file.write(f"{source}\n")

    def unmount(self, directory: str, *, force: bool = False) -> None:
        os.unlink(os.path.join(directory, "file"))

    @property
    def traces(self) -> FakeTracer:
        return FakeTracer()

    def put(self, directory: str, path: str, content: BinaryIO) -> None:
        raise AssertionError("no output here is in a bucket")

    def uploaded(self, directory: str, since: float, timeout_s: float) -> tuple[list[dict[str, Any]], str]:
        return [], ""

    def state(self, path: str) -> str:
        return "ok" if os.path.exists(os.path.join(path, "file")) else ""

    def details(self, path: str) -> dict[str, Any]:
        return {}


def main() -> int:
    words: dict[str, Any] = json.loads(sys.argv[1])
    try:
        base = words.pop("base_directory")
        wanted = merge(options.wanted(words, image=words.pop("image"), arguments=words.pop("arguments")))
        return run(wanted, mounter=DirectoryMounter(), base_directory=base)
    except MountkitError as exc:
        print(f"error: {exc.sentence}", file=sys.stderr)
        return exc.exit_code


if __name__ == "__main__":
    sys.exit(main())
