"""What a container writes, on its way to our output and to the run's log, with the values of secrets blotted out."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from typing import BinaryIO

from mountkit.errors import HostError

BLOT = b"***"
_LEAST_SECRET_BYTES = 4
"""Shorter values would blot out ordinary words."""
LOG_LIMIT_BYTES = 1 << 30


class Blotter:
    """Replaces secrets in a stream of chunks, also where one is cut in two by their border."""

    def __init__(self, secrets: Iterable[bytes]) -> None:
        self._secrets = sorted((s for s in set(secrets) if len(s) >= _LEAST_SECRET_BYTES), key=len, reverse=True)
        self._held = b""

    def feed(self, chunk: bytes) -> bytes:
        """What may be shown by now: an end that may be the beginning of a secret is held back."""
        if not self._secrets:
            return chunk
        data = self._held + chunk
        for secret in self._secrets:
            data = data.replace(secret, BLOT)
        cut = len(data) - max(self._begun(data, secret) for secret in self._secrets)
        data, self._held = data[:cut], data[cut:]
        return data

    def rest(self) -> bytes:
        """What was held back and turned out to be no secret."""
        held, self._held = self._held, b""
        return held

    @staticmethod
    def _begun(data: bytes, secret: bytes) -> int:
        """The length of the longest end of `data` that is a beginning of `secret`."""
        for length in range(min(len(secret) - 1, len(data)), 0, -1):
            if data.endswith(secret[:length]):
                return length
        return 0


def give_up(stream: BinaryIO) -> None:
    """Nobody reads `stream` any more: what it still holds must not fail at the interpreter's end (exit code 120)."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


class Tee:
    """Shows a container's output and keeps it; an `engine.Output`. A reader that goes away disturbs nobody."""

    def __init__(
        self,
        stdout: BinaryIO | None,
        stderr: BinaryIO | None,
        log: BinaryIO | None,
        *,
        secrets: Iterable[bytes] = (),
        log_limit_bytes: int = LOG_LIMIT_BYTES,
    ) -> None:
        values = list(secrets)
        self._shown = {False: stdout, True: stderr}
        self._blotters = {False: Blotter(values), True: Blotter(values)}
        self._log = log
        self._room = log_limit_bytes

    @classmethod
    @contextlib.contextmanager
    def to_log(
        cls, path: str, stdout: BinaryIO | None = None, stderr: BinaryIO | None = None, *, secrets: Iterable[bytes] = ()
    ) -> Iterator[Tee]:
        """One that keeps everything in the file `path`, which begins anew. Raises HostError."""
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as exc:
            raise HostError(f"cannot write the log {path}: {os.strerror(exc.errno or 0)}") from exc
        tee = cls(stdout, stderr, os.fdopen(fd, "wb"), secrets=secrets)
        try:
            yield tee
        finally:
            tee.close()

    def __call__(self, chunk: bytes, is_error: bool) -> None:
        self._write(self._blotters[is_error].feed(chunk), is_error)

    def close(self) -> None:
        for is_error, blotter in self._blotters.items():
            self._write(blotter.rest(), is_error)
        if self._log is not None:
            self._log.close()

    def _write(self, data: bytes, is_error: bool) -> None:
        target = self._shown[is_error]
        if data and target is not None:
            try:
                target.write(data)
                target.flush()
            except (OSError, ValueError):
                self._shown[is_error] = None
                give_up(target)
        if data and self._log is not None and self._room > 0:
            with contextlib.suppress(OSError, ValueError):  # a full disk must not end a training
                self._log.write(data[: self._room])
                self._room -= len(data)
                if self._room <= 0:
                    self._log.write(b"\nmountkit: the log ends here, it has reached its limit\n")
                self._log.flush()
