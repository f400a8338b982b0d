"""tieredImageNet: 608 classes of ImageNet, related ones in one split (Ren et al. 2018).

`read` tells the layouts that it knows. Two are those of the authors' program (github.com/renmengye/few-shot-ssl-public,
fewshot/data/tiered_imagenet.py and compress_tiered_imagenet.py).
"""

from __future__ import annotations

import math
import os
import re
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from fewshot.core.errors import FewshotError
from fewshot.core.paths import expand_path
from fewshot.data.bank import Bank
from fewshot.data.sources import pickles
from fewshot.data.sources.archives import Files, opened
from fewshot.data.sources.download import fetch
from fewshot.data.sources.faults import raise_faults
from fewshot.data.sources.images import ImageSpec, web_page
from fewshot.data.sources.layouts import (
    PARTLY,
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

# As in learn2learn 0.2.0, vision/datasets/tiered_imagenet.py, whose class is of no use here: it runs what it fetched.
URL = "https://zenodo.org/record/7978538/files"
TOTALS = {"train": 448_695, "val": 124_261, "test": 206_209}  # images of each split
NAME = re.compile(r"(?:tiered-imagenet-)?([a-z]+)_(images_png\.pkl|images\.npz|images\.npy|labels\.pkl)")
PNGS, LABELS = "images_png.pkl", "labels.pkl"
LAYOUTS = {
    PNGS: "the authors' pickles of PNG files",
    "images.npz": "the authors' images unpacked to .npz, blue first",
    "images.npy": "the authors' images unpacked to .npy, blue first",
}
NUMBERS, NAMES, IDS = "numbers, as in the labels", "names, as in the labels", "WordNet ids, as published"
AGAIN = (
    f"fetch the authors' six files again, by hand: {URL}/tiered-imagenet-train_images_png.pkl and -train_labels.pkl, "
    "and those of val and test"
)


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
    """The banks "train", "val" and "test" of images [M, 3, size, size] uint8, of 351, 97 and 160 classes.

    What lies in `root`, at any depth, is converted once, in little memory; then the cache is opened without it:

    - `{train,val,test}_images_png.pkl`, lists of PNG files of 84x84 pixels, with `{train,val,test}_labels.pkl`, dicts
      of "label_specific" and "label_specific_str"; tiered-imagenet- may stand before the names.
    - `{train,val,test}_images.npz` (or .npy) with the same labels. The authors' program unpacks the PNG files to it
      with OpenCV's order of channels, blue first; here they are turned round. The labels may also be such as came
      with these files for MetaOptNet, dicts of "labels" without names.
    - folders of images named by WordNet id, in folders of their split or not, such as ILSVRC-2012's training images,
      of which tieredImageNet takes all.

    A class has its WordNet id for a name; where the labels have none, the name or number that they have.

    Args:
        root: folder or archive; or a folder with one archive in it.
        cache: folder in which the banks are kept, in a folder of their own.
        size, resize, resample: see `ImageSpec`.
        complete: demand the published classes (without WordNet ids: as many) and the published numbers of images;
            otherwise take what is there of the three splits, in a folder of another name.
        download: fetch the first layout (12 GB, says learn2learn) into `root` where there is none.
        overwrite: convert anew whatever the cache holds.

    Raises:
        FewshotError: an argument out of range, files that are missing, damaged or not as above, or a damaged cache.
    """

    root = expand_path(root)

    def find(command: str) -> tuple[dict[str, SplitSource], dict[str, Any]]:
        parts, layout, classes, over = _parts(root, download, command)
        _check(str(root), parts, classes == IDS, complete)
        about = {"source": "tieredImageNet (Ren et al. 2018), of ILSVRC-2012", "layout": layout, "classes": classes}
        return parts, about | {"split_source": "Ren et al. 2018" if classes == IDS else "the files' own"} | over

    return published_banks("tiered", root, cache, ImageSpec(size, 3, resize, resample), complete, overwrite, find)


def _is_wanted(name: str) -> bool:
    return is_image(name) or NAME.fullmatch(PurePosixPath(name).name) is not None


def _parts(
    root: Path, download: bool, command: str, tried: bool = False
) -> tuple[dict[str, SplitSource], str, str, dict[str, Any]]:
    """What is there of each split, the layout and what its classes are named by in words, what was passed over."""
    files = open_source(root, _is_wanted) if root.exists() else None
    found: dict[str, dict[str, str]] = {kind: {} for kind in (*LAYOUTS, LABELS)}
    for name in files.names if files else ():
        match = NAME.fullmatch(PurePosixPath(name).name)
        if match and (split := SPLIT_WORDS.get(match[1])) and found[match[2]].setdefault(split, name) != name:
            raise FewshotError(f"{root}: {found[match[2]][split]} and {name} are both there: leave one of them")
    layout = max(LAYOUTS, key=lambda kind: len(found[kind]))
    missing = [f"{split}_{kind}" for split in SPLITS for kind in (layout, LABELS) if split not in found[kind]]
    if files and not missing:
        labels = {split: _labels(files, found[LABELS][split], split) for split in SPLITS}
        named, classes = _named({split: names for split, (names, _) in labels.items()})
        parts = {split: _part(files, found[layout][split], named[split], labels[split][1]) for split in SPLITS}
        return parts, LAYOUTS[layout], classes, {}
    published = published_split("tiered")
    if files and (folders := known_folders(files, published)):
        of = {split: {name: folders[name] for name in published[split] if name in folders} for split in SPLITS}
        parts = {split: part_of_files(files, of[split]) for split in SPLITS}
        return parts, "class folders by WordNet id", IDS, passed_over(files, published)
    if download and not root.is_file():
        _download(root, found)
        return _parts(root, False, command, tried=True)
    what = f"{missing[0]} is missing" if found[layout] else "no tieredImageNet is there"
    raise FewshotError(
        f"{root}: {what}: put train_images_png.pkl and train_labels.pkl and those of val and test there, or the like "
        "with _images.npz, or folders of images named by WordNet id, such as ImageNet's for training"
        f"{other_ways(root, command, download or tried)}"
    )


def _check(where: str, parts: Mapping[str, SplitSource], ids: bool, complete: bool) -> None:
    """Hold classes and images against what is published of them."""
    published = published_split("tiered")
    for split, part in parts.items():
        stray = sorted(Counter(part.names) - Counter(published[split])) if ids else []
        stray = [f"{where}: {name} is no class of {split} in the published split, or there twice" for name in stray]
        raise_faults("classes too many", stray, "remove it")
        classes, wanted = len(part.names), len(published[split])
        if complete and not ids and (classes, len(part.labels)) != (wanted, TOTALS[split]):
            have = f"{classes} classes and {len(part.labels)} images of {split}"
            raise FewshotError(f"{where}: {have}, not {wanted} and {TOTALS[split]}{PARTLY}")
    if ids and complete:
        check_official(where, parts, published, TOTALS)


def _download(root: Path, found: Mapping[str, Mapping[str, str]]) -> None:
    """Fetch what is missing of the authors' pickles."""

    def check(path: Path) -> None:
        with path.open("rb") as file:
            head = file.read(512)
            file.seek(max(0, path.stat().st_size - 1))
            tail = file.read(1)
        if web_page(head):
            raise FewshotError(f"{path}: a web page, not the file")
        # Any pickle from protocol 2 on, and lists and dicts of earlier ones; the last opcode of all is a full stop.
        if not head.startswith((b"\x80", b"(", b"]", b"}")) or tail != b".":
            raise FewshotError(f"{path}: no whole pickle")

    for split in SPLITS:
        for kind in (PNGS, LABELS):
            if split not in found[kind]:
                name = f"tiered-imagenet-{split}_{kind}"
                fetch(f"{URL}/{name}", root / name, check=check, what=name)


def _labels(files: Files, name: str, split: str) -> tuple[list[str], np.ndarray]:
    """The names of the classes, made of split and number where it has none, and the index of each image's."""
    with opened(files, name, AGAIN) as file:
        content = pickles.load(file, files.where(name))

    def require(good: object, what: str) -> None:
        if not good:
            raise FewshotError(f"{files.where(name)}: {what}; fetch it again")

    def items(key: str, kinds: Any, what: str) -> list[Any]:
        values = content[key].tolist() if isinstance(content[key], np.ndarray) else content[key]
        good = isinstance(values, list | tuple) and all(isinstance(value, kinds) for value in values)
        require(good and values, f'"{key}" is no list of {what}')
        return list(values)

    require(isinstance(content, dict), "it holds no dict")
    content = {key.decode("latin1") if isinstance(key, bytes) else key: value for key, value in content.items()}
    key = "label_specific" if "label_specific" in content else "labels"
    require(key in content, 'it has neither "label_specific" nor "labels"')
    labels = np.array(items(key, int | np.integer, "whole numbers"))
    require(labels.dtype.kind in "iu", f'"{key}" is no list of whole numbers in reason')
    labels = labels.astype(np.int64)
    low, high = int(labels.min()), int(labels.max())
    if key == "labels" or "label_specific_str" not in content:
        require(low >= 0, f'"{key}" goes from {low} to {high}')
        numbers, labels = np.unique(labels, return_inverse=True)
        return [f"{split} {number:04d}" for number in numbers.tolist()], labels
    names = items("label_specific_str", str | bytes, "names")
    require(low >= 0 and high < len(names), f'"{key}" goes from {low} to {high}, the names from 0 to {len(names) - 1}')
    names = [name.decode("latin1") if isinstance(name, bytes) else name for name in names]
    return [" ".join(name.split()) for name in names], labels


def _named(given: Mapping[str, list[str]]) -> tuple[dict[str, list[str]], str]:
    """The names of each split's classes, all of them distinct, and what they are."""
    every = [name for names in given.values() for name in names]
    if all(re.fullmatch(r"n\d{8}", name, re.ASCII) for name in every):
        return dict(given), IDS
    # English names of ImageNet are not unique: one twice in a split gets its number, one in two splits gets these.
    named = {
        split: [f"{name} ({i})" if names.count(name) > 1 else name for i, name in enumerate(names)]
        for split, names in given.items()
    }
    times = Counter(name for names in named.values() for name in set(names))
    named = {
        split: [f"{name} ({split})" if times[name] > 1 else name for name in names] for split, names in named.items()
    }
    return named, NUMBERS if all(re.fullmatch(r"(train|val|test) \d+", name) for name in every) else NAMES


def _part(files: Files, name: str, names: list[str], labels: np.ndarray) -> SplitSource:
    """The images of one file with their labels."""

    def images(first: int) -> Iterator[bytes | np.ndarray]:
        return (_pickled if name.endswith(".pkl") else _unpacked)(files, name, first, len(labels))

    next(images(0))  # what is not as it should be from the start, is better known before the other files are read
    where = files.where(name)
    return part_of_labels(names, labels, images, lambda i: f"{where}: image {i + 1}", lambda _: files.changed([name]))


def _pickled(files: Files, name: str, first: int, total: int) -> Iterator[bytes]:
    """The PNG files of a pickle from the `first` on, the last only where they are `total`."""
    where, count, data = files.where(name), 0, b""
    with opened(files, name, AGAIN) as file:
        for count, item in enumerate(pickles.stream(file, where), start=1):
            if count > total:
                raise FewshotError(f"{where}: more images than the {total} labels beside it")
            if count > first + 1:
                yield data
            if isinstance(item, np.ndarray):
                if item.dtype != np.uint8 or item.shape[1:] not in ((), (1,)):
                    found = f"an array {item.shape} of {item.dtype}"
                    raise FewshotError(f"{where}: image {count} is {found}, not the bytes of a PNG")
                data = item.tobytes()
            else:
                data = item.encode("latin1", "replace") if isinstance(item, str) else item  # str: bytes of Python 2
    if count < total:
        raise FewshotError(f"{where}: {count} images for the {total} labels beside it; fetch both again")
    yield data


def _unpacked(files: Files, name: str, first: int, total: int) -> Iterator[np.ndarray]:
    """The images [H, W, 3] of a .npz or .npy from the `first` on, red first."""
    where = files.where(name)
    with opened(files, name, AGAIN) as file, ExitStack() as stack:
        if name.endswith(".npz"):
            archive = stack.enter_context(zipfile.ZipFile(file))
            if "images.npy" not in archive.namelist():
                keys = ", ".join(member.removesuffix(".npy") for member in archive.namelist())
                raise FewshotError(f'{where}: it holds {keys[:80]}, no "images"')
            file = stack.enter_context(archive.open("images.npy"))
        old = np.lib.format.read_magic(file) == (1, 0)
        header = np.lib.format.read_array_header_1_0 if old else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = header(file)
        if dtype != np.uint8 or fortran or shape[3:] != (3,) or not all(1 <= side <= 1024 for side in shape[1:]):
            raise FewshotError(f"{where}: {dtype} {shape}, not uint8 [images, height, width, 3]")
        if shape[0] != total:
            raise FewshotError(f"{where}: {shape[0]} images for the {total} labels beside it")
        size = math.prod(shape[1:])
        file.seek(first * size, os.SEEK_CUR)
        for number in range(first, total):
            data = file.read(size)
            # To read beyond the end has an archive compare its checksum.
            if len(data) < size or (number == total - 1 and file.read(1)):
                raise ValueError("not as long as it says")
            yield np.frombuffer(data, np.uint8).reshape(shape[1:])[:, :, ::-1]
