"""Random splits of a person's own data: of its classes, of its files, or of the images of each class."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fewshot.core.errors import FewshotError
from fewshot.data.bank import SPLITS


def check_shares(fractions: Sequence[float], seed: int) -> Sequence[float]:
    """The shares of train, val and test.

    Raises:
        FewshotError: they are not three numbers above 0 with the sum 1, or the seed is none of NumPy's.
    """
    shares = fractions if isinstance(fractions, Sequence) and len(fractions) == 3 else [0]
    if not all(isinstance(share, int | float) and share > 0 for share in shares) or abs(sum(shares) - 1) > 1e-6:
        raise FewshotError(f"dataset.reader.fractions={fractions}: write three numbers above 0 with the sum 1")
    if type(seed) is not int or not 0 <= seed < 1 << 32:
        raise FewshotError(f"dataset.reader.seed={seed}: choose a whole number from 0 to 2^32 - 1")
    return shares


def split_sizes(count: int, shares: Sequence[float]) -> list[int]:
    """How many of `count` items train, val and test get."""
    train, val = (int(count * share + 0.5) for share in shares[:2])
    return [train, val, count - train - val]


def split_at_random(names: Sequence[str], shares: Sequence[float], seed: int) -> dict[str, list[str]]:
    """The names of each split: sorted, shuffled by numpy RandomState(seed), and cut by the shares."""
    # RandomState, not Generator: NumPy promises that its numbers stay the same in every version.
    ordered = sorted(names)
    order = iter(np.random.RandomState(seed).permutation(len(ordered)).tolist())
    sizes = split_sizes(len(ordered), shares)
    return {split: [ordered[next(order)] for _ in range(size)] for split, size in zip(SPLITS, sizes, strict=True)}
