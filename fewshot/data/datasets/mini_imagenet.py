"""miniImageNet: 100 classes of ImageNet with 600 images each (Vinyals et al. 2016; Ravi and Larochelle 2017).

Five layouts are recognised, at any depth of a folder or an archive; see `read`.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fewshot.core.errors import FewshotError
from fewshot.core.paths import expand_path
from fewshot.data.bank import Bank
from fewshot.data.sources import pickles
from fewshot.data.sources import split_csv as tables
from fewshot.data.sources.archives import Files, open_files, opened
from fewshot.data.sources.download import fetch
from fewshot.data.sources.faults import FaultsError, raise_faults
from fewshot.data.sources.images import ImageSpec
from fewshot.data.sources.layouts import (
    SPLIT_WORDS,
    SPLITS,
    check_official,
    is_image,
    known_folders,
    open_source,
    other_ways,
    passed_over,
    published_banks,
    published_split,
)
from fewshot.data.sources.parts import SplitSource, part_of_files, part_of_labels

# As in learn2learn 0.2.0, learn2learn/vision/datasets/mini_imagenet.py. Its class is of no use here: it unpickles them.
URL = "https://zenodo.org/record/7978538/files"
LISTS = "https://github.com/twitter-research/meta-learning-lstm, folder data/miniImagenet"
IMAGES = 600  # of each class
WORD = r"(train|val|valid|validation|test)"
PICKLE = re.compile(
    rf"(?:mini[-_]?imagenet(?:[-_]cache|_category_split)?[-_])?(?:train_phase_(?=train\.))?{WORD}\.(?:pkl|pickle)",
    re.IGNORECASE,
)
LIST = re.compile(rf"{WORD}\.csv", re.IGNORECASE)
KEYS = (("image_data", "class_dict"), ("data", "labels", "catname2label"))  # of a pickle's dict
ORIGINAL = re.compile(r"(n\d{8})_(\d{1,9})\.jpe?g", re.ASCII | re.IGNORECASE)

Splits = Mapping[str, Sequence[str]]


def read(
    root: str | Path,
    cache: str | Path,
    size: int = 84,
    resize: str = "squash",
    resample: str = "lanczos",
    complete: bool = True,
    download: bool = False,
    overwrite: bool = False,
) -> dict[str, Bank]:
    """The banks "train", "val" and "test" of images [M, 3, size, size] uint8: 64, 16 and 20 classes by WordNet id.

    What lies in `root` is converted once, in a stream (a pickle takes the memory of its images); then the cache is
    opened without it. Of the layouts the first one that is there is taken:

    - `mini-imagenet-cache-{train,validation,test}.pkl`, as learn2learn has them: dicts of "image_data" [n, 84, 84, 3]
      uint8 and "class_dict", the rows of each class;
    - `miniImageNet_category_split_{train_phase_train,val,test}.pickle` (github.com/gidariss/FewShotWithoutForgetting):
      dicts of "data", "labels" and "catname2label"; either kind may also be called `{train,val,test}.pkl` or `.pickle`;
    - images with Ravi's `train.csv`, `val.csv` and `test.csv` (columns filename,label), found by their names;
    - ILSVRC-2012's training images, `n01532829_5.JPEG`, with the same lists, which may lie beside `root`:
      n0153282900000005.jpg is the fifth image of n01532829 by the number in its name, from 1, as in
      github.com/yaoyao-liu/mini-imagenet-tools. No image of these classes may be missing, for then it is another one;
    - folders of images named by WordNet id, in folders of their split or not.

    Args:
        root: folder or archive; or a folder with one archive in it, and neither images nor pickles.
        cache: folder in which the banks are kept, in a folder of their own.
        size, resize, resample: see `ImageSpec`.
        complete: demand the published classes with 600 images each; otherwise what is there is taken, at least a class
            of each split, in a folder of another name.
        download: fetch the first layout into `root` where there is none.
        overwrite: convert anew, whatever the cache holds.

    Raises:
        FewshotError: an argument out of range, files that are missing, damaged or not as above, or a damaged cache.
    """

    root = expand_path(root)

    def find(command: str) -> tuple[dict[str, SplitSource], dict[str, Any]]:
        splits = published_split("mini")
        layout, parts, over = _source(root, splits, download, command)
        if complete:
            check_official(str(root), parts, splits, IMAGES)
        about = {"source": "miniImageNet (Vinyals et al. 2016), of ILSVRC-2012", "layout": layout}
        return parts, about | {"split_source": "Ravi and Larochelle 2017, by WordNet id"} | over

    return published_banks("mini", root, cache, ImageSpec(size, 3, resize, resample), complete, overwrite, find)


def _source(
    root: Path, splits: Splits, download: bool, command: str, tried: bool = False
) -> tuple[str, dict[str, SplitSource], dict[str, Any]]:
    """The layout in words, what is there of each split, and what was passed over, for `about`."""
    lacks = "no miniImageNet is there"
    if root.exists():
        files = open_source(root, lambda name: is_image(name) or bool(PICKLE.fullmatch(posixpath.basename(name))))
        pickled, lists = _by_split(files, PICKLE), _by_split(files, LIST)
        if len(pickled) == len(SPLITS):
            found = {split: _pickled(files, pickled[split], split, splits) for split in SPLITS}
            return f"pickles of {found['train'][0]}", {split: part for split, (_, part) in found.items()}, {}
        if len(lists) == len(SPLITS):
            return _listed(files, {lists[split]: split for split in SPLITS}, splits)
        folders = known_folders(files, splits)
        large = next((name for name, images in folders.items() if len(images) > IMAGES), None)
        if folders and not large:
            classes = {split: {name: folders[name] for name in splits[split] if name in folders} for split in SPLITS}
            parts = {split: part_of_files(files, classes[split]) for split in SPLITS}
            return "class folders by WordNet id", parts, passed_over(files, splits)
        beside: tables.Lists = {files.root.absolute().parent / f"{split}.csv": split for split in SPLITS}
        if all(Path(path).is_file() for path in beside):
            return _listed(files, beside, splits)
        if large:
            raise FewshotError(
                f"{root}: class {large} has {len(folders[large])} images, more than {IMAGES}, as in ImageNet's own "
                f"training images: put the lists train.csv, val.csv and test.csv there, from {LISTS}"
            )
        if some := max(pickled, lists, key=len):
            missing = " and ".join(split for split in SPLITS if split not in some)
            lacks = f"{next(iter(some.values()))} is there, but none of {missing}"
    if not download or root.is_file():
        raise FewshotError(
            f"{root}: {lacks}: put mini-imagenet-cache-train.pkl, -validation.pkl and -test.pkl there, or images with "
            "train.csv, val.csv and test.csv, or class folders by WordNet id"
            f"{other_ways(root, command, download or tried)}"
        )
    for split in SPLITS:
        name = posixpath.basename(url := _address(split))

        def check(path: Path, split: str = split) -> None:
            _content(open_files(path.parent), path.name, split, splits, "the download went wrong")

        fetch(url, root / name, check=check, what=name)
    return _source(root, splits, False, command, tried=True)


def _address(split: str) -> str:
    return f"{URL}/mini-imagenet-cache-{'validation' if split == 'val' else split}.pkl"


def _by_split(files: Files, pattern: re.Pattern[str]) -> dict[str, str]:
    """The one file of each split whose name says so."""
    found: dict[str, str] = {}
    for name in files.names:
        if match := pattern.fullmatch(posixpath.basename(name)):
            split = SPLIT_WORDS[match[1].lower()]
            if found.setdefault(split, name) != name:
                raise FewshotError(f"{files.root}: {found[split]} and {name} are both there: leave one of them")
    return found


def _pickled(files: Files, name: str, split: str, splits: Splits) -> tuple[str, SplitSource]:
    """The kind of a pickle in words, and its images."""
    where, remedy = files.where(name), f"fetch {_address(split)} in its place"

    # A pickle is read twice, for its classes and, when its turn comes, for its images: so one at a time is in memory.
    def images(first: int) -> Iterator[np.ndarray]:
        yield from _content(files, name, split, splits, remedy)[3][first:]

    kind, names, labels, _ = _content(files, name, split, splits, remedy)
    return kind, part_of_labels(
        names, labels, images, lambda i: f"{where}: image {i + 1}", lambda _: files.changed([name])
    )


def _content(
    files: Files, name: str, split: str, splits: Splits, remedy: str
) -> tuple[str, list[str], np.ndarray, np.ndarray]:
    """The kind of a pickle in words, its classes, the label of each image, and the images.

    Raises:
        FewshotError: it is not what `read` says, or holds classes that are not of this split.
    """
    where = files.where(name)
    with opened(files, name, remedy) as file:
        content = pickles.load(file, where)

    def require(good: object, what: str) -> None:
        if not good:
            raise FewshotError(f"{where}: {what}; {remedy}")

    def numbers(values: Any, what: str) -> np.ndarray:
        try:
            found = np.asarray(values)
        except ValueError:  # lists of several lengths
            found = np.empty(1)
        require(found.ndim == 1 and (found.dtype.kind in "iu" or not found.size), f"{what} is no list of whole numbers")
        return found.astype(np.int64)

    def by_text(values: Any, what: str) -> dict[Any, Any]:
        require(isinstance(values, dict), f"{what} is no dict")
        return {key.decode("latin1") if isinstance(key, bytes) else key: value for key, value in values.items()}

    content = by_text(content, "its content")
    keys = next((keys for keys in KEYS if set(keys) <= content.keys()), KEYS[0])
    known = " nor ".join(", ".join(keys) for keys in KEYS)
    require(set(keys) <= content.keys(), f"its keys are {', '.join(map(repr, content))[:80]}, and neither {known}")
    images, given = content[keys[0]], by_text(content[keys[-1]], keys[-1])
    found = f"{images.dtype} {images.shape}" if isinstance(images, np.ndarray) else type(images).__name__
    good = re.fullmatch(r"uint8 \(([1-9]\d*, ){3}3\)", found)
    require(good, f"{keys[0]} is {found}, not uint8 [images, height, width, 3]")
    if "labels" in keys:
        labels, of = numbers(content["labels"], "labels"), numbers(list(given.values()), "catname2label")
        rows = {name: np.flatnonzero(labels == label) for name, label in zip(given, of, strict=True)}
    else:
        rows = {name: numbers(of, f"class_dict of {name!r:.40}") for name, of in given.items()}
    rows = {name: of for name, of in rows.items() if len(of)}
    every = np.concatenate([np.empty(0, np.int64), *rows.values()])
    total, words = len(images), " and ".join(keys[1:])
    require(np.array_equal(np.sort(every), np.arange(total)), f"{words} do not give each of {total} images one class")
    stray = [f"{where}: {_stray(name, split, splits)}" for name in rows if name not in splits[split]]
    raise_faults("classes of another split", stray, remedy)
    labels = np.repeat(np.arange(len(rows)), [len(of) for of in rows.values()])[np.argsort(every)]
    return words, list(rows), labels, np.asarray(images)


def _stray(name: Any, split: str, splits: Splits) -> str:
    other = next((f"of {other}" for other in SPLITS if name in splits[other]), "in none")
    return f"class {name!r:.40} is {other} of the published splits, not of {split}"


def _listed(files: Files, lists: tables.Lists, splits: Splits) -> tuple[str, dict[str, SplitSource], dict[str, Any]]:
    """The layout in words, the images that the lists name, and nothing else for `about`.

    Raises:
        FewshotError: a list is not what `read` says, or an image of it is missing.
    """
    try:
        _, rows = tables.listed(files, lists)
    except FaultsError as error:
        raise FaultsError(f"{error}; take the published list, from {LISTS}", error.faults) from error
    except FewshotError as error:
        raise FewshotError(f"{error}; take the published list, from {LISTS}") from error
    stray = [
        f"{where}: {_stray(name, split, splits)}" for where, split, name in rows.values() if name not in splits[split]
    ]
    raise_faults("rows of other classes", stray, f"take the published list, from {LISTS}")
    layout = "images by their names in the published lists"
    file_of = tables.found_images(files, [name for name in files.names if is_image(name)], rows)
    if not file_of:
        layout, file_of = "ImageNet's training images, by their places in the published lists", _originals(files, rows)
    missing = [
        f"{row.where}: image {image!r:.80} is not in {files.root}"
        for image, row in rows.items()
        if image not in file_of
    ]
    remedy = (
        "put it there, or, in place of all that are listed, all of ImageNet's training images of their classes; or, if "
        "the 600 images are there by other names, remove the lists"
    )
    raise_faults("rows without an image", missing, remedy)
    image_of, parts = {file: image for image, file in file_of.items()}, {}
    for split in SPLITS:
        classes: dict[str, list[str]] = {}
        for image, row in rows.items():
            if row.split == split:
                classes.setdefault(row.label, []).append(file_of[image])
        # By the names in the lists, so that both layouts have the same order.
        parts[split] = part_of_files(files, classes, key=image_of.__getitem__)
    return layout, parts, {}


def _originals(files: Files, rows: Mapping[str, tables.Row]) -> dict[str, str]:
    """ImageNet's own files for the images that the lists give places to."""
    numbered: dict[str, dict[int, str]] = {row.label: {} for row in rows.values()}
    twice = []
    for file in files.names:
        if (match := ORIGINAL.fullmatch(posixpath.basename(file))) and match[1] in numbered:
            first = numbered[match[1]].setdefault(int(match[2]), file)
            if first != file:
                twice.append(f"{files.root}: {first} and {file} are both there")
    raise_faults("images that are there twice", twice, "leave one of them")
    file_of: dict[str, str] = {}
    for name, found in numbered.items():
        listed = {f"{name}{place:08d}.jpg": found[number] for place, number in enumerate(sorted(found), start=1)}
        file_of |= {image: file for image, file in listed.items() if image in rows and rows[image].label == name}
    return file_of
