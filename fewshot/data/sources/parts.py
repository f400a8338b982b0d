"""The images of one split as a source has them, before any is read: which class, which place, where from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from fewshot.core.errors import FewshotError
from fewshot.data.sources.archives import Files
from fewshot.data.sources.faults import raise_faults


@dataclass(frozen=True)
class SplitSource:
    """One split of a source.

    Attributes:
        names: of the classes, sorted.
        labels: [n] class of each image, in the order in which they come.
        rows: [n] the place of each in the bank, which is sorted by class.
        images: the images from the i-th on, each a file's bytes or an array [H, W, C] uint8.
        where: the i-th image's name for people.
        changed: when the files of the first n were put there, the last of them, in seconds since 1970.
        apart: whether an image can be read although the one before it cannot.
    """

    names: Sequence[str]
    labels: np.ndarray
    rows: np.ndarray
    images: Callable[[int], Iterator[bytes | np.ndarray]]
    where: Callable[[int], str]
    changed: Callable[[int], float] = lambda n: 0.0
    apart: bool = False


def part_of_files(
    files: Files, classes: Mapping[str, Sequence[str]], key: Callable[[str], str] | None = None
) -> SplitSource:
    """The split whose classes are these files of a source: classes sorted by name, their files by name or by a key.

    Raises:
        FewshotError: a file that belongs to two classes, stands twice in one, or is not in the source.
    """
    names = sorted(classes)
    place: dict[str, tuple[int, int]] = {}  # class and row of each file
    twice = []
    for label, name in enumerate(names):
        for file in sorted(classes[name], key=key):
            if file in place:
                twice.append(f"{files.where(file)}: listed twice")
            place[file] = label, len(place)
    raise_faults("images in two places", twice, "an image belongs to one class, once")
    order = [name for name in files.names if name in place]
    order += sorted(name for name in place if name.startswith("/"))  # which lie elsewhere
    missing = [f"{files.where(name)}: listed, but not there" for name in sorted(set(place) - set(order))]
    raise_faults("images that are listed, but not there", missing, "fetch the data again")
    labels, rows = np.array([place[name] for name in order], dtype=np.int64).reshape(-1, 2).T
    return SplitSource(
        names,
        labels,
        rows,
        images=lambda i: files.read(order[i:]),
        where=lambda i: files.where(order[i]),
        changed=lambda n: files.changed(order[:n]),
        apart=files.root.is_dir() or files.root.suffix.lower() == ".zip",
    )


def part_of_labels(
    names: Sequence[str],
    labels: np.ndarray,
    images: Callable[[int], Iterator[bytes | np.ndarray]],
    where: Callable[[int], str],
    changed: Callable[[int], float] = lambda n: 0.0,
) -> SplitSource:
    """The split of images that come with a label each, an index into `names`; classes sorted by name.

    Raises:
        FewshotError: a label that is none.
    """
    stray = np.flatnonzero((labels < 0) | (labels >= len(names))).tolist()
    faults = [f"{where(i)}: label {labels[i]}, but there are {len(names)} classes" for i in stray]
    raise_faults("labels of no class", faults, "fetch the data again")
    order = sorted(range(len(names)), key=names.__getitem__)
    rank = np.empty(len(names), dtype=np.int64)
    rank[order] = np.arange(len(names))
    labels = rank[labels]
    rows = np.empty(len(labels), dtype=np.int64)
    rows[np.argsort(labels, kind="stable")] = np.arange(len(labels))
    return SplitSource([names[i] for i in order], labels, rows, images, where, changed)


def check_parts(where: str, parts: Mapping[str, SplitSource]) -> None:
    """Hold what a source says of its splits against what a Bank needs.

    Raises:
        FewshotError: a split without classes, a class without images, one named twice, or one in two splits.
    """
    seen: dict[str, str] = {}
    for split, part in parts.items():
        if not part.names:
            raise FewshotError(f"{where}: split {split} has no classes")
        counts = np.bincount(part.labels, minlength=len(part.names))
        empty = [
            f"{where}: class {part.names[i]} of {split} has no images" for i in np.flatnonzero(counts == 0).tolist()
        ]
        raise_faults("classes without images", empty, "add some, or leave the class out")
        twice = [name for name, after in pairwise(sorted(part.names)) if name == after]
        twice = [f"{where}: class {name} of {split} is named twice" for name in twice]
        raise_faults("names of several classes", twice, "give every class a name of its own")
        shared = [name for name in part.names if seen.setdefault(name, split) != split]
        shared = [f"{where}: class {name} is in {seen[name]} and in {split}" for name in shared]
        raise_faults("classes in two splits", shared, "splits share no class")
