"""CIFAR-FS and FC100: the 100 classes of CIFAR-100 (Krizhevsky 2009), 600 images of 32x32 pixels each, in two splits.

CIFAR-FS has 64, 16 and 20 classes at random (Bertinetto et al. 2019), FC100 60, 20 and 20, related ones in one split
(Oreshkin et al. 2018). The first of these layouts that is there is taken:

- the authors' archive `cifar-100-python.tar.gz`, or its files `train`, `test` and `meta`, as torchvision has them;
- `CIFAR_FS_{train,val,test}.pickle` or `FC100_{train,val,test}.pickle` (github.com/kjunelee/MetaOptNet, learn2learn):
  dicts of "data" [n, 32, 32, 3] uint8 and "labels", whose numbers are the only names of the classes;
- class folders named as CIFAR-100 names its classes, in folders of their split or not.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np

from fewshot.core.errors import FewshotError
from fewshot.data.bank import SPLITS
from fewshot.data.sources import pickles
from fewshot.data.sources.archives import Files, check_archive, open_checked
from fewshot.data.sources.download import fetch
from fewshot.data.sources.faults import raise_faults
from fewshot.data.sources.images import is_image
from fewshot.data.sources.parts import SplitSource, part_of_labels
from fewshot.data.sources.published import (
    PARTLY,
    Found,
    PublishedDataset,
    Splits,
    check_classes,
    files_by_split,
    find_class_folders,
)

URL = "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz"
NAME = "cifar-100-python"
ORIGINAL = ("train", "test", "meta")
IMAGES = 600  # of each class
WANTED = "wanted: the files of CIFAR-100 for Python, with data and fine_labels"


def _find(files: Files, splits: Splits, pattern: re.Pattern[str]) -> Found | str:
    file_of: dict[str, str] = {}
    for name in files.names:
        if (base := posixpath.basename(name)) in ORIGINAL:
            if base in file_of:
                raise FewshotError(f"{files.root}: {file_of[base]} and {name} are both there: leave one of them")
            file_of[base] = name
    if len(file_of) == len(ORIGINAL):
        return _find_original(files, file_of, splits)
    pickle_of = files_by_split(files, pattern)
    if len(pickle_of) == len(SPLITS):
        parts = {split: _part_of_pickle(files, name, split) for split, name in pickle_of.items()}
        return {split: parts[split] for split in SPLITS}, {"layout": "pickles", "split_source": "the files' own"}
    if folders := find_class_folders(files, splits):
        return folders
    for there, wanted in ((pickle_of, SPLITS), (file_of, ORIGINAL)):
        if there:
            missing = " and ".join(name for name in wanted if name not in there)
            return f"{next(iter(there.values()))} is there, but none of {missing}"
    return ""


def _find_original(files: Files, file_of: Mapping[str, str], splits: Splits) -> Found:
    with open_checked(files, file_of["meta"], WANTED) as file:
        names = pickles.with_text_keys(pickles.load(file))["fine_label_names"]
        names = [name.decode() if isinstance(name, bytes) else str(name) for name in names]
    stray = {name for split in SPLITS for name in splits[split]} ^ set(names)
    raise_faults("classes of another dataset", [f"{files.root}: {name}" for name in sorted(stray)], WANTED)
    labels = np.concatenate([_load(files, file_of[each])[1] for each in ORIGINAL[:2]])
    parts = {}
    for split in SPLITS:
        rank = np.array([splits[split].index(name) if name in splits[split] else -1 for name in names])
        rows = np.flatnonzero(rank[labels] >= 0)

        def images(first: int, rows: np.ndarray = rows) -> Iterator[np.ndarray]:
            data = np.concatenate([_load(files, file_of[each])[0] for each in ORIGINAL[:2]])
            yield from (data[row].reshape(3, 32, 32).transpose(1, 2, 0) for row in rows[first:])

        changed = partial(files.newest_change, [file_of[each] for each in ORIGINAL[:2]])
        parts[split] = part_of_labels(splits[split], rank[labels[rows]], images, str(files.root), changed)
    return parts, {"layout": "CIFAR-100 for Python"}


def _load(files: Files, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Images [n, 3072] uint8, planes of red, green and blue, and their labels [n]."""
    with open_checked(files, name, WANTED) as file:
        content = pickles.with_text_keys(pickles.load(file))
        data, labels = np.asarray(content["data"]), np.asarray(content["fine_labels"])
        whole = np.issubdtype(labels.dtype, np.integer) and len(labels) and 0 <= labels.min() <= labels.max() <= 99
        if data.dtype != np.uint8 or data.shape != (len(labels), 3072) or not whole:
            raise ValueError(f"images are {data.dtype} {data.shape}, with {len(labels)} labels of {labels.dtype}")
        return data, labels


def _part_of_pickle(files: Files, name: str, split: str) -> SplitSource:
    def load() -> tuple[np.ndarray, np.ndarray]:
        with open_checked(files, name, "wanted: data, uint8 [images, height, width, 3], with labels") as file:
            content = pickles.with_text_keys(pickles.load(file))
            data, labels = np.asarray(content["data"]), np.asarray(content["labels"])
            whole = np.issubdtype(labels.dtype, np.integer)
            if data.dtype != np.uint8 or data.shape[3:] != (3,) or labels.shape != data.shape[:1] or not whole:
                raise ValueError(f"images are {data.dtype} {data.shape}, with labels {labels.dtype} {labels.shape}")
            return data, labels

    numbers, labels = np.unique(load()[1], return_inverse=True)
    names = [f"{split} {number:03d}" for number in numbers.tolist()]
    changed = partial(files.newest_change, [name])
    return part_of_labels(names, labels, lambda first: iter(load()[0][first:]), files.describe(name), changed)


def _check(where: str, parts: Mapping[str, SplitSource], splits: Splits) -> None:
    named = all(name in splits[split] for split, part in parts.items() for name in part.names)
    if named:
        check_classes(where, parts, splits)
    for split, part in parts.items():
        if len(part.names) != len(splits[split]):
            raise FewshotError(f"{where}: {len(part.names)} classes of {split}, not {len(splits[split])}; {PARTLY}")
    counts = [item for part in parts.values() for item in part.counts.items()]
    unequal = [f"{where}: class {name} has {count} images, not {IMAGES}" for name, count in counts if count != IMAGES]
    raise_faults("classes with another number of images", unequal, PARTLY)


def _download(root: Path) -> None:
    fetch(URL, root / f"{NAME}.tar.gz", check=check_archive)


def _dataset(name: str, title: str, prefix: str, split_source: str) -> PublishedDataset:
    pattern = re.compile(rf"{prefix}_(train|val|test)\.(?:pickle|pkl)", re.IGNORECASE)

    def is_wanted(name: str) -> bool:
        base = posixpath.basename(name)
        return is_image(name) or base in ORIGINAL or bool(pattern.fullmatch(base))

    return PublishedDataset(
        name=name,
        title=title,
        source=f"{title}, of CIFAR-100 (Krizhevsky 2009)",
        split_source=split_source,
        is_wanted=is_wanted,
        find=partial(_find, pattern=pattern),
        check=_check,
        download=_download,
        remedy=f"put {NAME}.tar.gz there, or {prefix}_train.pickle and those of val and test, or class folders",
        archive=NAME,
        size=32,
    )


read_cifar_fs = _dataset("cifar_fs", "CIFAR-FS", "CIFAR_FS", "Bertinetto et al. 2019, at random, 64/16/20").read
read_fc100 = _dataset("fc100", "FC100", "FC100", "Oreshkin et al. 2018, by superclass, 60/20/20").read
