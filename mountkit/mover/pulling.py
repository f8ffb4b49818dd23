"""Pull: everything below a prefix into a local directory, many objects at once, nothing ever written outside of it.

A file appears under its name when it is whole, with the object's time; one of the same size and time is not fetched
again, so that an interrupted pull goes on and a second one fetches what is new.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

from mountkit import names
from mountkit.beneath import Beneath
from mountkit.errors import HostError, MountkitError
from mountkit.mover.transfer_progress import TransferProgress
from mountkit.store.api import ObjectInfo, Store

_THREADS = 32
_WAITING = 4 * _THREADS


@dataclass(slots=True)
class PullProgress(TransferProgress):
    """`unchanged` ones count as done."""

    unchanged: int = 0


class Pull:
    """One pull. `run` it on a thread; `progress` may be read from any other."""

    def __init__(self, store: Store, prefix: bytes, target: str) -> None:
        self._store, self._prefix, self._target = store, prefix, target
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self.progress = PullProgress()

    def stop(self) -> None:
        """Has `run` end soon; what is whole stays."""
        self._ended.set()

    def run(self) -> None:
        """Raises StoreError where the bucket cannot be listed, HostError where nothing can be written."""
        with Beneath(self._target) as root, ThreadPoolExecutor(_THREADS, "pull") as threads:
            waiting: set[Future[None]] = set()
            try:
                for info in self._objects():
                    if self._ended.is_set():
                        return
                    if len(waiting) >= _WAITING:
                        _, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                    waiting.add(threads.submit(self._one, root, info))
                self.progress.listing = False
                wait(waiting)
            finally:
                self._ended.set()

    def _objects(self) -> Iterator[ObjectInfo]:
        token = ""
        while True:
            page = self._store.list_page(self._prefix, delimiter=b"", token=token)
            for info in page.objects:
                self.progress.found(info.size)
                yield info
            token = page.next_token
            if not token:
                return

    def _one(self, root: Beneath, info: ObjectInfo) -> None:
        if self._ended.is_set():
            return
        path = info.key.removeprefix(self._prefix)
        try:
            kind = names.classify(path)
            if kind is names.KeyKind.ODD:
                raise HostError("the key is no path")
            if kind is names.KeyKind.MARKER:
                if path:
                    root.directory(path)
            elif _is_same(root, path, info):
                self._count(info, unchanged=True)
                return
            else:
                self._fetch(root, path, info)
        except MountkitError as exc:
            self._fail(f"{path.decode('utf-8', 'backslashreplace')}: {exc}")
        else:
            self._count(info)

    def _fetch(self, root: Beneath, path: bytes, info: ObjectInfo) -> None:
        with root.replaced(path) as fd:
            try:
                if info.size:
                    for piece in self._store.get(info, 0, info.size).chunks():
                        written = 0
                        while written < len(piece):
                            written += os.write(fd, piece[written:])
                os.utime(fd, ns=(info.mtime_ns, info.mtime_ns))
            except OSError as exc:
                raise HostError(f"cannot be written: {os.strerror(exc.errno or 0)}", "make room on that disk") from exc

    def _count(self, info: ObjectInfo, *, unchanged: bool = False) -> None:
        with self._lock:
            self.progress.files_done += 1
            self.progress.bytes_done += info.size
            self.progress.unchanged += unchanged

    def _fail(self, sentence: str) -> None:
        with self._lock:
            self.progress.fail(sentence)


def _is_same(root: Beneath, path: bytes, info: ObjectInfo) -> bool:
    status = root.stat(path)
    return status is not None and (status.st_size, status.st_mtime_ns) == (info.size, info.mtime_ns)
