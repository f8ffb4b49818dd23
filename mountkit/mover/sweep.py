"""Sweep: when is a tree, or one large file, worth fetching before anybody asks, and how much of it now.

Plain rules over what was opened and read: time comes in as an argument, nothing is fetched here. A shuffled epoch opens
distinct files below one directory in no order. Forty of them within ten seconds begin a sweep; from then on so many
bytes may be swept as were demanded, times a factor that stays at 2.5 for the first 128 files and then doubles with each
64 more. So a hundred random files cost at most 3.5 times their bytes, and an epoch is at full speed within seconds.
Files found already swept count as demand, so the evidence grows with success. 1.5 s after the last open a sweep rests.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

from mountkit.cache.content import BLOCK_BYTES, PART_BYTES
from mountkit.mover.readahead import SLACK_BYTES

BEGIN_FILES = 40
_RECENT_FILES, _RECENT_S = 128, 10.0
REST_S, _FORGET_S = 1.5, 300.0
_FACTOR, _STEADY_FILES, _DOUBLING_FILES, _MAX_DOUBLINGS = 2.5, 128, 64, 30
_COUNTED_FILES = _STEADY_FILES + _DOUBLING_FILES * _MAX_DOUBLINGS
_GENTLY_AT_ONCE, _GENTLE_FILES = 16, 128
"""So many GETs at first, twice as many after each 128 files. Measured on two cores: with 8 and 256 an epoch of
20,000 files takes a tenth longer, and 1,000 files read of the 20,000 a fifth less time; with 32 and 128 both as now."""
_TREES, _LARGE_FILES = 8, 64

BEGIN_READS = 40
_LARGE_FACTOR, _LARGE_FACTOR_MAX = 2.5, 5.0
"""A random read of 128 KB fetches two parts; five times as much swept makes less than ten bytes for one read."""


@dataclass(eq=False, slots=True)
class Tree:
    """A directory being swept: what was demanded below it, and what was fetched for that."""

    prefix: bytes
    demanded_bytes: int = 0
    swept_bytes: int = 0
    last_at: float = 0.0
    ended: bool = False
    """Nobody has opened anything there for long, or a tree above has taken over."""
    missed: int = 0
    """Files that had to be asked for since the sweep came to its end."""
    files: set[bytes] = field(default_factory=set)

    def __repr__(self) -> str:
        return f"<Tree {self.prefix!r} {len(self.files)} files, {self.swept_bytes} of {self.demanded_bytes} B swept>"

    def demand(self, now: float, key: bytes, size: int) -> None:
        if len(self.files) < _COUNTED_FILES:
            if key in self.files:
                return
            self.files.add(key)
        self.demanded_bytes += min(size, BLOCK_BYTES)  # an open brings no more of a large file
        self.last_at = now

    def allowance(self, now: float) -> int:
        """How many bytes more may be swept now."""
        if self.ended or now - self.last_at > REST_S:
            return 0
        doublings = min(_MAX_DOUBLINGS, max(0, len(self.files) - _STEADY_FILES) / _DOUBLING_FILES)
        return int(_FACTOR * 2**doublings * self.demanded_bytes) - self.swept_bytes

    def at_once(self, most: int) -> int:
        """How many fetches of at most `most` may be under way."""
        return min(most, _GENTLY_AT_ONCE << min(8, len(self.files) // _GENTLE_FILES))


class Sweeps:
    """The trees being swept, found from the keys of the files that are opened."""

    def __init__(self, root: bytes) -> None:
        """`root`: the mount's prefix; what is swept lies below it."""
        self._root = root
        self._trees: dict[bytes, Tree] = {}
        self._recent: OrderedDict[bytes, tuple[float, int]] = OrderedDict()

    def __repr__(self) -> str:
        return f"<Sweeps {list(self._trees.values())}>"

    def opened(self, now: float, key: bytes, size: int) -> tuple[Tree | None, bool]:
        """Notes an open: the tree the file is in, if it is swept, and whether its sweep begins now."""
        tree = self.tree_of(key)
        if tree is not None and now - tree.last_at > _FORGET_S:
            self.end(tree)
        elif tree is not None:
            tree.demand(now, key, size)
            return tree, False
        self._recent[key] = now, size
        self._recent.move_to_end(key)
        while len(self._recent) > _RECENT_FILES or next(iter(self._recent.values()))[0] < now - _RECENT_S:
            self._recent.popitem(last=False)
        if len(self._recent) < BEGIN_FILES:
            return None, False
        for prefix in _ancestors(key, self._root):
            below = [other for other in self._recent if other.startswith(prefix)]
            if len(below) >= BEGIN_FILES:
                return self._begin(now, prefix, below), True
        return None, False

    def tree_of(self, key: bytes) -> Tree | None:
        return next((tree for prefix, tree in self._trees.items() if key.startswith(prefix)), None)

    def end(self, tree: Tree) -> None:
        """The tree is forgotten; forty more opens begin it anew."""
        tree.ended = True
        self._trees.pop(tree.prefix, None)

    def _begin(self, now: float, prefix: bytes, below: list[bytes]) -> Tree:
        for other in list(self._trees.values()):
            if now - other.last_at > _FORGET_S or other.prefix.startswith(prefix):
                self.end(other)
        if len(self._trees) >= _TREES:
            self.end(min(self._trees.values(), key=lambda other: other.last_at))
        tree = self._trees[prefix] = Tree(prefix)
        for key in below:
            tree.demand(now, key, self._recent.pop(key)[1])
        return tree


