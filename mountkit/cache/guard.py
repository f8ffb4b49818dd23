"""Guard: who may touch an object's own file. Many writers at once, or one who seals, checks or deletes it."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from mountkit.cache.content import ContentId


class Guard:
    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._writing: Counter[ContentId] = Counter()
        self._alone: dict[ContentId, bool] = {}

    def begin_write(self, content: ContentId) -> bool:
        """Whether to write; False if the object is complete and being sealed. Waits while it is being deleted.

        A True must be followed by `end_write`.
        """
        with self._changed:
            while (complete := self._alone.get(content)) is not None:
                if complete:
                    return False
                self._changed.wait()
            self._writing[content] += 1
            return True

    def end_write(self, content: ContentId) -> None:
        with self._changed:
            self._writing[content] -= 1
            if not self._writing[content]:
                del self._writing[content]
                self._changed.notify_all()

    @contextmanager
    def alone(self, content: ContentId, *, complete: bool) -> Iterator[None]:
        """Nobody else touches the object meanwhile; waits for those who do. Not reentrant.

        `complete`: what others would write is there already, so they are told to drop it instead of waiting.
        """
        with self._changed:
            while content in self._alone or content in self._writing:
                self._changed.wait()
            self._alone[content] = complete
        try:
            yield
        finally:
            with self._changed:
                del self._alone[content]
                self._changed.notify_all()
