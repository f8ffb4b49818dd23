"""The order of uploads: which open operations of the journal may go now. Plain data, no clock, no store.

Operations that touch the same key (a copy touches two) go one after another. An ordered one waits for everything
before it, also for what has failed. One that failed holds up nobody else, with two exceptions: what reads a key that
it was to write, and what writes a key that it was to read; otherwise a rename that failed could lose its file.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Mapping

from mountkit.staging.queue import Operation
from mountkit.staging.schema import OperationKind, OperationState

LINGER_S = 1.0
"""How long a PUT may lie: much is replaced or renamed within a second."""
_BATCH = 1000


class UploadOrder:
    """Feed it with `add`, take from it with `next_ready`, and say how each went: `remove`, `failed`, `put_back`."""

    def __init__(self, *, linger_s: float = LINGER_S) -> None:
        self._linger_s = linger_s
        self._open: dict[int, Operation] = {}
        """Waiting or taken."""
        self._taken: set[int] = set()
        self._failed: dict[int, Operation] = {}
        self._all: list[int] = []
        """The numbers of all that is not over, failed ones too, in order."""
        self._by_key: dict[bytes, list[int]] = {}
        self._due: list[tuple[float, int]] = []
        """Candidates by when they may go; also numbers that are none any more."""
        self._not_before: dict[int, float] = {}
        self._since: dict[int, float] = {}
        """From when on each lingers."""
        self._urgent: set[int] = set()
        self._shadowed: dict[int, int] = {}
        """Operations whose bytes are gone, and the later one of the same file that stands in for each."""

    def __repr__(self) -> str:
        return f"<UploadOrder {len(self._open)} open, {len(self._taken)} taken, {len(self._failed)} failed>"

    def __len__(self) -> int:
        return len(self._open)

    def __contains__(self, seq: int) -> bool:
        return seq in self._open or seq in self._failed

    def get(self, seq: int) -> Operation | None:
        """An operation that is not over and has not failed."""
        return self._open.get(seq)

    @property
    def taken(self) -> int:
        return len(self._taken)

    @property
    def operations(self) -> Mapping[int, Operation]:
        """What is not over and has not failed, by number."""
        return self._open

    @property
    def failures(self) -> Mapping[int, Operation]:
        return self._failed

    # ---- in

    def add(self, operation: Operation, *, since: float | None = None) -> None:
        """An operation as the journal has it; takes the place of what was known of it.

        `since` (by default as before, or as the journal says): when it was queued, on the clock of `next_ready`.
        """
        seq = operation.seq
        urgent = seq in self._urgent
        since = self._since.get(seq, operation.queued_at) if since is None else since
        self._forget(seq)
        insort(self._all, seq)
        if operation.state is OperationState.FAILED:
            self._failed[seq] = operation
            return
        self._open[seq], self._since[seq] = operation, since
        if urgent:
            self._urgent.add(seq)
        for key in operation.keys:
            insort(self._by_key.setdefault(key, []), seq)
        self._offer(seq)

    def hurry(self, seqs: Iterable[int]) -> None:
        """These, and what they wait for, do not linger."""
        for seq in seqs:
            operation = self._open.get(seq)
            if operation is None or seq in self._urgent:
                continue
            before = [other for key in operation.keys for other in self._by_key[key] if other <= seq]
            if operation.ordered:
                before = [other for other in self._open if other <= seq]
            for each in before:
                self._urgent.add(each)
                self._offer(each)

    def hurry_all(self) -> None:
        """Nothing that is here now lingers."""
        for seq in self._open.keys() - self._urgent:
            self._urgent.add(seq)
            self._offer(seq)

    def lingers(self, operation: Operation) -> bool:
        return operation.kind is OperationKind.PUT and operation.seq not in self._urgent

    # ---- out

    def next_ready(self, now: float, limit: int) -> list[list[Operation]]:
        """Up to `limit` groups to start now; each is one operation, or deletes that may go in one request."""
        found: list[list[Operation]] = []
        later: list[tuple[float, int]] = []
        while len(found) < limit and (group := self._next_ordered(now)):
            found.append(self._take(group))
        while len(found) < limit and self._due and self._due[0][0] <= now:
            _, seq = heapq.heappop(self._due)
            if not self._is_candidate(seq):
                continue
            pause = self._not_before.get(seq, 0.0)
            if pause > now:
                later.append((pause, seq))
            else:
                found.append(self._take([self._open[seq]]))
        for entry in later:
            heapq.heappush(self._due, entry)
        return found

    def next_due(self) -> float | None:
        """When `next_ready` may have something it does not have now; None: not before something changes."""
        while self._due and not self._is_candidate(self._due[0][1]):
            heapq.heappop(self._due)
        times = [self._due[0][0]] if self._due else []
        first = self._open.get(self._all[0]) if self._all else None
        if first is not None and first.ordered and first.seq not in self._taken:
            times.append(max(self._ordered_due(first), self._not_before.get(first.seq, 0.0)))
        return min(times, default=None)

    def _take(self, group: list[Operation]) -> list[Operation]:
        self._taken.update(operation.seq for operation in group)
        return group

    def _next_ordered(self, now: float) -> list[Operation]:
        """The ordered operation that stands before everything else; with it, deletes that follow it at once."""
        group: list[Operation] = []
        keys: set[bytes] = set()
        for seq in self._all[:_BATCH]:
            operation = self._open.get(seq)
            if operation is None or seq in self._taken or seq in self._shadowed or not operation.ordered:
                break
            if max(self._ordered_due(operation), self._not_before.get(seq, 0.0)) > now:
                break
            if group and (operation.kind is not OperationKind.DELETE or operation.key in keys):
                break
            group.append(operation)
            keys.add(operation.key)
            if operation.kind is not OperationKind.DELETE:
                break
        return group

    def _ordered_due(self, operation: Operation) -> float:
        return self._since[operation.seq] + self._linger_s if self.lingers(operation) else 0.0

    # ---- how it went

    def put_back(self, operation: Operation, *, not_before: float = 0.0) -> None:
        """Taken, and to be tried again."""
        self.add(operation)
        if not_before:
            self._not_before[operation.seq] = not_before

    def remove(self, seq: int) -> list[int]:
        """It is over; the numbers of those that this makes needless: over, too."""
        operation = self._open.get(seq)
        needless = self._stood_in_for_by(seq)
        if operation is not None and operation.kind is not OperationKind.COPY:
            needless += [
                old
                for old, failure in self._failed.items()
                if old < seq and failure.key == operation.key and failure.kind is not OperationKind.COPY
            ]
        self._forget_all([seq, *needless])
        return needless

    def cancelled(self, seq: int) -> list[int]:
        """The server has cancelled it; the numbers of those that it stood in for: nobody will do them any more."""
        needless = self._stood_in_for_by(seq)
        self._forget_all([seq, *needless])
        return needless

    def failed(self, operation: Operation) -> list[Operation]:
        """It failed for good; with it, what it stood in for: those are returned."""
        olds = [self._open[old] for old in self._stood_in_for_by(operation.seq)]
        for each in (operation, *olds):
            self._forget(each.seq)
            self._failed[each.seq] = each
            insort(self._all, each.seq)
        return olds

    def stale(self, operation: Operation) -> list[int] | None:
        """The bytes it was to put are gone. The numbers of all that this ends; None: nothing is known of others yet.

        Empty where a later PUT of the same file stands in for it, and may go now: the place in the order stays taken
        until that one is done. Where that is ordered it would wait for itself; where something else follows under the
        key (the file was renamed or deleted since), nobody will send the file there any more: then it is over.
        """
        later = next((each for each in self._after(operation) if each.key == operation.key), None)
        if later is None:
            return None
        self._taken.discard(operation.seq)
        earlier = self._stood_in_for_by(operation.seq)
        if later.kind is not OperationKind.PUT or later.file != operation.file or later.ordered:
            over = [operation.seq, *earlier]
            self._forget_all(over)
            return over
        self._by_key[operation.key].remove(operation.seq)
        self._shadowed |= dict.fromkeys((operation.seq, *earlier), later.seq)
        self._offer(later.seq)
        return []

    def _after(self, operation: Operation) -> Iterator[Operation]:
        """What shares its key and comes after it, in order."""
        return (self._open[seq] for seq in self._by_key.get(operation.key, ()) if seq > operation.seq)

    def _stood_in_for_by(self, seq: int) -> list[int]:
        return [old for old, new in self._shadowed.items() if new == seq]

    def blocker(self, seq: int) -> Operation | None:
        """The failed operation that this one waits for; None if it can still get its turn."""
        operation = self._open.get(seq)
        if operation is None or not self._failed:
            return None
        for number, failure in self._failed.items():
            if number < seq and (operation.ordered or _must_not_pass(operation, failure)):
                return failure
        for key in operation.keys:
            for other in self._by_key.get(key, ()):
                if other < seq and (failure_before := self.blocker(other)):
                    return failure_before
        return None

    # ---- inside

    def _offer(self, seq: int) -> None:
        """Puts it among the candidates, if it is one."""
        if self._is_candidate(seq):
            operation = self._open[seq]
            due = self._since[seq] + self._linger_s if self.lingers(operation) else 0.0
            heapq.heappush(self._due, (due, seq))

    def _offer_all(self) -> None:
        for queue in self._by_key.values():
            self._offer(queue[0])

    def _is_candidate(self, seq: int) -> bool:
        operation = self._open.get(seq)
        if operation is None or operation.ordered or seq in self._taken or seq in self._shadowed:
            return False
        return all(self._by_key[key][0] == seq for key in operation.keys) and self.blocker(seq) is None

    def _forget_all(self, seqs: list[int]) -> None:
        freed = any(seq in self._failed for seq in seqs)
        for seq in seqs:
            self._forget(seq)
        if freed:
            self._offer_all()

    def _forget(self, seq: int) -> None:
        place = bisect_left(self._all, seq)
        if self._all[place : place + 1] == [seq]:
            del self._all[place]
        self._failed.pop(seq, None)
        self._taken.discard(seq)
        self._not_before.pop(seq, None)
        self._since.pop(seq, None)
        self._shadowed.pop(seq, None)
        self._urgent.discard(seq)
        operation = self._open.pop(seq, None)
        for key in operation.keys if operation is not None else ():
            queue = self._by_key.get(key, [])
            if seq in queue:  # one whose bytes are gone left it before
                queue.remove(seq)
            if queue:
                self._offer(queue[0])
            else:
                self._by_key.pop(key, None)


def _must_not_pass(operation: Operation, failure: Operation) -> bool:
    """Whether this one reads what the other was to write, or writes what the other was to read."""
    moves = failure.kind is OperationKind.COPY and failure.source_key != failure.key
    return operation.source_key == failure.key or (moves and failure.source_key == operation.key)
