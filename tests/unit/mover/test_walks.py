"""Which directories are listed before a walk enters them."""

from __future__ import annotations

import random

from mountkit.mover.walks import MAX_WINDOW, Walks


class Tree:
    """A tree of which all directories are known, and what a lister would list ahead in it."""

    def __init__(self, *prefixes: bytes) -> None:
        self.prefixes = sorted(prefixes)
        self.walks = Walks(self.following)
        self.ahead: set[bytes] = set()

    def following(self, prefix: bytes, top: bytes) -> bytes | None:
        return next((p for p in self.prefixes if p >= prefix and p.startswith(top)), None)

    def enter(self, *prefixes: bytes) -> list[bytes]:
        """Enters them in turn; those that nothing was listed ahead of."""
        cold = []
        for prefix in prefixes:
            if prefix not in self.ahead:
                cold.append(prefix)
            walk = self.walks.entered(prefix)
            if walk is not None:
                after = [p for p in self.prefixes if p > walk.last and p.startswith(walk.top)]
                self.ahead.update(after[: walk.window])
        return cold


def siblings(count: int) -> list[bytes]:
    return [b"d%04d/" % n for n in range(count)]


def test_a_walk_waits_for_two_directories_of_a_thousand() -> None:
    tree = Tree(b"", *siblings(1000))
    assert tree.enter(b"", *siblings(1000)) == [b"", b"d0000/"]


def test_a_walk_down_and_up_again_goes_on() -> None:
    deep = [b"%s%s" % (one, other) for one in siblings(20) for other in (b"", b"a/", b"a/b/", b"c/")]
    tree = Tree(b"", *deep)
    assert len(tree.enter(b"", *deep)) <= 3


def test_reading_only_the_first_level_is_a_walk_too() -> None:
    tree = Tree(b"", *siblings(50), *(d + b"x/" for d in siblings(50)))
    assert len(tree.enter(*siblings(50))) <= 8


def test_a_single_directory_and_one_of_its_children_list_eight_ahead() -> None:
    tree = Tree(b"", *siblings(1000))
    tree.enter(b"", b"d0000/")
    assert tree.ahead == set(siblings(9)[1:])


def test_directories_in_no_order_list_nothing_ahead() -> None:
    tree = Tree(b"", *siblings(1000))
    tree.enter(*random.Random(2).sample(siblings(1000), 40))
    assert len(tree.ahead) <= 8


def test_a_walk_of_a_subtree_does_not_reach_beyond_it() -> None:
    below = [b"a/%d/" % n for n in range(5)]
    tree = Tree(b"", b"a/", *below, *siblings(100))
    tree.enter(b"a/", *below)
    assert tree.ahead <= set(below)


def test_the_window_is_bounded() -> None:
    tree = Tree(b"", *siblings(3000))
    for at, prefix in enumerate([b"", *siblings(2000)]):
        tree.enter(prefix)
        assert len([p for p in tree.ahead if p > prefix]) <= MAX_WINDOW, at


def test_walks_side_by_side_are_walks_of_their_own() -> None:
    parts = [[b"p%d/" % p, *(b"p%d/%03d/" % (p, n) for n in range(40))] for p in range(8)]
    tree = Tree(b"", *(prefix for part in parts for prefix in part))
    turns = [prefix for turn in zip(*parts, strict=True) for prefix in turn]
    assert len(tree.enter(*turns)) <= 3 * len(parts)


def test_entering_the_same_directory_again_is_no_step() -> None:
    tree = Tree(b"", *siblings(10))
    tree.enter(b"", b"", b"")
    assert tree.ahead == set()
