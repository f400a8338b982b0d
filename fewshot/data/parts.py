"""The images of one split as a source has them, before any is read: which class, which place, where from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from fewshot.data.files import Files
from fewshot.errors import FewshotError


@dataclass(frozen=True)
class Part:
    """One split of a source.

    Attributes:
        names: of the classes, sorted.
        labels: [n] class of each image, in the order in which they come.
        rows: [n] the place of each in the bank, which is sorted by class.
        images: the images from the i-th on, each a file's bytes or an array [H, W, C] uint8.
        where: the i-th image's name for people.
        changed: when the files of the first n were put there, the last of them, in seconds since 1970.
    """

    names: Sequence[str]
    labels: np.ndarray
    rows: np.ndarray
    images: Callable[[int], Iterator[bytes | np.ndarray]]
    where: Callable[[int], str]
    changed: Callable[[int], float] = lambda n: 0.0


def part_of_files(files: Files, classes: Mapping[str, Sequence[str]], key: Callable[[str], str] | None = None) -> Part:
    """The split whose classes are these files of a source: classes sorted by name, their files by name or by a key.

    Raises:
        FewshotError: a file that belongs to two classes, stands twice in one, or is not in the source.
    """
    names = sorted(classes)
    place: dict[str, tuple[int, int]] = {}  # class and row of each file
    for label, name in enumerate(names):
        for file in sorted(classes[name], key=key):
            if file in place:
                raise FewshotError(f"{files.where(file)}: listed twice; an image belongs to one class, once")
            place[file] = label, len(place)
    order = [name for name in files.names if name in place]
    if len(order) < len(place):
        missing = min(set(place) - set(order))
        raise FewshotError(f"{files.where(missing)}: listed, but not there; fetch the data again")
    labels, rows = np.array([place[name] for name in order], dtype=np.int64).reshape(-1, 2).T
    return Part(
        names,
        labels,
        rows,
        images=lambda i: files.read(order[i:]),
        where=lambda i: files.where(order[i]),
        changed=lambda n: files.changed(order[:n]),
    )


def part_of_labels(
    names: Sequence[str],
    labels: np.ndarray,
    images: Callable[[int], Iterator[bytes | np.ndarray]],
    where: Callable[[int], str],
    changed: Callable[[int], float] = lambda n: 0.0,
) -> Part:
    """The split of images that come with a label each, an index into `names`; classes sorted by name.

    Raises:
        FewshotError: a label that is none.
    """
    for i in np.flatnonzero((labels < 0) | (labels >= len(names)))[:1].tolist():
        raise FewshotError(f"{where(i)}: label {labels[i]}, but there are {len(names)} classes; fetch the data again")
    order = sorted(range(len(names)), key=names.__getitem__)
    rank = np.empty(len(names), dtype=np.int64)
    rank[order] = np.arange(len(names))
    labels = rank[labels]
    rows = np.empty(len(labels), dtype=np.int64)
    rows[np.argsort(labels, kind="stable")] = np.arange(len(labels))
    return Part([names[i] for i in order], labels, rows, images, where, changed)


def check_parts(where: str, parts: Mapping[str, Part]) -> None:
    """Hold what a source says of its splits against what a Bank needs.

    Raises:
        FewshotError: a split without classes, a class without images, one named twice, or one in two splits.
    """
    seen: dict[str, str] = {}
    for split, part in parts.items():
        if not part.names:
            raise FewshotError(f"{where}: split {split} has no classes")
        counts = np.bincount(part.labels, minlength=len(part.names))
        if not counts.all():
            raise FewshotError(f"{where}: class {part.names[int(counts.argmin())]} of {split} has no images")
        if len(set(part.names)) < len(part.names):
            twice = next(name for name, after in pairwise(sorted(part.names)) if name == after)
            raise FewshotError(f"{where}: class {twice} of {split} is named twice; give every class a name of its own")
        for name in part.names:
            if seen.setdefault(name, split) != split:
                raise FewshotError(f"{where}: class {name} is in {seen[name]} and in {split}; splits share no class")