def _ancestors(key: bytes, root: bytes) -> list[bytes]:
    """The prefixes of the directories the key lies in, deepest first, down to `root`."""
    found = []
    cut = key.rfind(b"/")
    while cut >= len(root):
        found.append(key[: cut + 1])
        cut = key.rfind(b"/", 0, cut)
    return [*found, root]


@dataclass(eq=False, slots=True)
class LargeFile:
    """A large file that is read here and there."""

    demanded_bytes: int = 0
    swept_bytes: int = 0
    last_at: float = 0.0
    begun: bool = False
    ended: bool = False
    parts: set[int] = field(default_factory=set)
    jumps: list[float] = field(default_factory=list)
    end: int = 0

    def allowance(self, now: float) -> int:
        """How many bytes more may be swept now."""
        if self.ended or now - self.last_at > REST_S:
            return 0
        doublings = max(0, len(self.parts) - _STEADY_FILES) / _DOUBLING_FILES
        factor = min(_LARGE_FACTOR_MAX, _LARGE_FACTOR * 2 ** min(doublings, 2))
        return int(factor * self.demanded_bytes) - self.swept_bytes

    def at_once(self, most: int) -> int:
        """How many fetches of at most `most` may be under way."""
        return most


class LargeFiles:
    """The large files of which enough different places are read to fetch the rest too."""

    def __init__(self) -> None:
        self._files: OrderedDict[int, LargeFile] = OrderedDict()

    def read(self, now: float, object_id: int, offset: int, length: int) -> tuple[LargeFile, bool]:
        """Notes a read: its file, and whether the file's sweep begins now."""
        file = self._files.get(object_id)
        if file is None:
            file = self._files[object_id] = LargeFile()
            if len(self._files) > _LARGE_FILES:
                _, dropped = self._files.popitem(last=False)
                dropped.ended = True
        self._files.move_to_end(object_id)
        if abs(offset - file.end) > SLACK_BYTES:
            file.jumps = [at for at in file.jumps[-BEGIN_READS:] if at > now - _RECENT_S] + [now]
            file.end = 0
        # the furthest end, not the last: what is heard of late must not make a jump of what follows
        file.end = max(file.end, offset + length)
        if (part := offset // PART_BYTES) not in file.parts:
            file.parts.add(part)
            file.demanded_bytes += length
        file.last_at = now
        begins = not file.begun and len(file.jumps) >= BEGIN_READS
        file.begun |= begins
        return file, begins

    def end(self, object_id: int) -> None:
        """Forgets the file; as many reads as before begin its sweep anew."""
        file = self._files.pop(object_id, None)
        if file is not None:
            file.ended = True
