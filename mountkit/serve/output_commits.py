"""Commits: what an fsync, or a durable close, waits for, and how it ended."""

from __future__ import annotations

import errno
import json

from mountkit import errors
from mountkit.errors import MountkitError, StoreUnavailable
from mountkit.serve.mover_link import MoverLink
from mountkit.serve.overlay import Overlay
from mountkit.staging.tree import ROOT_NODE, NodeKind


class Commits:
    """All methods belong to one trio thread; `to_commit` into a transaction."""

    def __init__(self, overlay: Overlay, mover: MoverLink) -> None:
        self._overlay, self._mover = overlay, mover
        self._journal, self._publisher, self._names = overlay.journal, overlay.publisher, overlay.names

    def failure(self) -> int:
        """The errno of an upload that failed for good, 0 where none did, as the journal says at this moment."""
        failed = self._journal.first_failed()
        return 0 if failed is None else _errno(failed.error)

    async def commit(self, seqs: list[int]) -> int:
        """Returns once these operations are done: 0, or the errno of one that failed."""
        if not seqs:
            return 0
        sent = -1
        while True:
            try:
                answer = await self._mover.call("commit", budget_s=self._overlay.show.data_budget_s + 2.0, seqs=seqs)
            except StoreUnavailable:
                now_sent = self._sent(seqs)
                if now_sent <= sent:
                    return errno.EIO
                sent = now_sent
                continue
            except MountkitError as exc:
                return exc.errno
            errors_found = answer.body.get("errors", {})
            return _errno(json.dumps(next(iter(errors_found.values())))) if errors_found else 0

    def to_commit(self, inode: int, handle: int | None) -> list[int]:
        """What an fsync has to wait for; queues the file as it is now."""
        node = self._names.node(inode)
        if node is None or not node.names:
            return []
        if node.kind == NodeKind.FILE and handle is not None and self._publisher.changed(node):
            self._publisher.publish(node)
        key = self._publisher.key_of(node.id)
        if node.kind == NodeKind.DIRECTORY:
            path = self._names.underlay.prefix if node.id == ROOT_NODE else (key or b"") + b"/"
            return self._journal.open_in_directory(path)
        return [operation.seq for operation in self._journal.open_of_key(key)] if key else []

    def _sent(self, seqs: list[int]) -> int:
        marks = ", ".join("?" * len(seqs))
        (total,) = self._journal.db.execute(
            f"SELECT coalesce(sum(sent_bytes), 0) FROM operation WHERE seq IN ({marks})",  # noqa: S608
            seqs,
        ).fetchone()
        return int(total)


def _errno(text: str | None) -> int:
    found = errors.from_json(json.loads(text)) if text else MountkitError("")
    return found.errno if found.errno in (errno.ENOSPC, errno.EACCES, errno.EDQUOT) else errno.EIO
