"""Selection: which pictures to keep, so that those kept stand for all."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .pictures import Picture
from .settings import Settings


def duplicates(pictures: list[Picture]) -> list[int]:
    """Positions of pictures whose bytes an earlier one has."""
    seen: set[str] = set()
    found = []
    for number, picture in enumerate(pictures):
        if picture.digest in seen:
            found.append(number)
        seen.add(picture.digest)
    return found


def select(embeddings: NDArray[np.float32], settings: Settings) -> tuple[list[int], NDArray[np.float32]]:
    """Positions of the chosen, in the order of choice, and for every one its distance to the nearest chosen.

    `coreset` is the farthest-point traversal (greedy k-centre): each choice is the picture farthest from all chosen
    before, which is at most twice as far from the best possible cover. O(n · k) distances, no matrix of n × n.
    """
    count = len(embeddings)
    nearest = np.full(count, np.inf, dtype=np.float32)
    if not count:
        return [], nearest
    wanted = settings.wanted(count)
    order = np.random.default_rng(settings.seed).permutation(count)
    # The first is the one nearest to the middle of all, so that the same pictures give the same choice.
    middle = embeddings.mean(axis=0)
    following = int(np.argmin(np.linalg.norm(embeddings - middle, axis=1)))
    chosen: list[int] = []
    while len(chosen) < wanted:
        if settings.method == "random":
            following = int(order[len(chosen)])
        elif chosen:
            following = int(np.argmax(nearest))
            if nearest[following] < settings.min_distance:
                break
        chosen.append(following)
        distance = np.linalg.norm(embeddings - embeddings[following], axis=1)
        np.minimum(nearest, distance.astype(np.float32), out=nearest)
        nearest[following] = -1 if settings.method == "coreset" else 0  # never chosen twice
    return chosen, np.maximum(nearest, 0)


def spread(embeddings: NDArray[np.float32], seed: int = 0, most: int = 2000) -> float:
    """The mean distance from a picture to its nearest neighbour; of a random part where there are very many."""
    if len(embeddings) < 2:
        return 0.0
    if len(embeddings) > most:
        embeddings = embeddings[np.random.default_rng(seed).permutation(len(embeddings))[:most]]
    squares = 2 - 2 * (embeddings @ embeddings.T)  # all have length 1
    np.fill_diagonal(squares, np.inf)
    return float(np.sqrt(np.maximum(squares.min(axis=1), 0)).mean())


def plane(embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
    """The embeddings on their two principal axes, for plots."""
    if len(embeddings) < 2:
        return np.zeros((len(embeddings), 2), dtype=np.float32)
    centred = embeddings - embeddings.mean(axis=0)
    _, axes = np.linalg.eigh(centred.T @ centred)
    return np.asarray(centred @ axes[:, :-3:-1], dtype=np.float32)
