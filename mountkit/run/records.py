"""What is written down about runs, below the state directory: a record while one goes on, a receipt once it has ended.

    runs/ID/            0700
      lock              held by the process that sees to the run; free means that process is gone
      record.json       what is needed to end the run in that process's place; replaced as a whole
      receipt.json      what happened; once it is there, the run is over
      input-N.jsonl     which objects of its Nth input were opened (`read`)
      log               what the container wrote

Whoever takes the lock of a run without a receipt is responsible for it from then on.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import IO, Any

from mountkit import places
from mountkit.errors import HostError, UsageError

RECEIPT_VERSION = 1


def directory() -> str:
    """Where the runs of this user are written down."""
    return os.path.join(places.state_home(), "runs")


def new_id() -> str:
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"


@dataclass(frozen=True, slots=True)
class Run:
    """One run as it is written down. Reading is safe at any time; a missing or broken file reads as empty."""

    id: str
    path: str

    @property
    def log(self) -> str:
        return os.path.join(self.path, "log")

    @property
    def record(self) -> dict[str, Any]:
        return _load(os.path.join(self.path, "record.json"))

    @property
    def receipt(self) -> dict[str, Any]:
        """Empty while the run goes on."""
        return _load(os.path.join(self.path, "receipt.json"))

    @property
    def ended(self) -> bool:
        return os.path.exists(os.path.join(self.path, "receipt.json"))

    def went_on_at(self, when: float) -> bool:
        """Whether it had not ended by then."""
        try:
            return os.stat(os.path.join(self.path, "receipt.json")).st_mtime >= when
        except FileNotFoundError:
            return True

    def mounts(self) -> list[dict[str, Any]]:
        """What its record says of each input and output."""
        record = self.record
        return [*(record.get("inputs") or ()), *(record.get("outputs") or ())]

    @property
    def alive(self) -> bool:
        """Whether the process that sees to it is there."""
        lock = self.take()
        if lock is None:
            return os.path.isdir(self.path)
        os.close(lock)
        return False

    def take(self) -> int | None:
        """The lock of this run, as a descriptor to be kept open; None if another process has it."""
        try:
            fd = os.open(os.path.join(self.path, "lock"), os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return None
        return fd

    def wait(self) -> None:
        """Returns once no process sees to the run any more. A signal's handler may raise out of it."""
        with contextlib.suppress(FileNotFoundError):
            fd = os.open(os.path.join(self.path, "lock"), os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.flock(fd, fcntl.LOCK_SH)
            finally:
                os.close(fd)

    def write_record(self, record: Mapping[str, Any]) -> None:
        _store(os.path.join(self.path, "record.json"), _text(record))

    def write_receipt(self, receipt: Mapping[str, Any]) -> None:
        _store(os.path.join(self.path, "receipt.json"), receipt_text(receipt))

    def forget(self) -> None:
        """As if it had never been: for a run whose container never was."""
        with contextlib.suppress(OSError):
            shutil.rmtree(self.path)


def create(run_id: str, record: Mapping[str, Any]) -> tuple[Run, int]:
    """A new run, and its lock. Raises HostError."""
    base = directory()
    places.ensure_directory(base, "state directory")
    run = Run(run_id, os.path.join(base, run_id))
    try:
        os.mkdir(run.path, 0o700)
        lock = os.open(os.path.join(run.path, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
        run.write_record(record)
    except OSError as exc:
        raise HostError(
            f"cannot write down the run in {base}: {os.strerror(exc.errno or 0)}", "set XDG_STATE_HOME elsewhere"
        ) from exc
    return run, lock


def at(path: str) -> Run:
    return Run(os.path.basename(path), path)


def all_runs() -> list[Run]:
    """Every run that is written down, the oldest first."""
    base = directory()
    try:
        names = os.listdir(base)
    except FileNotFoundError:
        return []
    except OSError as exc:
        raise HostError(f"cannot read {base}: {os.strerror(exc.errno or 0)}", "check its owner and mode") from exc
    runs = [Run(name, os.path.join(base, name)) for name in sorted(names)]
    return [run for run in runs if os.path.exists(os.path.join(run.path, "record.json"))]


def find(word: str) -> Run:
    """The run with this id, else the newest with this name, else the one whose id begins so. Raises UsageError."""
    runs = all_runs()
    exact = [run for run in runs if run.id == word] or [run for run in runs if run.record.get("name") == word]
    if exact:
        return exact[-1]
    near = [run for run in runs if word and (run.id.startswith(word) or run.id.endswith(f"-{word}"))]
    if len(near) == 1:
        return near[0]
    if near:
        raise UsageError(f"`{word}` may be {len(near)} runs: {', '.join(r.id for r in near[-4:])}", "write more of it")
    raise UsageError(f"there is no run `{word}`", "`mountkit runs` lists them")


def receipt_text(receipt: Mapping[str, Any]) -> str:
    """A receipt as it is written down."""
    return _text({"version": RECEIPT_VERSION, **receipt})


def difference(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """What numbers grew by, name by name. A process that was replaced in between began anew at 0."""
    grown: dict[str, Any] = {}
    for name, value in after.items():
        if isinstance(value, Mapping):
            grown[name] = difference(before.get(name) or {}, value)
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            earlier = before.get(name) or 0
            grown[name] = value - earlier if value >= earlier else value
    return grown


def mount_counters(details: Mapping[str, Any]) -> dict[str, Any]:
    """The counters of a mount's status that a receipt is about."""
    return {kind: dict(details.get(kind) or {}) for kind in ("reads", "requests", "restarts")}


def input_of_receipt(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """What a run did to a mount, from its counters before and after.

    Files opened in passthrough are read by the kernel alone: their opens are counted, their bytes cannot be.
    """
    grown = difference(before, after)
    reads, requests = grown.get("reads") or {}, grown.get("requests") or {}
    return {
        "objects_opened": reads.get("opens", 0),
        "opens_fetched": reads.get("fetched_opens", 0),
        "native_opens": reads.get("passthrough_opens", 0),
        "bytes_read": reads.get("read_bytes", 0),
        "bytes_fetched": requests.get("bytes_received", 0),
        "cache_hits": reads.get("hits", 0),
        "cache_misses": reads.get("misses", 0),
        "read_errors": reads.get("errors", 0),
        "requests": {kind: requests[kind] for kind in ("get", "head", "list") if kind in requests},
        "retries": requests.get("retries", 0),
        "restarts": grown.get("restarts") or {},
    }


def _load(path: str) -> dict[str, Any]:
    try:
        with open(path, encoding="utf-8") as file:
            found = json.load(file)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _text(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2) + "\n"


def _store(path: str, text: str) -> None:
    with replaced(path) as file:
        file.write(text)


@contextlib.contextmanager
def replaced(path: str) -> Iterator[IO[str]]:
    """Replaces the file as a whole: a reader, or whoever comes after a crash, sees the old one or the new one.

    Raises HostError.
    """
    temporary = f"{path}.{os.getpid()}"
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with open(fd, "w", encoding="utf-8") as file:
            yield file
            file.flush()
            os.fsync(fd)
        os.replace(temporary, path)
    except OSError as exc:
        raise HostError(f"cannot write {path}: {os.strerror(exc.errno or 0)}", "make room on that disk") from exc
