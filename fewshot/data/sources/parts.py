"""The images of one split in a source, before any is read: their classes, their places in the bank, their files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fewshot.core.errors import FewshotError
from fewshot.data.sources.archives import Files
from fewshot.data.sources.faults import raise_faults


@dataclass(frozen=True)
class SplitSource:
    """One split of a source.

    Attributes:
        names: class names, sorted.
        labels: [n] class of each image, in reading order.
        rows: [n] row of each image in the bank, which is sorted by class.
        images: images(i) yields the images from number i on, each as a file's bytes or an array [H, W, C] uint8.
        describe: describe(i) names image i for messages.
        newest_change: newest_change(n) is the time of the latest change of the first n images' files, in seconds since
            1970.
        separate: whether an image can be read although the one before it cannot.
        files: the file of each image in reading order, relative to the source; empty where images have no files.
    """

    names: Sequence[str]
    labels: np.ndarray
    rows: np.ndarray
    images: Callable[[int], Iterator[bytes | np.ndarray]]
    describe: Callable[[int], str]
    newest_change: Callable[[int], float] = lambda n: 0.0
    separate: bool = False
    files: Sequence[str] = ()

    @property
    def counts(self) -> dict[str, int]:
        """Number of images of each class."""
        return dict(zip(self.names, np.bincount(self.labels, minlength=len(self.names)).tolist(), strict=True))


def part_of_files(
    files: Files, classes: Mapping[str, Sequence[str]], key: Callable[[str], str] | None = None
) -> SplitSource:
    """The split with these image files in each class; classes are sorted by name, files by name or by `key`.

    Raises:
        FewshotError: a file belongs to two classes, or occurs twice in one.
    """
    names = sorted(classes)
    label_and_row: dict[str, tuple[int, int]] = {}
    repeated = []
    for label, name in enumerate(names):
        for file in sorted(classes[name], key=key):
            if file in label_and_row:
                repeated.append(f"{files.describe(file)}: listed twice")
            label_and_row[file] = label, len(label_and_row)
    raise_faults("images that are listed twice", repeated, "an image belongs to one class, once")
    order = [name for name in files.names if name in label_and_row]
    order += sorted(name for name in label_and_row if name.startswith("/"))  # outside the source
    labels, rows = np.array([label_and_row[name] for name in order], dtype=np.int64).reshape(-1, 2).T
    return SplitSource(
        names,
        labels,
        rows,
        images=lambda i: files.read(order[i:]),
        describe=lambda i: files.describe(order[i]),
        newest_change=lambda n: files.newest_change(order[:n]),
        separate=files.root.is_dir() or files.root.suffix.lower() == ".zip",
        files=order,
    )


def part_of_labels(
    names: Sequence[str],
    labels: np.ndarray,
    images: Callable[[int], Iterator[bytes | np.ndarray]],
    where: str,
    newest_change: Callable[[], float] = lambda: 0.0,
) -> SplitSource:
    """The split of images in one file that come with labels [n], indices into `names`; classes are sorted by name.

    Args:
        names: class names, in any order.
        labels: [n] class of each image.
        images: see `SplitSource`.
        where: the file, for messages.
        newest_change: time of the latest change of the file.
    """
    order = sorted(range(len(names)), key=names.__getitem__)
    rank = np.empty(len(names), dtype=np.int64)
    rank[order] = np.arange(len(names))
    labels = rank[labels]
    rows = np.empty(len(labels), dtype=np.int64)
    rows[np.argsort(labels, kind="stable")] = np.arange(len(labels))
    return SplitSource(
        [names[i] for i in order],
        labels,
        rows,
        images,
        describe=lambda i: f"{where}: image {i + 1}",
        newest_change=lambda n: newest_change(),
    )


def check_parts(
    where: str, parts: Mapping[str, SplitSource], repeated_remedy: str | None = "rename one: splits share no class"
) -> None:
    """Check that the splits of a source can become banks.

    Args:
        repeated_remedy: what to do about a class of two splits; None: nothing, splits may share classes.

    Raises:
        FewshotError: a split has no classes, a class has no images, or a name occurs twice.
    """
    owners: dict[str, str] = {}
    empty, repeated = [], []
    for split, part in parts.items():
        if not part.names:
            raise FewshotError(f"{where}: no classes of {split}; add some")
        empty += [f"{where}: class {name} of {split} has no images" for name, n in part.counts.items() if not n]
        for name in part.names:
            if name in owners:
                repeated.append(f"{where}: class {name} is in {owners[name]} and in {split}")
            owners[name] = split
    raise_faults("classes without images", empty, "add some, or remove the class")
    if repeated_remedy is not None:
        raise_faults("classes that occur twice", repeated, repeated_remedy)
